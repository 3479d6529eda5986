"""The embedded PostgreSQL server: a wheel's binaries, run as a supervised child of this process.

    with start(Path(".tenon")) as server:
        psycopg.connect(server.conninfo().reveal_text())

Everything lives in the server's home, `server_home(state)`:

    lock  password      ours alone; whoever holds the lock owns the server
    data/               the cluster        data.partial-*/   an initdb under way
    socket              a symbolic link to the socket directory of the running server
    postgresql.conf  pg_hba.conf           written at each start
    log  log.old        this run's log and the one before
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Final, Self

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from services.chassis.errors import FailedPrecondition, Unavailable
from services.chassis.secret import Secret
from services.embedded_programs import (
    Account,
    Programs,
    find_binaries,
    halt,
    lock,
    server_account,
    tenon_home,
)

SUPERUSER: Final = "postgres"
READY_S: Final = 60.0
PREDECESSOR_S: Final = 30.0
POLL_S: Final = 0.02

# Not the system's temporary directory: TMPDIR may be too long for a socket's 107 bytes, or closed
# to the account the server runs as; XDG_RUNTIME_DIR goes at logout, before the server does.
_SOCKETS: Final = Path("/tmp")  # noqa: S108 (the directory's name is random, and it is 0700)

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "allow_alter_system": "off",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] ",
    # An error's message, detail and statement may quote values. The client gets them; the log,
    # which holds LOG, FATAL and PANIC only (LOG ranks above ERROR there), never does.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
_HBA: Final = "local all all scram-sha-256\n"
_INITDB: Final = (
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
)
_THROWAWAY: Final[Mapping[str, str]] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A running server, ready for connections until `stop` or this process's death."""

    home: Path
    socket_directory: Path
    _password: Secret
    _process: Popen[bytes] = field(repr=False)
    _undo: ExitStack = field(repr=False)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._process.pid

    def url(self, database: str = SUPERUSER) -> str:
        """Where `database` is, for people: a libpq URL of the superuser without the password."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.socket_directory}"

    def conninfo(self, database: str = SUPERUSER) -> Secret:
        """The libpq connection string of the superuser for `database`, with the password."""
        return _conninfo(self.socket_directory, self._password, database)

    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    async def wait(self) -> int:
        """Return the server's exit status once it has died; safe to cancel."""
        loop, died = asyncio.get_running_loop(), asyncio.Event()
        # A thread in waitpid could not be cancelled, and would hold up the loop's end.
        descriptor = os.pidfd_open(self.pid) if self.alive() else None
        if descriptor is not None:
            loop.add_reader(descriptor, died.set)
            try:
                await died.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return self._process.wait()

    def stop(self) -> None:
        """Stop the server, in at most some 25 s; no process or socket directory stays behind.

        Blocks; a second time is harmless.
        """
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def server_home(state: Path) -> Path:
    """Where the server of `state` lives: `<state>/postgres`, or under TENON_HOME for root.

    Root's server runs as an unprivileged user, who could not reach a state directory under /root.
    """
    state = state.resolve()
    if os.geteuid() != 0:
        return state / "postgres"
    return tenon_home() / "data" / hashlib.sha256(os.fsencode(state)).hexdigest()[:16]


def start(state: Path, *, durable: bool = True) -> Embedded:
    """Start the server of the directory `state`, making its database cluster the first time.

    Call it from the main thread, before an event loop runs: it blocks until the server answers,
    and the kernel stops the server when the *thread* that started it ends. With `durable` off a
    killed server may lose its last commits, and a crash of the machine everything. Raises
    FailedPrecondition where it cannot run here or runs already, Unavailable with the end of the
    log where the server fails.
    """
    if sys.platform != "linux":
        raise FailedPrecondition("the embedded server needs Linux: set TENON_DATABASE_URL instead")
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition("the embedded server is started from the main thread")
    home = server_home(state)
    try:
        return _start(home, durable=durable)
    except OSError as error:
        raise Unavailable(
            f"cannot prepare the server in {home}: {error.strerror} ({error.filename})",
            reason="EMBEDDED_SERVER_FAILED",
        ) from error


