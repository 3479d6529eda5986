"""Posts and their supervisor, with real processes: filled, replaced, given up, drained, orphaned."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest

from services.chassis.errors import Unavailable
from services.chassis.processes import holding
from tests.accounts import Process, descendants, living
from tests.family import ROOT, plain_environment, until

SUPERVISOR: Final = """
import sys
from dataclasses import dataclass
from services.chassis.process import start
from services.chassis.processes import Post, supervise

@dataclass(frozen=True)
class Settings:
    log_format: str = "json"
    log_level: str = "INFO"

async def run(settings):
    folder, *behaviours = sys.argv[1:]
    command = [sys.executable, folder + "/program.py"]
    posts = [Post(f"{how} {n}", command, {"HOW": how}) for n, how in enumerate(behaviours)]
    await supervise(posts, door=7)

sys.exit(start("posts", Settings, "T", run))
"""
PROGRAM: Final = """
import os, pathlib, signal, sys, time
folder, how = pathlib.Path(__file__).parent, os.environ["HOW"]

def drain(*_):
    time.sleep(0.3)
    (folder / f"drained-{os.getpid()}").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, drain)
signal.signal(signal.SIGINT, drain)
if how == "absent":
    sys.exit(3)
if how == "late":
    while not (folder / "go").exists():
        time.sleep(0.01)
print("ready", flush=True)
if how == "mortal":
    sys.exit(4)
while True:
    signal.pause()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor of posts that behave so: steady, late, mortal or absent."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with ExitStack() as stack:

        def starts(*behaviours: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(tmp_path), *behaviours],
                cwd=ROOT,
                env=plain_environment(),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield starts


def ready(supervisor: "subprocess.Popen[str]") -> dict[str, Any]:
    assert supervisor.stdout is not None
    found: dict[str, Any] = json.loads(supervisor.stdout.readline())
    return found


def fillers(supervisor: "subprocess.Popen[str]") -> set[Process]:
    return {one for one in descendants(supervisor.pid) if one[0] != supervisor.pid}


def drained(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("drained-")) for path in folder.glob("drained-*")}


def test_it_is_ready_when_all_are_and_ends_when_all_have_drained(
    start: Start, tmp_path: Path
) -> None:
    supervisor = start("steady", "steady", "late")
    until(lambda: len(fillers(supervisor)) == 3)
    everybody = fillers(supervisor)
    (tmp_path / "go").touch()
    assert ready(supervisor) == {"ready": True, "door": 7}
    supervisor.terminate()
    assert supervisor.wait(20) == 0
    assert not living(everybody)
    assert drained(tmp_path) == {pid for pid, _ in everybody}


def test_ctrl_c_reaches_them_through_the_supervisor_alone(start: Start, tmp_path: Path) -> None:
    supervisor = start("steady", "steady")
    ready(supervisor)
    assert {os.getpgid(pid) for pid, _ in fillers(supervisor)}.isdisjoint({os.getpgid(0)})
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(20) == 0
    assert len(drained(tmp_path)) == 2


def test_one_that_is_killed_is_replaced_and_the_others_stay(start: Start) -> None:
    supervisor = start("steady", "steady")
    ready(supervisor)
    first, second = sorted(fillers(supervisor))
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(living(fillers(supervisor)) - {first}) == 2)
    assert second in living(fillers(supervisor))
    supervisor.terminate()
    assert supervisor.wait(20) == 0


def test_a_post_that_loses_three_soon_ends_everything_in_words(
    start: Start, tmp_path: Path
) -> None:
    supervisor = start("steady", "mortal")
    ready(supervisor)
    _, said = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert "posts: mortal 1 ended 3 times within 60 s, the last time by exit 4" in said
    assert said.count("is replaced in") == 2
    assert "Traceback" not in said
    assert len(drained(tmp_path)) == 1


def test_one_that_cannot_start_ends_everything_at_once(start: Start) -> None:
    supervisor = start("steady", "absent")
    out, said = supervisor.communicate(timeout=30)
    assert (supervisor.returncode, out) == (1, "")
    assert "posts: absent 1 did not start (exit 3)" in said
    assert "Traceback" not in said


def test_killed_supervisor_leaves_nobody(start: Start, tmp_path: Path) -> None:
    supervisor = start("steady", "steady")
    ready(supervisor)
    everybody = fillers(supervisor)
    supervisor.kill()
    until(lambda: not living(everybody), what="the end of all")
    assert drained(tmp_path) == {pid for pid, _ in everybody}


def listening(port: int, *options: int) -> socket.socket:
    one = socket.socket()
    for option in (socket.SO_REUSEADDR, *options):
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        one.bind(("127.0.0.1", port))
        one.listen()
    except OSError:
        one.close()
        raise
    return one


def taken(port: int) -> bool:
    """Whether somebody who does not share would hear so."""
    try:
        listening(port).close()
    except OSError:
        return True
    return False


def refuses_another(port: int) -> None:
    refused = pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}")
    with refused, holding("127.0.0.1", port):
        pass


def test_a_held_port_is_shared_by_ours_and_nobody_elses() -> None:
    with holding("127.0.0.1", 0) as port:
        assert taken(port)
        for _ in range(2):
            with (
                closing(listening(port, socket.SO_REUSEPORT)),
                closing(listening(port, socket.SO_REUSEPORT)),
                closing(socket.create_connection(("127.0.0.1", port))),
            ):
                assert taken(port)
                refuses_another(port)
        # Also while nobody listens.
        refuses_another(port)
    assert not taken(port)
