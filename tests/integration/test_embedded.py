"""The embedded PostgreSQL server, with real servers: closed to strangers, and gone with its parent."""

import asyncio
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

import psycopg
import pytest

from services import embedded, embedded_programs
from services.chassis.errors import FailedPrecondition, Unavailable
from services.embedded import Embedded, server_home, start

ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[2]
SOURCES = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
Spawn = Callable[..., subprocess.Popen[bytes]]
needs_root = pytest.mark.skipif(not ROOT, reason="only root changes accounts")

# A process that runs a server until its standard input ends; it speaks once the server is ready.
PARENT = """
import sys
from pathlib import Path
from services.embedded import start

with start(Path(sys.argv[1]), durable=False) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def tenon_home() -> Iterator[Path]:
    """A TENON_HOME that the server's account can reach, which pytest's own directories are not."""
    with tempfile.TemporaryDirectory(prefix="tenon-test-", dir="/tmp") as name:
        home = Path(name)
        home.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENON_HOME", str(home))
            yield home


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with start(tmp_path_factory.mktemp("state"), durable=False) as running:
        yield running


def until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come in time"
        time.sleep(0.01)


def processes_in(home: Path) -> list[int]:
    """Every process whose working directory lies in the server's home."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            directory = (entry / "cwd").readlink()
        except OSError:
            continue
        if directory.is_relative_to(home):
            found.append(int(entry.name))
    return found


def connect(home: Path) -> psycopg.Connection[tuple[object, ...]]:
    """Connect as the superuser by what a server's home records."""
    password = (home / "password").read_text()
    host = str((home / "socket").readlink())
    return psycopg.connect(host=host, user="postgres", password=password, autocommit=True)


def ask(server: Embedded, statement: str) -> str:
    with psycopg.connect(server.conninfo().reveal_text(), autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return str(row[0])


def write_row(home: Path) -> None:
    with connect(home) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'committed' AS value")


def read_row(home: Path) -> tuple[object, ...] | None:
    with connect(home) as connection:
        return connection.execute("SELECT value FROM kept").fetchone()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def said(output: IO[bytes] | None) -> bytes:
    assert output is not None
    return output.readline()


@pytest.fixture
def parents() -> Iterator[Spawn]:
    """Start processes that run a server; in the end their input does, and so do they."""
    with ExitStack() as started:

        def spawn(
            state: Path, *, python: str = sys.executable, user: int | None = None
        ) -> subprocess.Popen[bytes]:
            return started.enter_context(
                subprocess.Popen(
                    [python, "-c", PARENT, str(state)],
                    cwd=REPOSITORY,
                    env={**os.environ, **SOURCES},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    user=user,
                    extra_groups=None if user is None else [],
                )
            )

        yield spawn


def test_is_postgresql_18_in_utf8_with_checksums(server: Embedded) -> None:
    assert ask(server, "SHOW server_version").startswith("18.")
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SHOW data_checksums") == "on"
    assert ask(server, "SELECT datlocale FROM pg_database WHERE datname = 'postgres'") == "C.UTF-8"
    assert ask(server, "SELECT upper('é')") == "É"


@pytest.mark.parametrize("password", ["wrong", None])
def test_refuses_whoever_lacks_the_password(server: Embedded, password: str | None) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host=str(server.socket_directory), user="postgres", password=password)


def test_has_one_door_and_it_asks_for_scram(server: Embedded) -> None:
    rules = "SELECT string_agg(type || ' ' || auth_method, ',') FROM pg_hba_file_rules"
    assert ask(server, rules) == "local scram-sha-256"
    assert ask(server, "SHOW listen_addresses") == ""
    stored = "SELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = 'postgres'"
    assert ask(server, stored) == "SCRAM-SHA-256"


def test_files_are_closed_to_others(server: Embedded) -> None:
    assert mode(server.home / "password") == 0o600
    assert mode(server.home / "log") == 0o600
    assert mode(server.home / "data") == 0o700
    assert mode(server.socket_directory) == 0o700


def test_shows_no_password(server: Embedded) -> None:
    password = (server.home / "password").read_text()
    command_line = Path(f"/proc/{server.pid}/cmdline").read_text()
    shown = [repr(server), server.url(), repr(server.conninfo()), command_line]
    assert password not in "".join(shown)
    assert password in server.conninfo().reveal_text()


