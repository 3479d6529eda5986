"""Worker processes that are killed, on a server of their own that is restarted."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services import embedded
from services.chassis.child import bound
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.engine import lanes
from tests.family import ROOT, plain_environment, until
from tests.faults.points import ALL, thinned
from tests.faults.worker_process import ENVIRONMENT, LEASE_S

ROLES: Final = Roles("faults")
WORKERS: Final = 2
KILLS: Final = 10 if ALL else 0
"""How often each worker is killed at random, besides before it is killed at a point."""
CRASHES: Final = (False, True) if ALL else (True,)
KILLED_S: Final = 60.0
GLANCE_S: Final = 0.5


@dataclass
class KilledWorkers:
    """The server, and two workers: each runs `module` with `arguments` and more `settings`."""

    module: str
    folder: Path
    random: Random
    server: embedded.Embedded
    arguments: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    conninfos: list[str] = field(default_factory=list)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    """When each process died, by its id."""
    outages: list[tuple[float, float]] = field(default_factory=list)

    def migrate(self) -> None:
        """The schema, and the logins of an executor."""
        passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
        runner.upgrade(self._admin, ROLES, passwords)
        self.conninfos = [
            make_conninfo(self._admin, user=login, password=passwords[login])
            for login in self.logins
        ]

    @property
    def logins(self) -> tuple[str, str]:
        """An executor's two."""
        return ROLES.app("executor"), ROLES.system("executor")

    def database(self) -> Database:
        """The server as an executor has it."""
        return Database(*map(Secret, self.conninfos), constraints=lanes.CONSTRAINTS)

    def begin(self) -> None:
        """Start both."""
        for at in range(WORKERS):
            self._start(at)

    def harm(self, points: Sequence[str], more: Callable[[], None]) -> list[Callable[[], Any]]:
        """All that is done to them, in a random order; `more` gives them something to do."""
        done: list[Callable[[], Any]] = [
            *(partial(self._kill, at) for at in range(WORKERS) for _ in range(KILLS)),
            *(
                partial(self._kill_at, number % WORKERS, point, more)
                for number, point in enumerate(thinned(points, keep=2))
            ),
            *(partial(self._restart_server, crash=crash) for crash in CRASHES),
        ]
        self.random.shuffle(done)
        return done

    def end(self, within_s: float, left: str = "SELECT count(*) FROM executor.work") -> None:
        """Wait until no work is left, then ask the workers to stop, which they must do well."""
        until(lambda: self.rows(left) == [(0,)], within_s, "the end of all work")
        for process in self.processes:
            process.terminate()
        assert [process.wait(20) for process in self.processes] == [0, 0]

    def stop(self) -> None:
        """Leave nobody behind, however the test ended."""
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.server.stop()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows as the superuser sees them."""
        with psycopg.connect(self._admin, autocommit=True) as connection:
            found = connection.execute(query.encode())
            return found.fetchall() if found.description else []

    def was_out(self, moment: float) -> bool:
        """Whether the server was away then, or claims may have been lost to that."""
        return any(began <= moment <= ended for began, ended in self.outages)

    def was_harmed(self, begun: float, ended: float) -> bool:
        """Whether a worker died, or the server was away, between two moments."""
        died = any(begun <= moment <= ended for moment in self.deaths.values())
        return died or any(began <= ended and begun <= until for began, until in self.outages)

    def _start(self, at: int, points: str = "") -> None:
        """Start a worker in this place, and wait until it listens."""
        environment = plain_environment() | dict(zip(ENVIRONMENT, self.conninfos, strict=True))
        environment |= {**self.settings, "TENON_FAILPOINTS": points}
        with (self.folder / f"worker{at}.err").open("ab") as words:
            process = subprocess.Popen(
                bound([sys.executable, "-m", self.module, *self.arguments]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
            )
        self.processes[at : at + 1] = [process]
        if not points:
            assert process.stdout is not None
            assert process.stdout.readline(), "the worker did not start"

    def _kill(self, at: int) -> None:
        """SIGKILL in the middle of whatever it does, then another in its place."""
        self.processes[at].kill()
        self._note_death(at)
        self._start(at)

    def _kill_at(self, at: int, point: str, more: Callable[[], None]) -> None:
        """SIGKILL at random, then its successor's death at some hit of a failpoint, then another."""
        self.processes[at].kill()
        self._note_death(at)
        self._start(at, f"{point}=kill@{self.random.randint(1, 8)}")
        deadline = time.monotonic() + KILLED_S
        while not self._has_died(at):
            assert time.monotonic() < deadline, f"nothing came to {point}"
            more()
        assert self._note_death(at) == -signal.SIGKILL
        self._start(at)

    def _restart_server(self, *, crash: bool) -> None:
        """Stop it in order, or kill it so that it recovers; then start it where it was."""
        began = time.monotonic()
        if crash:
            os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()
        self.server = embedded.start(self.folder / "state")
        # Claims that could not be renewed meanwhile, or were lost, may be others' by now.
        self.outages.append((began, time.monotonic() + LEASE_S))

    @property
    def _admin(self) -> str:
        # Each start makes a new directory for the socket; this link leads there.
        return make_conninfo(
            self.server.conninfo().reveal_text(), host=str(self.server.home / "socket")
        )

    def _has_died(self, at: int) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.processes[at].wait(GLANCE_S)
        return self.processes[at].returncode is not None

    def _note_death(self, at: int) -> int:
        status = self.processes[at].wait()
        self.deaths[self.processes[at].pid] = time.monotonic()
        stdout = self.processes[at].stdout
        assert stdout is not None
        stdout.close()
        return status


@contextmanager
def killed_workers(module: str, seed: int) -> Iterator[KilledWorkers]:
    """A migrated server; no worker runs yet."""
    with tempfile.TemporaryDirectory(prefix="tenon-faults-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENON_HOME", str(folder / "home"))
            server = embedded.start(folder / "state")
            made = KilledWorkers(module, folder, Random(seed), server)
            try:
                made.migrate()
                yield made
            finally:
                made.stop()