def _start(home: Path, *, durable: bool) -> Embedded:
    """Take each step of a start, and step back in reverse when one fails."""
    account = server_account()
    _make_home(home)
    with ExitStack() as undo:
        _hold(home / "lock", undo)
        _await_predecessor(home)
        with contextlib.suppress(FileNotFoundError):
            (home / "log").replace(home / "log.old")
        programs = Programs(home, find_binaries(), account)
        password = _password(home)
        if not (home / "data").exists():
            _initialise(programs, password, durable=durable)
        sockets = _make_sockets(home, account, undo)
        _write_settings(home, sockets, durable=durable)
        arguments = ["-D", str(home / "data"), "-c", f"config_file={home / 'postgresql.conf'}"]
        process = programs.launch("postgres", *arguments, "-c", f"cluster_name={_name(home)}")
        undo.callback(halt, process)
        _await_ready(home, process, _conninfo(sockets, password, SUPERUSER))
        return Embedded(home, sockets, password, process, undo.pop_all())


def _failed(home: Path, what: str) -> Unavailable:
    """The error of a server that went wrong, with the end of its log, which holds no values."""
    log = home / "log"
    lines = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
    return Unavailable("\n".join([f"{what}; see {log}", *lines]), reason="EMBEDDED_SERVER_FAILED")


def _conninfo(sockets: Path, password: Secret, database: str) -> Secret:
    """How libpq reaches `database` through the directory `sockets`."""
    return Secret(
        make_conninfo(
            host=str(sockets),
            user=SUPERUSER,
            password=password.reveal_text(),
            dbname=database,
            connect_timeout=10,
        )
    )