def test_runs_as_an_unprivileged_user_out_of_reach_of_ctrl_c(server: Embedded) -> None:
    status = Path(f"/proc/{server.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert "0" not in uids
    assert len(set(uids)) == 1
    assert os.getpgid(server.pid) != os.getpgrp()


def test_log_holds_no_statement_and_no_value(server: Embedded) -> None:
    canary = "canary-4f1d"
    failing = (
        f"SELECT '{canary}'::uuid",
        f'SELECT * FROM "{canary}"',
        f"INSERT INTO secretive VALUES ('{canary}')",
        f"DO $$ BEGIN RAISE EXCEPTION '{canary}' USING DETAIL = '{canary}'; END $$",
    )
    with psycopg.connect(server.conninfo().reveal_text(), autocommit=True) as connection:
        connection.execute("CREATE TABLE secretive (value text PRIMARY KEY)")
        connection.execute("INSERT INTO secretive VALUES (%s)", [canary])
        connection.execute(f"DO $$ BEGIN RAISE WARNING '{canary}'; END $$".encode())
        for statement in failing:
            with pytest.raises(psycopg.Error, match=canary):
                connection.execute(statement.encode())
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host=str(server.socket_directory), user="postgres", password=canary)
    # The refused login is logged after all that came before it.
    until(lambda: "password authentication failed" in (server.home / "log").read_text())
    assert canary not in (server.home / "log").read_text()


def test_restart_keeps_data_and_stop_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as first:
        write_row(first.home)
        sockets = first.socket_directory
    first.stop()
    assert processes_in(first.home) == []
    assert not first.alive()
    assert not sockets.exists()
    assert not (first.home / "socket").is_symlink()
    with start(tmp_path, durable=False) as second:
        assert read_row(second.home) == ("committed",)


def test_durable_unless_told_otherwise(tmp_path: Path, server: Embedded) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes")
    with start(tmp_path) as durable:
        assert [ask(durable, f"SHOW {name}") for name in names] == ["on"] * 3
    assert [ask(server, f"SHOW {name}") for name in names] == ["off"] * 3


def test_two_servers_do_not_meet(tmp_path: Path, server: Embedded) -> None:
    with start(tmp_path, durable=False) as other:
        write_row(other.home)
        assert other.socket_directory != server.socket_directory
        assert ask(server, "SELECT to_regclass('kept')") == "None"


def test_killed_parent_takes_the_server_along(tmp_path: Path, parents: Spawn) -> None:
    home = server_home(tmp_path)
    parent = parents(tmp_path)
    said(parent.stdout)
    write_row(home)
    sockets = (home / "socket").readlink()
    with closing(connect(home)) as busy:
        busy.execute("BEGIN")
        parent.kill()
        until(lambda: not processes_in(home))
    with start(tmp_path, durable=False) as heir:
        assert read_row(heir.home) == ("committed",)
        assert not sockets.exists()


@contextmanager
def stopped_orphan(state: Path, parents: Spawn) -> Iterator[int]:
    """A server with one row whose parent was killed, and which cannot stop before this ends."""
    parent = parents(state)
    pid = int(said(parent.stdout))
    write_row(server_home(state))
    os.kill(pid, signal.SIGSTOP)
    try:
        parent.kill()
        parent.wait()
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_next_start_waits_for_an_orphan_to_finish(tmp_path: Path, parents: Spawn) -> None:
    home = server_home(tmp_path)
    with stopped_orphan(tmp_path, parents) as orphan:
        heir = parents(tmp_path)
        until(lambda: (home / "lock").read_text().strip() == str(heir.pid))
    assert int(said(heir.stdout)) != orphan
    assert read_row(home) == ("committed",)


def test_gives_up_on_an_orphan_that_never_stops(
    tmp_path: Path, parents: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_orphan(tmp_path, parents) as orphan, monkeypatch.context() as patch:
        patch.setattr(embedded, "PREDECESSOR_S", 0.1)
        with pytest.raises(FailedPrecondition, match=f"still runs as process {orphan}"):
            start(tmp_path, durable=False)
    start(tmp_path, durable=False).stop()


def test_killed_server_recovers(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        write_row(first.home)
        os.kill(first.pid, signal.SIGKILL)
    with start(tmp_path) as second:
        assert read_row(second.home) == ("committed",)


def test_stale_process_id_in_use_by_a_stranger(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as first:
        os.kill(first.pid, signal.SIGKILL)
    pid_file = first.home / "data" / "postmaster.pid"
    content, owner = pid_file.read_text(), pid_file.stat()
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid)
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *content.split("\n")[1:]]))
        with start(tmp_path, durable=False) as second:
            assert ask(second, "SELECT 1") == "1"
    finally:
        stranger.kill()
        stranger.wait()


