"""Loads and unloads that clients ask a front for: it hands them to the control process, which knows the token, and waits.

No event loop waits with it. A client that goes away gets no answer, and takes nothing back.
"""

from __future__ import annotations

import re
from asyncio import StreamWriter
from collections.abc import Callable, Mapping
from typing import Any, Final

from argosy.errors import (
    ArgosyError,
    AuthError,
    ConflictError,
    FaultError,
    InputError,
    NotAllowedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from argosy.serve.wire.channel import write_message
from argosy.serve.wire.control_messages import MAX_ERRANDS, ErrandDone, LoadModel, UnloadModel

__all__ = ["Errand", "Errands"]

_MAX_NAME: Final = 256
"""None is longer than half of this: what is cut is refused, too."""
_BEARER: Final = re.compile(r"(?i:bearer) +(\S+)")
_KINDS: Final[dict[str, type[ArgosyError]]] = {
    kind.__name__: kind for kind in (AuthError, ConflictError, FaultError, InputError, NotAllowedError, NotFoundError)
}
_UNLOAD: Final = ("unload_dependents",)


class Errand:
    """One of them, on its way.

    Attributes:
        is_done: answered, or its client went away.
    """

    __slots__ = ("_answer", "is_done")

    def __init__(self, answer: Callable[[ArgosyError | None], None]) -> None:
        self._answer = answer
        self.is_done = False

    def finish(self, error: ArgosyError | None) -> None:
        """Tell the client how it went, once."""
        if not self.is_done:
            self.is_done = True
            self._answer(error)


class Errands:
    """Those of one front, which is linked to one control process at a time, or to none."""

    def __init__(self) -> None:
        self._writer: StreamWriter | None = None
        self._pending: dict[int, Errand] = {}
        self._next_id = 0

    def connect(self, writer: StreamWriter) -> None:
        """A control process is there, perhaps in place of another."""
        self.disconnect()
        self._writer = writer

    def disconnect(self) -> None:
        """It is gone; what it had begun it goes on with when it is back, but nobody here hears of that."""
        self._writer = None
        pending, self._pending = self._pending, {}
        for errand in pending.values():
            errand.finish(UnavailableError("control_away", retry_after_s=1.0))

    def send(
        self,
        op: str,
        name: str,
        parameters: Mapping[str, Any],
        authorization: str,
        answer: Callable[[ArgosyError | None], None],
    ) -> Errand:
        """Ask for a load or unload.

        Args:
            op: `load` or `unload`.
            name: of the model, as the client sent it.
            parameters: of a load: `version`, a number or alias; default: the newest.
            authorization: the header or metadata of that name; "" where it is missing.
            answer: called once, later, with None or what went wrong; not if the errand's `is_done` was set before.

        Raises:
            AuthError: no token is shown; whether it is the right one the control process says.
            InputError: a parameter that is not offered.
            OverloadedError: too many wait.
            UnavailableError: the control process is away.
        """
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise AuthError("unauthorized")
        version = _read_version(op, parameters)
        if len(self._pending) >= MAX_ERRANDS:
            raise OverloadedError("too_many_errands", limit=MAX_ERRANDS, retry_after_s=1.0)
        if self._writer is None:
            raise UnavailableError("control_away", retry_after_s=1.0)
        self._next_id += 1
        number, name, token = self._next_id, name[:_MAX_NAME], match[1]
        asked = LoadModel(number, name, version, token) if op == "load" else UnloadModel(number, name, token)
        write_message(self._writer, asked)
        errand = self._pending[number] = Errand(answer)
        return errand

    def take(self, message: ErrandDone) -> None:
        """Take the control process's answer."""
        errand = self._pending.pop(message.errand, None)
        if errand is None:
            return
        if message.kind is None:
            errand.finish(None)
        else:
            errand.finish(_KINDS.get(message.kind, FaultError)("server_said", text=message.text, hint=message.hint))


def _read_version(op: str, parameters: Mapping[str, Any]) -> str:
    known = ("version",) if op == "load" else _UNLOAD
    for name, value in parameters.items():
        if name not in known:
            # Triton's `config` and `file:` would replace what the store holds and has verified.
            expected = f"none of that name; {op} takes {known[0]}, and what the store holds is loaded as it is"
            raise InputError("bad_parameter", name=name[:100], got=str(value)[:40], expected=expected)
    version = parameters.get("version", "")
    if isinstance(version, bool) or not isinstance(version, (str, int)) or len(str(version)) > 128:
        raise InputError("bad_parameter", name="version", got=str(version)[:40], expected="a version's number or an alias")
    return str(version)
