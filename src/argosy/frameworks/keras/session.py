"""The random numbers and threads of Keras' backend."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from argosy.errors import InputError
from argosy.frameworks.base import get_framework
from argosy.frameworks.keras.arrays import to_numpy

__all__ = ["bind_backend", "keep_generator"]

keras: Any = importlib.import_module("keras")


@contextmanager
def bind_backend(seed: int, num_threads: int | None) -> Generator[None]:
    """Seed the backend's random numbers and bound its threads for a block.

    Raises:
        InputError: `bad_option`, the backend has started with another number of threads.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        # JAX has no random numbers of the process.
        _bound_jax(num_threads)
        yield
    else:
        session: AbstractContextManager[None] = get_framework(backend).session(seed, num_threads)
        with session:
            yield


@contextmanager
def keep_generator() -> Generator[None]:
    """Give the generator from which `keras.random` draws that is told none back as it was."""
    common: Any = importlib.import_module("keras.src.backend.common.global_state")
    name: str = importlib.import_module("keras.src.random.seed_generator").GLOBAL_SEED_GENERATOR
    generator: Any = common.get_global_attribute(name)
    state = None if generator is None else to_numpy(generator.state)
    try:
        yield
    finally:
        common.set_global_attribute(name, generator)
        if generator is not None:
            generator.state.assign(state)


def _bound_jax(num_threads: int | None) -> None:
    if num_threads is None:
        return
    runtime: Any = importlib.import_module("argosy.runtimes.jax")
    try:
        runtime.begin(num_threads)
    except ValueError as error:
        expected = f"{runtime.count_threads()}, with which JAX has started; for another number set PJRT_NPROC before the program"
        raise InputError("bad_option", option="num_threads", got=num_threads, expected=expected) from error
