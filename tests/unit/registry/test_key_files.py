"""Keyrings in a file and in the environment: what a version's key is, and how versions get one."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import pytest

from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.registry.keys.key_files import EnvironmentKeys, FileKeys
from services.registry.keys.keyrings import parse
from services.registry.keys.providers import KeyMissing

ONE, TWO = "1a" * 32, "2b" * 32
KEY_ONE, KEY_TWO = Secret(bytes.fromhex(ONE)), Secret(bytes.fromhex(TWO))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keyring"
    found.write_text(f"{ONE}\n")
    found.chmod(0o600)
    return found


async def test_the_key_is_that_of_the_versions_line(path: Path) -> None:
    path.write_text(f"1:{ONE}\n2:{TWO}\n")
    keys = FileKeys(path)
    assert await keys.open(2, "", b"") == KEY_TWO
    made = await keys.make(1)
    assert (made.key, made.reference, made.wrapped) == (KEY_ONE, "", b"")
    assert path.read_text() == f"1:{ONE}\n2:{TWO}\n"


async def test_a_changed_file_is_read_anew(path: Path) -> None:
    keys = FileKeys(path)
    assert await keys.open(1, "", b"") == KEY_ONE
    with pytest.raises(KeyMissing, match="begins with `2:`"):
        await keys.open(2, "", b"")
    path.write_text(f"1:{ONE}\n2:{TWO}\n")
    assert await keys.open(2, "", b"") == KEY_TWO


async def test_a_new_version_gets_a_line_that_other_processes_find(path: Path) -> None:
    made = await FileKeys(path).make(2)
    assert len(made.key.reveal()) == 32
    assert parse(path.read_text()) == {1: KEY_ONE, 2: made.key}
    assert await FileKeys(path).open(2, "", b"") == made.key


async def test_a_file_keeps_its_mode_its_owner_and_its_link(path: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        os.chown(path, 4321, 4321)
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    before = path.stat()
    await FileKeys(link).make(2)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert link.is_symlink()
    assert set(parse(path.read_text())) == {1, 2}


async def test_all_who_make_a_version_at_once_make_the_same(path: Path) -> None:
    made = await asyncio.gather(*(FileKeys(path).make(2) for _ in range(8)))
    assert all(each.key == made[0].key for each in made)
    assert len(path.read_text().splitlines()) == 2


async def test_who_makes_a_version_waits_for_who_makes_it_already(path: Path) -> None:
    with path.with_name(".keyring.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        making = asyncio.create_task(FileKeys(path).make(2))
        done, _ = await asyncio.wait({making}, timeout=0.2)
        path.write_text(f"1:{ONE}\n2:{TWO}\n")
    assert not done
    assert (await making).key == KEY_TWO
    assert path.read_text() == f"1:{ONE}\n2:{TWO}\n"


async def test_a_reader_never_sees_half_a_line(path: Path) -> None:
    seen: list[int] = []
    done = threading.Event()

    def read_all_the_time() -> None:
        while not done.is_set():
            seen.append(len(parse(path.read_text())))

    reading = asyncio.create_task(asyncio.to_thread(read_all_the_time))
    for version in range(2, 40):
        await FileKeys(path).make(version)
    done.set()
    await reading
    assert seen == sorted(seen)
    assert seen[0] >= 1
    assert len(set(seen)) > 5
    assert sorted(each.name for each in path.parent.iterdir()) == [".keyring.lock", "keyring"]


async def test_a_file_that_cannot_grow_says_which_line_to_add(tmp_path: Path) -> None:
    # The longest name there can be leaves none for a file beside it, not even root's.
    path = tmp_path / ("k" * 255)
    path.write_text(ONE)
    with pytest.raises(KeyMissing) as caught:
        await FileKeys(path).make(2)
    assert f"{path} has no key of version 2" in str(caught.value)
    assert "add a line `2:<64 hexadecimal digits>` to it on every registry" in str(caught.value)
    assert (await FileKeys(path).make(1)).key == KEY_ONE
    assert path.read_text() == ONE


@pytest.mark.skipif(os.getuid() == 0, reason="root writes whatever there is")
async def test_a_file_that_its_owner_made_read_only_does_not_grow(path: Path) -> None:
    path.chmod(0o400)
    with pytest.raises(KeyMissing, match="add a line `2:"):
        await FileKeys(path).make(2)
    assert path.read_text() == f"{ONE}\n"


async def test_a_faulty_line_is_named_with_its_file_and_not_shown(path: Path) -> None:
    path.write_text(f"1:{ONE}\n2:canary\n")
    with pytest.raises(KeyMissing) as caught:
        await FileKeys(path).open(1, "", b"")
    assert str(caught.value).startswith(f"{path}: line 2 must be a version")
    assert "canary" not in str(caught.value)
    path.write_bytes(b"\xff")
    with pytest.raises(KeyMissing, match="is not text"):
        await FileKeys(path).open(1, "", b"")


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 1), (0o604, 1)])
async def test_a_file_that_others_can_read_is_warned_of_once(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int, warnings: int
) -> None:
    path.chmod(mode)
    keys = FileKeys(path)
    for _ in range(2):
        assert await keys.open(1, "", b"") == KEY_ONE
    assert [str(path) in each.getMessage() for each in caplog.records] == [True] * warnings


async def test_without_a_file_none_is_made(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "keyring"
    for keys in (FileKeys(missing), FileKeys(tmp_path / "keyring")):
        with pytest.raises(KeyMissing, match="KEY_ENCRYPTION_KEY_FILE names, cannot be read"):
            await keys.make(1)
    assert list(tmp_path.iterdir()) == []


async def test_a_keyring_in_the_environment_has_its_lines_and_no_more() -> None:
    keys = EnvironmentKeys(Secret(f"1:{ONE}\n2:{TWO}"))
    assert (await keys.make(2)).key == await keys.open(2, "", b"") == KEY_TWO
    assert (await EnvironmentKeys(Secret(ONE)).make(1)).key == KEY_ONE
    with pytest.raises(KeyMissing, match="add a line `3:<64 hexadecimal digits>`"):
        await keys.make(3)
    with pytest.raises(KeyMissing, match="KEY_ENCRYPTION_KEY has no key of version 3"):
        await keys.open(3, "", b"")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"1:{ONE}\ncanary", "KEY_ENCRYPTION_KEY: line 2 must be"),
        ("", "KEY_ENCRYPTION_KEY has no key"),
        (b"\xff", "KEY_ENCRYPTION_KEY is not text"),
    ],
)
def test_what_is_no_keyring_in_the_environment_stops_the_start(
    text: str | bytes, fault: str
) -> None:
    with pytest.raises(SettingsError, match=fault) as caught:
        EnvironmentKeys(Secret(text))
    assert "canary" not in str(caught.value)
