"""Several workers take the steps of one: the same weights, whatever becomes of a worker; and what cannot be shared is said."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from argosy.errors import FaultError, InputError, ModelError, StoreError
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train
from tests.processes import is_alive, list_children

WITHIN = 1e-6
"""Of weights of the order of one, after 30 steps: sums are taken in another order."""


def make_model(*, has_statistics: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = [torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)] if has_statistics else []
        return torch.nn.Sequential(torch.nn.Linear(4, 16), *middle, torch.nn.ReLU(), torch.nn.Linear(16, 3))


def make_data(count: int = 203) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    x = random.normal(size=(count, 4)).astype(np.float32)
    return x, (x @ random.normal(size=(4, 3))).argmax(axis=1)


def read_weights(model: Any) -> Any:
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in model.state_dict().values()])


def find_workers() -> list[int]:
    found = [pid for pid in list_children(os.getpid()) if b"argosy.train.member" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [pid for pid in found if is_alive(pid)]


def fit(workers: Any, data: Any = None, **options: Any) -> tuple[Any, Any]:
    model = options.pop("model", None) or make_model()
    options = {"epochs": 3, "batch_size": 20, "num_threads": 1, "progress": False, **options}
    if data is not None and not isinstance(data, tuple | dict):
        del options["batch_size"]
    result = train(model, make_data() if data is None else data, workers=workers, **options)
    assert find_workers() == []
    return result, read_weights(model)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_take_the_steps_of_one(workers: int) -> None:
    x, y = make_data()
    weights = np.linspace(0.5, 2.0, len(x), dtype=np.float32)
    options = {"data": (x, y, weights), "optimizer": "momentum", "validation_split": 0.2, "seed": 5}
    alone, expected = fit(1, **options)
    # The last batch has 3 rows, of which nothing falls to most workers.
    together, found = fit(workers, **options)
    assert np.abs(found - expected).max() <= WITHIN
    assert (alone.settings.workers, together.settings.workers) == (None, workers)
    assert [epoch.list_values() for epoch in together.history] == [
        pytest.approx(epoch.list_values(), rel=1e-5) for epoch in alone.history
    ]


def test_loader_is_read_by_one_worker_for_all() -> None:
    rows = torch.utils.data.TensorDataset(*map(torch.from_numpy, make_data()))

    def make_loader() -> Any:
        return torch.utils.data.DataLoader(rows, batch_size=20, shuffle=True)

    _, expected = fit(1, make_loader())
    _, found = fit(3, make_loader())
    assert np.abs(found - expected).max() <= WITHIN


class TwoPlayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)


def play(model: Any, batch: Any, run: Any) -> Any:
    run.minimize(torch.nn.functional.softplus(model.other(model.one(batch[0]).detach())).mean(), "other")
    value = run.minimize(torch.nn.functional.softplus(-model.other(model.one(batch[0]))).mean(), "one")
    run.log(value=value)


def test_step_of_ones_own_meets_the_others_at_each_of_its_optimizers() -> None:
    optimizers = {"one": "adam", "other": "sgd"}
    models = []
    for workers in (1, 2):
        torch.manual_seed(0)
        models.append(TwoPlayers())
        result, _ = fit(workers, model=models[-1], step=play, optimizer=optimizers)
    assert np.abs(read_weights(models[0]) - read_weights(models[1])).max() <= WITHIN
    assert 0.0 < result.history[-1].metrics["value"] < 1.0


def test_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(caplog: pytest.LogCaptureFixture) -> None:
    options = {"patience": 5, "validation_split": 0.1}
    _, expected = fit(2, model=make_model(has_statistics=True), **options)
    killed: list[int] = []

    def kill(taken: Any) -> None:
        if taken.number in (7, 15) and len(killed) < 2 and (not killed or taken.number == 15):
            killed.append(find_workers()[0])
            os.kill(killed[-1], signal.SIGKILL)

    result, found = fit(2, model=make_model(has_statistics=True), on_step=kill, **options)
    assert len(killed) == 2
    assert "worker 2 of 2 is gone: it was killed by signal 9; another one takes its place" in caplog.text
    assert np.array_equal(found, expected)
    assert len(result.history) == 3


def is_member() -> bool:
    return b"argosy.train.member" in Path("/proc/self/cmdline").read_bytes()


class Fragile(torch.nn.Module):
    """Ends every process but the first."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = torch.nn.Linear(4, 3), how

    def forward(self, x: Any) -> Any:
        if is_member():
            if self.how == "exit":
                os._exit(3)
            raise ValueError("these rows are too much")
        return self.layer(x)


