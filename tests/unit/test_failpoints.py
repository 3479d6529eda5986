import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.chassis import failpoints
from services.chassis.failpoints import Arming, BadFailpoints, Failpoint, FailpointError

ROOT = Path(__file__).parents[2]
PROGRAM = """
from services.chassis import failpoints
POINT = failpoints.declare("demo.step", "nothing is lost")
OTHER = failpoints.declare("demo.other", "nothing either")
print("armed", failpoints.check_armed(), flush=True)
for hit in range(1, 4):
    print("hit", hit, flush=True)
    POINT.hit()
    OTHER.hit()
print("end", flush=True)
"""


def start(setting: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "TENON_FAILPOINTS": setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(setting: str) -> tuple[int, list[str], str]:
    process = start(setting)
    out, err = process.communicate(timeout=30)
    return process.returncode, out.splitlines(), err


def test_unarmed_points_do_nothing() -> None:
    assert run("") == (0, ["armed ()", "hit 1", "hit 2", "hit 3", "end"], "")


@pytest.mark.parametrize(("setting", "hits"), [("demo.step=kill", 1), ("demo.step=kill@3", 3)])
def test_kill_takes_the_process_at_the_hit_it_was_armed_for(setting: str, hits: int) -> None:
    code, out, _ = run(setting)
    assert code == -signal.SIGKILL
    assert out == ["armed ('demo.step',)", *(f"hit {n}" for n in range(1, hits + 1))]


def test_error_raises_and_names_the_point() -> None:
    code, out, err = run(" demo.other=error@2 , demo.step=kill@9")
    assert code == 1
    assert out[-1] == "hit 2"
    assert "FailpointError: failpoint demo.other" in err


def test_pause_tells_that_it_was_reached_and_waits_to_be_released(tmp_path: Path) -> None:
    process = start(f"demo.step=pause@2:{tmp_path / 'here@there'}")
    try:
        wait_for(tmp_path / "here@there.reached")
        assert process.poll() is None
        (tmp_path / "here@there.go").touch()
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out.splitlines()[-1] == "end"


def test_a_pause_that_nobody_ends_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "PAUSE_LIMIT_S", 0)
    with pytest.raises(FailpointError, match="never released"):
        Failpoint("demo.step", Arming("pause", None, str(tmp_path / "x"))).hit()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("demo.stpe=kill", "no module declares: demo.stpe"),
        ("demo.step", "NAME=kill"),
        ("demo.step=explode", "NAME=kill"),
        ("demo.step=kill@0", "NAME=kill"),
        ("demo.step=pause", "NAME=kill"),
        ("demo.step=kill:/path", "NAME=kill"),
    ],
)
def test_a_setting_that_arms_nothing_real_stops_the_start(setting: str, told: str) -> None:
    code, out, err = run(setting)
    assert code == 1
    assert out == []
    assert "BadFailpoints" in err
    assert told in err


def test_every_declared_point_says_what_it_proves() -> None:
    point = failpoints.declare("test.declared", "it is listed")
    assert failpoints.declared()["test.declared"] == "it is listed"
    assert point.name == "test.declared"
    with pytest.raises(TypeError):
        failpoints.declared()["test.other"] = "no"  # type: ignore[index]


@pytest.mark.parametrize("name", ["", "plain", "Upper.case", "a b.c", "a=b.c", "a,b.c", "a."])
def test_a_name_not_like_room_place_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"room\.place"):
        failpoints.declare(name, "nothing")


def test_a_name_is_declared_once() -> None:
    failpoints.declare("test.once", "first")
    with pytest.raises(ValueError, match="already"):
        failpoints.declare("test.once", "second")


def test_without_a_number_every_hit_counts() -> None:
    point = Failpoint("demo.step", failpoints.parse_armings("demo.step=error")["demo.step"])
    for _ in range(3):
        with pytest.raises(FailpointError):
            point.hit()


def test_with_a_number_only_that_hit_counts() -> None:
    point = Failpoint("demo.step", failpoints.parse_armings("demo.step=error@2")["demo.step"])
    point.hit()
    with pytest.raises(FailpointError):
        point.hit()
    point.hit()


def test_armings_of_one_setting_are_all_read() -> None:
    read = failpoints.parse_armings("a.b=kill, c.d=error@2,e.f=pause:/run/x:y")
    assert read == {
        "a.b": Arming("kill", None, ""),
        "c.d": Arming("error", 2, ""),
        "e.f": Arming("pause", None, "/run/x:y"),
    }
    with pytest.raises(BadFailpoints):
        failpoints.parse_armings("a.b=kill,nonsense")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
