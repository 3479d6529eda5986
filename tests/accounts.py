"""Whom a test runs our commands as, where they keep what they make, and what they leave running."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.family import ROOT, plain_environment

NOBODY: Final = 65534
FREE_PORTS: Final = {
    "TENON_REGISTRY_LISTEN": "127.0.0.1:0",
    "TENON_EXECUTOR_LISTEN": "127.0.0.1:0",
    "TENON_EXECUTOR_INGRESS_PORT": "0",
    "TENON_SANDBOX_PORT": "0",
}
# An environment's interpreter may be a link into a home that is closed to others.
_OURS: Final = f"python{sys.version_info[0]}.{sys.version_info[1]}"
INTERPRETERS: Final = (sys.executable, f"/usr/bin/{_OURS}", f"/usr/local/bin/{_OURS}")
SOURCES: Final = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
Process = tuple[int, str]
"""A process id and when it started, which together are never used again."""


@dataclass(frozen=True)
class Account:
    """A user, an interpreter they may run, and a folder that is theirs."""

    uid: int
    python: str
    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a process theirs."""
        ours = self.uid == os.geteuid()
        return {} if ours else {"user": self.uid, "group": self.uid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        """A shell's, with ports that are free."""
        places = {"HOME": str(self.folder), "TENON_HOME": str(self.folder / "home")}
        return plain_environment() | FREE_PORTS | SOURCES | places

    def command(self, module: str, *arguments: object) -> list[str]:
        """One of our programs."""
        return [self.python, "-m", module, *map(str, arguments)]

    def tenon(self, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run one `tenon` command to its end."""
        return subprocess.run(
            self.command("services.command", *arguments),
            env=self.environment() | environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=110,
            **self.identity,
        )


@contextlib.contextmanager
def account(name: str) -> Iterator[Account]:
    """`us`, or a `plain` user without rights; skips where we cannot become one."""
    uid = os.geteuid() if name == "us" else NOBODY
    with tempfile.TemporaryDirectory(prefix="tenon-test-", dir="/tmp") as folder:
        # The account of root's server must pass through it.
        Path(folder).chmod(0o755)
        os.chown(folder, uid, -1)
        found = (Account(uid, python, Path(folder)) for python in INTERPRETERS)
        one = next((each for each in found if _works(each)), None)
        if one is None:
            pytest.skip("nobody else can be become here, or no interpreter is theirs to run")
        yield one


def _works(one: Account) -> bool:
    if one.uid != os.geteuid() and os.geteuid() != 0:
        return False
    trial = [one.python, "-c", "import services.executor.main, services.command"]
    try:
        done = subprocess.run(
            trial, env=one.environment(), cwd=ROOT, capture_output=True, **one.identity
        )
    except OSError:
        return False
    return done.returncode == 0


def descendants(pid: int) -> set[Process]:
    """Every process below one, and itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, open_ = set[Process](), [pid]
    while open_:
        one = open_.pop()
        with contextlib.suppress(OSError):
            found.add((one, _stat(one)[19]))
        open_ += children.get(one, [])
    return found


def living(processes: set[Process]) -> set[Process]:
    """Those that have not ended; one nobody has buried yet has."""
    return {one for one in processes if _lives(one)}


def _lives(process: Process) -> bool:
    try:
        state, started = (_stat(process[0])[at] for at in (0, 19))
    except OSError:
        return False
    return started == process[1] and state != "Z"


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
