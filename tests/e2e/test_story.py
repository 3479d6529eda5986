"""`tenon story`, as `make run` runs it: told to its end, and nothing of it left."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounts import Account, account, descendants, living
from tests.family import ROOT, until

TOLD_S = 90.0
CHAPTERS = (
    r"\$ tenon plan",
    r"create Credential github-token",
    r"create Connector triage",
    r"9 to change, 0 unchanged",
    r"\$ tenon apply --wait",
    r"tenant acme: applied, now at revision 1",
    r"\$ tenon plan",
    r"tenant acme: nothing to do \(revision 1, 9 unchanged\)",
    r"X-GitHub-Event: issues +→ +202",
    r"\$ tenon executions acme last",
    r"triage: success, started by issues.opened",
    r"issue +success +1 +200",
    r"comment +success +1 +201",
    r"notify +success +1 +200",
    r"\$ tenon sync trigger acme github/issues --wait",
    r"state +success",
    r"created +45",
    r"\$ tenon audit list acme",
    r"owner +create",
    r"The end, after \d+ s",
)
GONE_S = 30.0


@pytest.fixture(params=["us", "plain"])
def user(request: pytest.FixtureRequest) -> Iterator[Account]:
    with account(request.param) as one:
        yield one


def in_order(text: str, *parts: str) -> None:
    """Each part after the one before."""
    at = 0
    for part in parts:
        found = re.search(part, text[at:])
        assert found, f"{part!r} is not where it belongs in:\n{text}"
        at += found.end()


def test_story_is_told_and_leaves_nothing(user: Account) -> None:
    temporary = user.folder / "tmp"
    temporary.mkdir()
    os.chown(temporary, user.uid, -1)
    temporary.chmod(0o755)
    told = subprocess.run(
        user.command("services.command", "story"),
        env=user.environment() | {"TMPDIR": str(temporary)},
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=TOLD_S,
        **user.identity,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "Traceback" not in told.stdout + told.stderr
    in_order(told.stdout, *CHAPTERS)
    assert list(temporary.iterdir()) == []
    assert not mentioning(str(temporary))


def mentioning(text: str) -> list[int]:
    """Processes with a text in their command line or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in seen:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="the same as ourselves then")
def test_story_that_is_interrupted_leaves_nothing() -> None:
    with account("us") as user:
        teller = subprocess.Popen(
            user.command("services.command", "story"),
            env=user.environment(),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            **user.identity,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with teller:
            words = teller.stdout
            assert words is not None
            until(lambda: "$ tenon plan" in words.readline(), TOLD_S, "the first command")
            state = until(lambda: supervised(str(user.folder), teller.pid), what="the supervisor")
            os.killpg(teller.pid, signal.SIGINT)
            words.read()
        assert teller.returncode != 0
        until(lambda: not living(state), GONE_S, "the end of the whole family")


def supervised(folder: str, teller: int) -> set[tuple[int, str]]:
    """The supervisor of the story in a folder, and all below it."""
    for pid in mentioning(folder):
        if b"services.standalone" in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != teller:
            return descendants(pid)
    return set()
