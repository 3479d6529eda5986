"""The family lives and dies together: after kill -9 of its supervisor, by `tenon down`, beside another."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.accounts import Account, Process, account, descendants, living
from tests.family import until
from tests.faults.points import thinned

pytestmark = pytest.mark.faults

USERS = ("us", "plain")
GONE_S = 30.0
EVERYBODY = 5
"""At least the supervisor, PostgreSQL, the sandbox and both services."""


@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest) -> Iterator[Account]:
    with account(request.param) as one:
        yield one


@pytest.fixture(scope="module")
def state(user: Account) -> Iterator[Path]:
    """A state directory that all tests of one user use one after the other."""
    with _stopped_in_the_end(user, user.folder / "state") as state:
        yield state


@contextlib.contextmanager
def _stopped_in_the_end(user: Account, state: Path) -> Iterator[Path]:
    try:
        yield state
    finally:
        user.tenon("down", "--state", state)


def up(user: Account, state: Path) -> dict[str, Any]:
    """Start a family; where it listens."""
    done = user.tenon("up", "--sandbox", "--state", state)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tenon is running" in done.stdout
    where: dict[str, Any] = json.loads((state / "run.json").read_text())
    return where


def members(where: dict[str, Any]) -> set[Process]:
    """The supervisor and all it started."""
    found = descendants(where["pid"])
    assert len(found) >= EVERYBODY
    return found


def command_line(pid: int) -> bytes:
    """Of a process that may just have ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def example(user: Account, state: Path, where: dict[str, Any], command: str) -> int:
    """Plan or apply the example's tenant alone, which needs no secret; the exit code."""
    done = user.tenon(
        command,
        "config/examples/acme/tenant.yaml",
        TENON_REGISTRY=where["registry"],
        TENON_KEY_FILE=str(state / "owner.key"),
        TENON_REASON="a test",
    )
    return done.returncode


def test_killed_supervisor_leaves_nobody(user: Account, state: Path) -> None:
    where = up(user, state)
    everybody = members(where)
    os.kill(where["pid"], signal.SIGKILL)
    until(lambda: not living(everybody), GONE_S, "the end of the whole family")


def test_up_twice_then_down_then_up_again_with_the_data(user: Account, state: Path) -> None:
    where = up(user, state)
    assert example(user, state, where, "apply") == 0
    second = user.tenon("up", "--sandbox", "--state", state)
    assert second.returncode == 0
    assert "already running" in second.stdout
    everybody = members(where)

    down = user.tenon("down", "--state", state)
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    until(lambda: not living(everybody), GONE_S, "the end of the whole family")
    assert "nothing is running" in user.tenon("down", "--state", state).stdout

    where = up(user, state)
    assert example(user, state, where, "plan") == 0


@pytest.mark.parametrize("user", thinned(USERS, keep=1), indirect=True)
def test_two_families_live_side_by_side(user: Account, state: Path) -> None:
    where = up(user, state)
    with _stopped_in_the_end(user, user.folder / "other") as other:
        elsewhere = up(user, other)
        assert not members(where) & members(elsewhere)
        assert example(user, other, elsewhere, "plan") == 2
        assert user.tenon("down", "--state", state).returncode == 0
        assert example(user, other, elsewhere, "plan") == 2


@pytest.mark.parametrize("user", thinned(USERS, keep=1), indirect=True)
def test_a_member_that_dies_takes_the_others_along(user: Account, state: Path) -> None:
    where = up(user, state)
    everybody = members(where)
    (executor,) = [pid for pid, _ in everybody if b"services.executor.main" in command_line(pid)]
    os.kill(executor, signal.SIGKILL)
    until(lambda: not living(everybody), GONE_S, "the end of the whole family")
    assert "executor ended by itself" in (state / "log").read_text()