def test_interrupted_initdb_starts_over(tmp_path: Path, parents: Spawn) -> None:
    home = server_home(tmp_path)
    parent = parents(tmp_path)
    until(lambda: list(home.glob("data.partial-*/PG_VERSION")))
    parent.kill()
    parent.wait()
    assert not (home / "data").exists()
    (home / "data.partial-half").mkdir()
    with start(tmp_path, durable=False) as server:
        assert ask(server, "SELECT 1") == "1"
    until(lambda: not processes_in(home))
    start(tmp_path, durable=False).stop()
    assert list(home.glob("data.partial-*")) == []


def test_live_server_is_a_clear_error(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as first:
        with pytest.raises(FailedPrecondition, match=f"under process {os.getpid()}"):
            start(tmp_path, durable=False)
        assert ask(first, "SELECT 1") == "1"


def test_broken_cluster_says_what_the_log_says(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as first:
        pass
    (first.home / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(Unavailable, match=r"status 1(?s:.)*incompatible"):
        start(tmp_path, durable=False)
    assert not (first.home / "socket").is_symlink()
    assert processes_in(first.home) == []


def test_password_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as first:
        pass
    (first.home / "password").write_text("another-one")
    with pytest.raises(Unavailable, match="refuses the password") as wrong:
        start(tmp_path, durable=False)
    assert "another-one" not in str(wrong.value)
    (first.home / "password").unlink()
    with pytest.raises(FailedPrecondition, match="is gone"):
        start(tmp_path, durable=False)
    assert processes_in(first.home) == []


async def test_supervisor_learns_of_its_death(tmp_path: Path) -> None:
    with start(tmp_path, durable=False) as server:
        watch = asyncio.create_task(server.wait())
        await asyncio.sleep(0)
        assert not watch.done()
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(watch, 20) == -signal.SIGKILL
        assert await server.wait() == -signal.SIGKILL
        assert not server.alive()


def test_stop_insists_when_a_fast_shutdown_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_programs, "FAST_SHUTDOWN_S", 0.2)
    with start(tmp_path, durable=False) as server, closing(connect(server.home)) as connection:
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        server.stop()
    assert processes_in(server.home) == []


def test_is_started_from_the_main_thread_only(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, pytest.raises(FailedPrecondition, match="main thread"):
        pool.submit(start, tmp_path, durable=False).result()


@needs_root
def test_root_copies_the_binaries_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tenon_home: Path
) -> None:
    home = tenon_home / "fresh"
    monkeypatch.setenv("TENON_HOME", str(home))
    umask = os.umask(0o077)
    start(tmp_path / "a", durable=False).stop()
    os.umask(umask)
    postgres = next(home.glob("*/*/*/bin/postgres"))
    before = postgres.stat()
    start(tmp_path / "b", durable=False).stop()
    assert [path.stat().st_ino for path in home.glob("*/*/*/bin/postgres")] == [before.st_ino]
    assert mode(postgres) == 0o755
    copy = postgres.parents[3]
    (copy / "half").touch()
    copy.rename(copy.with_suffix(".partial"))
    start(tmp_path / "b", durable=False).stop()
    assert postgres.exists()
    assert not (copy / "half").exists()


@needs_root
def test_root_is_told_of_a_closed_tenon_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("TENON_HOME", str(tmp_path / "home"))
    with pytest.raises(FailedPrecondition, match="closed to the account"):
        start(tmp_path / "state", durable=False)


def python_for(user: int) -> str:
    """An interpreter like ours that `user` may run with our libraries and sources, or skip."""
    ours = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, f"/usr/bin/{ours}", f"/usr/local/bin/{ours}"):
        try:
            tried = subprocess.run(
                [candidate, "-c", "import psycopg, services.embedded"],
                cwd=REPOSITORY,
                env={**os.environ, **SOURCES},
                user=user,
                extra_groups=[],
                capture_output=True,
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return candidate
    pytest.skip("no interpreter that a plain user may run with these libraries")


@needs_root
def test_a_plain_user_gets_the_same(tenon_home: Path, parents: Spawn) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    python = python_for(user)
    state = tenon_home / "plain"
    state.mkdir()
    os.chown(state, user, -1)
    home = state / "postgres"
    first = parents(state, python=python, user=user)
    pid = int(said(first.stdout))
    assert Path(f"/proc/{pid}").stat().st_uid == user
    assert mode(home) == 0o700
    assert mode(home / "password") == 0o600
    write_row(home)
    first.kill()
    until(lambda: not processes_in(home))
    second = parents(state, python=python, user=user)
    said(second.stdout)
    assert read_row(home) == ("committed",)
    sockets = (home / "socket").readlink()
    with second:
        pass
    assert second.returncode == 0
    assert processes_in(home) == []
    assert not sockets.exists()