def test_worker_that_dies_again_and_again_ends_the_run() -> None:
    with pytest.raises(FaultError, match="Worker 2 of 2 of a training run is gone again and again: it ended with code 3"):
        fit(2, model=Fragile("exit"))
    assert find_workers() == []


def test_error_of_one_worker_ends_the_run_of_all() -> None:
    with pytest.raises(FaultError, match="A worker of a training run failed: ValueError: these rows are too much"):
        fit(3, model=Fragile("raise"))
    assert find_workers() == []


@pytest.mark.parametrize("rescue", [True, False])
def test_row_that_ruins_a_batch_is_met_by_all(rescue: bool) -> None:
    x, y = make_data()
    loader = [(torch.from_numpy(x[start : start + 20]), torch.from_numpy(y[start : start + 20])) for start in range(0, 200, 20)]
    loader[4] = (torch.where(torch.arange(20)[:, None] == 15, torch.inf, loader[4][0]), loader[4][1])  # The second worker's.

    class Loader(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(loader)

    data = torch.utils.data.DataLoader(Loader(), batch_size=None)
    if not rescue:
        with pytest.raises(ModelError, match="not finite"):
            fit(2, data, rescue=False)
        return
    result, found = fit(2, data)
    assert [skip.batch for skip in result.skipped] == [4, 4, 4]
    _, expected = fit(1, data)
    assert np.abs(found - expected).max() <= WITHIN


def test_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    _, expected = fit(2, epochs=4)
    kept = tmp_path / "kept"
    fit(2, checkpoints=Checkpoints(folder=kept), epochs=2)
    for workers in (1, 2, 3):
        folder = shutil.copytree(kept, tmp_path / str(workers))
        _, found = fit(workers, checkpoints=Checkpoints(folder=folder), resume=True, epochs=4)
        assert np.abs(found - expected).max() <= WITHIN
        assert workers != 2 or np.array_equal(found, expected)


def test_what_cannot_be_given_to_another_process_is_said() -> None:
    model = make_model()
    model.source = (number for number in range(3))
    with pytest.raises(
        InputError, match="has to be given to other processes, and part of it cannot be: TypeError: cannot pickle"
    ):
        fit(2, model=model)


@pytest.mark.parametrize("workers", [-1, 1.5, "many"])
def test_number_of_workers_is_checked(workers: Any) -> None:
    with pytest.raises(InputError, match="`workers`"):
        fit(workers)


def test_rule_without_gradients_has_one_worker() -> None:
    with pytest.raises(InputError, match="`workers` is 'several', expected 1 with genetic, which has no gradients"):
        fit(2, optimizer="genetic")


@pytest.mark.parametrize("is_all_full", [False, True])
def test_what_memory_has_no_room_for_is_shared_on_a_disk(is_all_full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = os.posix_fallocate

    def refuse(handle: int, start: int, length: int) -> None:
        if is_all_full or str(Path(f"/proc/self/fd/{handle}").readlink()).startswith("/dev/shm/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(handle, start, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    if is_all_full:
        with pytest.raises(StoreError, match="what the workers of a run share"):
            fit(2, epochs=1)
        return
    _, found = fit(2, epochs=1)
    _, expected = fit(1, epochs=1)
    assert np.abs(found - expected).max() <= WITHIN


def test_number_of_workers_is_found_out_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    _, expected = fit(1, epochs=6)
    # Steps are long enough for a worker to come.
    result, found = fit("auto", epochs=6, num_threads=None, progress=True, on_step=lambda taken: time.sleep(0.1))
    assert np.abs(found - expected).max() <= WITHIN
    assert len(result.history) == 6
    told = re.search(r"^workers: (\d) \(a step takes \d+ ms with 1(?:, \d+ ms with 2)?\)$", capsys.readouterr().err, re.MULTILINE)
    assert told is not None
    assert result.settings.workers == int(told[1])
