"""Named places where a test can make a process die, fail or wait.

A module declares its points where it uses them:

    BEFORE_COMMIT = failpoints.declare("apply.before_commit", "nothing of the apply is there")
    ...
    BEFORE_COMMIT.hit()

The environment arms them: `TENON_FAILPOINTS="apply.before_commit=kill@3,feed.read=error"`.

    kill          SIGKILL to this process, so that nothing is flushed or rolled back in order
    error         raises FailpointError
    pause:PATH    makes PATH.reached, then blocks the thread until PATH.go is there

`@N` after the action means at the Nth hit only; without it, at every hit.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from services.chassis.errors import Internal, TenonError

SETTING: Final = "TENON_FAILPOINTS"
PAUSE_LIMIT_S: Final = 120
_POLL_S: Final = 0.01

_NAME: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+")
_ARMING: Final = re.compile(
    r"(?P<name>[^=]+)=(?P<action>kill|error|pause)(?:@(?P<at>[1-9]\d*))?(?::(?P<path>.+))?"
)


class FailpointError(Internal):
    """Raised by a failpoint armed with `error`, and by a pause that nobody ended."""

    reason = "FAILPOINT"


class BadFailpoints(TenonError):
    """The setting cannot be read, or arms a point that no module declares."""

    reason = "BAD_FAILPOINTS"


@dataclass(frozen=True, slots=True)
class Arming:
    """What an armed point does: at the Nth hit, or at every one when `at` is None."""

    action: str
    at: int | None
    path: str

    def act(self, name: str) -> None:
        """Do it."""
        _ACTIONS[self.action](name, self.path)


def _kill(name: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(name: str, path: str) -> None:
    raise FailpointError(f"failpoint {name}")


def _pause(name: str, path: str) -> None:
    Path(f"{path}.reached").touch()
    released, deadline = Path(f"{path}.go"), time.monotonic() + PAUSE_LIMIT_S
    while not released.exists():
        if time.monotonic() > deadline:
            raise FailpointError(f"failpoint {name} was never released")
        time.sleep(_POLL_S)


_ACTIONS: Final[Mapping[str, Callable[[str, str], None]]] = {
    "kill": _kill,
    "error": _fail,
    "pause": _pause,
}


class Failpoint:
    """One declared place; costs one comparison when nothing is armed."""

    __slots__ = ("_arming", "_hits", "name")

    def __init__(self, name: str, arming: Arming | None) -> None:
        self.name = name
        self._arming = arming
        self._hits = 0

    def hit(self) -> None:
        """The code reached this place."""
        if self._arming is not None:
            self._hits += 1
            if self._arming.at in (None, self._hits):
                self._arming.act(self.name)


def parse_armings(text: str) -> dict[str, Arming]:
    """The setting's text as point → arming. Raises BadFailpoints."""
    return dict(_parse_arming(part.strip()) for part in text.split(",") if part.strip())


def _parse_arming(text: str) -> tuple[str, Arming]:
    found = _ARMING.fullmatch(text)
    if found is None or (found["action"] == "pause") != (found["path"] is not None):
        raise BadFailpoints(
            f"{SETTING}: {text!r} is not NAME=kill, NAME=error or NAME=pause:PATH "
            "(@N after the action: at the Nth hit)"
        )
    at = int(found["at"]) if found["at"] else None
    return found["name"], Arming(found["action"], at, found["path"] or "")


# A setting that cannot be read must stop a process in its main, not whoever imports this first.
try:
    _armed, _fault = parse_armings(os.environ.get(SETTING, "")), None
except BadFailpoints as error:
    _armed, _fault = {}, error

_declared: Final[dict[str, str]] = {}


def declare(name: str, proves: str) -> Failpoint:
    """A point of that name; `proves` says what must hold when the process dies there.

    Raises ValueError for a name taken or not like `room.place`.
    """
    if not _NAME.fullmatch(name) or name in _declared:
        raise ValueError(f"failpoint {name!r} is declared already or not like room.place")
    _declared[name] = proves
    return Failpoint(name, _armed.get(name))


def declared() -> Mapping[str, str]:
    """Every point of the modules imported so far, with what it proves."""
    return MappingProxyType(_declared)


def check_armed() -> tuple[str, ...]:
    """The armed points; for mains to call, and warn of, once all modules are imported.

    Raises BadFailpoints when the setting cannot be read or names a point nobody declared.
    """
    if _fault is not None:
        raise _fault
    unknown = sorted(set(_armed) - set(_declared))
    if unknown:
        raise BadFailpoints(f"{SETTING} names points that no module declares: {', '.join(unknown)}")
    return tuple(_armed)