def _name(home: Path) -> str:
    """The server's cluster name: one per home, and on the command line of all its processes."""
    return f"tenon-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def _make_home(home: Path) -> None:
    """Make the server's home; what stands above it is made when absent and never changed.

    Raises FailedPrecondition when root's server could not reach it.
    """
    if os.geteuid() != 0:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    for directory, mode in ((home.parent.parent, 0o755), (home.parent, 0o755), (home, 0o711)):
        _make_directory(directory, mode)
    for directory in (home, *home.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            raise FailedPrecondition(
                f"{directory} is closed to the account the server runs as; set TENON_HOME"
            )


def _make_directory(directory: Path, mode: int) -> None:
    """Make `directory` with `mode`, whatever the umask; one that exists stays as it is."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir()
        directory.chmod(mode)


def _hold(path: Path, undo: ExitStack) -> None:
    """Own the server of this lock; raises FailedPrecondition when a living process does."""
    try:
        descriptor = lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, undo)
    except BlockingIOError:
        raise FailedPrecondition(
            f"the server in {path.parent} already runs, under process {path.read_text().strip()}",
            reason="EMBEDDED_SERVER_RUNNING",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _await_predecessor(home: Path) -> None:
    """Wait until a server whose parent was killed has stopped, then clear away what it left.

    Raises FailedPrecondition when it does not stop within PREDECESSOR_S.
    """
    deadline = time.monotonic() + PREDECESSOR_S
    while running := _processes(_name(home)):
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"an earlier server in {home} still runs as process {running[0]}",
                reason="EMBEDDED_SERVER_RUNNING",
            )
        time.sleep(POLL_S)
    # PostgreSQL refuses to start when the number in this file is in use again by anyone else,
    # which after a restart of a container is the rule.
    (home / "data" / "postmaster.pid").unlink(missing_ok=True)
    for abandoned in home.glob("data.partial-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def _processes(name: str) -> list[int]:
    """The processes of the server called `name`: the postmaster first, or what it left behind.

    Command lines, since every account may read those; a working directory needs a capability
    that containers withhold even from root.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            words = (entry / "cmdline").read_bytes()
            if f"cluster_name={name}\0".encode() in words or words.startswith(
                f"postgres: {name}: ".encode()
            ):
                found.append(int(entry.name))
    return sorted(found)


def _password(home: Path) -> Secret:
    """The superuser's password, from its 0600 file; made with the first cluster."""
    path = home / "password"
    if not path.exists():
        if (home / "data").exists():
            raise FailedPrecondition(
                f"{path} is gone, and {home / 'data'} cannot be opened without"
            )
        partial = path.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_text(secrets.token_urlsafe(32))
        _sync(partial)
        partial.rename(path)
    return Secret(path.read_text())


def _initialise(programs: Programs, password: Secret, *, durable: bool) -> None:
    """Make the cluster aside and move it into place whole: half of one is never run."""
    home, account = programs.home, programs.account
    # A new name each time: an initdb whose parent was killed may still be leaving its own.
    partial = home / f"data.partial-{secrets.token_hex(4)}"
    partial.mkdir(mode=0o700)
    os.chown(partial, account.uid, account.gid)
    # In memory, and open to the server's account: the password is on disk once, as ours.
    descriptor = os.memfd_create("password")
    try:
        os.write(descriptor, password.reveal())
        process = programs.launch(
            "initdb",
            f"--pgdata={partial}",
            f"--username={SUPERUSER}",
            f"--pwfile=/proc/self/fd/{descriptor}",
            *_INITDB,
            *([] if durable else ["--no-sync"]),
            keep=[descriptor],
        )
    finally:
        os.close(descriptor)
    try:
        status = process.wait()
    finally:
        halt(process)
    if status != 0:
        raise _failed(home, f"initdb ended with status {status}")
    partial.rename(home / "data")
    # Else a crash of the machine could undo the renaming, and the next start clear it away.
    _sync(home)


def _sync(path: Path) -> None:
    """Bring a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_sockets(home: Path, account: Account, undo: ExitStack) -> Path:
    """Make the socket directory, 0700, under a name nobody could have taken before."""
    _remove_sockets(home)
    sockets = _SOCKETS / f"tenon-{secrets.token_hex(8)}"
    # The link first: a kill between the two leaves nothing that the next start cannot find.
    (home / "socket").symlink_to(sockets)
    undo.callback(_remove_sockets, home)
    sockets.mkdir(mode=0o700)
    os.chown(sockets, account.uid, account.gid)
    return sockets


def _remove_sockets(home: Path) -> None:
    """Remove the recorded socket directory, if there is one."""
    link = home / "socket"
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def _write_settings(home: Path, sockets: Path, *, durable: bool) -> None:
    """Write both settings files, which hold no secret and which the server only reads."""
    places = {"unix_socket_directories": str(sockets), "hba_file": str(home / "pg_hba.conf")}
    settings = {**_SETTINGS, **({} if durable else _THROWAWAY), **places}
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
    for name, text in (("postgresql.conf", "".join(lines)), ("pg_hba.conf", _HBA)):
        (home / name).write_text(text)
        (home / name).chmod(0o644)


def _quoted(value: str) -> str:
    """`value` inside the quotes of a settings file."""
    return value.replace("\\", "\\\\").replace("'", "''")


def _await_ready(home: Path, process: Popen[bytes], conninfo: Secret) -> None:
    """Wait until the server takes a connection with our password, through recovery if need be."""
    deadline = time.monotonic() + READY_S
    while PGconn.ping(conninfo.reveal()) != Ping.OK:
        if process.poll() is not None:
            raise _failed(home, f"the server ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise _failed(home, f"the server was not ready within {READY_S:.0f} s")
        time.sleep(POLL_S)
    try:
        psycopg.connect(conninfo.reveal_text()).close()
    except psycopg.OperationalError:
        raise _failed(home, f"the server refuses the password in {home / 'password'}") from None
