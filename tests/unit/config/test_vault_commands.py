"""`keys status|rotate|rewrap|disable|enable|destroy`: what people see of the key-encryption key."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.registry.v1 import key_service_pb2
from tenon.registry.v1 import vault_service_pb2 as pb2

from config import rewrapping
from services.chassis.errors import FailedPrecondition, Unavailable
from tests.unit.config.conftest import Registry, Tenon, rows

Version = pb2.KeyVersion
Progress = pb2.RewrapProgress

MADE = Timestamp()
MADE.FromDatetime(datetime(2026, 5, 1, 8, 30, tzinfo=UTC))


def version(number: int, state: Version.State.ValueType, **more: int) -> Version:
    return Version(
        version=number,
        state=state,
        provider="file",
        reference="keyring",
        create_time=MADE,
        update_time=MADE,
        **more,
    )


OLD = version(1, Version.STATE_DECRYPT_ONLY, wraps=7, wrapped_in_all=2**30 + 5)
NEW = version(2, Version.STATE_ACTIVE, wraps=40, wrapped_in_all=41)
HOLDER = pb2.KeyHolder(uid="u-1", host="host-a", versions=[1, 2], seen_time=MADE)
FOUND = pb2.ListKeyVersionsResponse(versions=[NEW, OLD], holders=[HOLDER])


def test_status_shows_the_versions_and_who_has_them(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListKeyVersions", FOUND)
    said = tenon("keys", "status")
    assert (said.code, said.err) == (0, "")
    since = ["2026-05-01", "08:30"]
    assert ["2", "active", "file", "keyring", "40", "41", *since, *since] in rows(said)
    assert ["1", "decrypt-only", "file", "keyring", "7", "1073741829", *since, *since] in rows(said)
    assert ["host-a", "2,", "1", *since, "u-1"] in rows(said)
    assert registry.keys == {"Bearer tnk_test_key"}


def test_status_as_json_has_all_that_was_answered(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ListKeyVersions", FOUND)
    (found,) = json.loads(tenon("keys", "status", "--output", "json").out)
    assert [each["state"] for each in found["versions"]] == ["STATE_ACTIVE", "STATE_DECRYPT_ONLY"]
    assert found["holders"][0]["versions"] == [1, 2]


@pytest.mark.parametrize(("wraps", "warns"), [(2**30, False), (2**30 + 1, True)])
def test_status_warns_before_the_active_version_wraps_too_often(
    tenon: Tenon, registry: Registry, wraps: int, *, warns: bool
) -> None:
    worn = version(3, Version.STATE_ACTIVE, wrapped_in_all=wraps)
    registry.answer("ListKeyVersions", pb2.ListKeyVersionsResponse(versions=[worn, OLD]))
    said = tenon("keys", "status")
    assert ("version 3 has wrapped" in said.err and "tenon keys rotate" in said.err) is warns
    assert "version 1" not in said.err


def test_rotating_without_a_key_is_followed_until_nothing_is_left(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("CreateKeyVersion", version(2, Version.STATE_PENDING))
    waits = Progress(total=3, version=2, waiting_for=["host-a", "host-b"])
    wraps = [Progress(done=done, total=3, version=2) for done in (1, 2, 3)]
    registry.answer("Rewrap", [waits, waits, *wraps])
    registry.answer("ListKeyVersions", FOUND)
    said = tenon("keys", "rotate")
    assert said.code == 0
    assert "version 2 waits for host-a, host-b: 0 of 3\n" in said.err
    assert said.err.count("waits for") == 1
    assert said.err.splitlines()[-1] == "wrapping by version 2: 3 of 3"
    assert "2 of 3" not in said.err, "a line every few seconds, not one for each message"
    assert ["2", "active"] in [row[:2] for row in rows(said)]
    assert [name for name, _ in registry.asked] == ["CreateKeyVersion", "Rewrap", "ListKeyVersions"]
    assert registry.requests("CreateKeyVersion")[0].request_id
    assert registry.requests("Rewrap")[0].name == ""


def test_a_line_follows_when_the_time_for_one_has_come(
    tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrapping, "LINE_S", 0.0)
    registry.answer("Rewrap", [Progress(done=done, total=3, version=2) for done in (1, 2, 3)])
    said = tenon("keys", "rewrap")
    assert [line.partition(": ")[2] for line in said.err.splitlines()] == [
        "1 of 3",
        "2 of 3",
        "3 of 3",
    ]


def test_a_terminal_gets_a_bar(
    tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    registry.answer("Rewrap", [Progress(done=3, total=3, version=2)])
    said = tenon("keys", "rewrap")
    assert "━" in said.err and "3/3" in said.err and "version 2" in said.err
    assert said.code == 0 and "all is wrapped" in said.out


def test_rotating_need_not_be_followed(tenon: Tenon, registry: Registry) -> None:
    registry.answer("CreateKeyVersion", version(2, Version.STATE_PENDING))
    said = tenon("keys", "rotate", "--no-wait", "--output", "json")
    assert [each["state"] for each in json.loads(said.out)] == ["STATE_PENDING"]
    assert "`tenon keys rewrap` follows" in said.err
    assert [name for name, _ in registry.asked] == ["CreateKeyVersion"]


def test_with_a_key_it_is_an_api_keys_successor(tenon: Tenon, registry: Registry) -> None:
    key = key_service_pb2.Key(name="keys/k2")
    registry.answer("RotateKey", key_service_pb2.RotateKeyResponse(key=key, text="tnk_new"))
    said = tenon("keys", "rotate", "k1", "--tenant", "acme", "--overlap", "12h")
    assert (said.code, said.out) == (0, "tnk_new\n")
    assert registry.request.name == "tenants/acme/keys/k1"
    assert registry.request.overlap.seconds == 12 * 3600


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tenant", "acme"), "--tenant: only with a KEY"),
        (("--overlap", "0m", "--out", "f"), "--overlap, --out: only with a KEY"),
        (("--expires-in", "9d"), "--expires-in: only with a KEY"),
        (("k1", "--no-wait"), "--no-wait: only without a KEY"),
    ],
)
def test_an_option_of_the_other_rotation_is_refused(
    tenon: Tenon, registry: Registry, words: tuple[str, ...], told: str
) -> None:
    said = tenon("keys", "rotate", *words)
    assert said.code == 1 and said.err.startswith(f"tenon: {told}")
    assert registry.asked == []


def test_a_tenant_gets_a_new_key_before_it_is_followed(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ReplaceTenantKey", pb2.TenantKey(uid="dk-2", key_version=2))
    registry.answer("Rewrap", [Progress(done=5, total=5, version=2)])
    said = tenon("keys", "rewrap", "--tenant", "acme", "--replace", "--output", "json")
    (last,) = json.loads(said.out)
    assert (last["done"], last["version"]) == ("5", 2)
    assert "tenants/acme has a new data key, dk-2" in said.err
    assert [(n, r.name) for n, r in registry.asked] == [
        ("ReplaceTenantKey", "tenants/acme"),
        ("Rewrap", "tenants/acme"),
    ]


def test_to_replace_a_key_a_tenant_must_be_said(tenon: Tenon, registry: Registry) -> None:
    said = tenon("keys", "rewrap", "--replace")
    assert said.code == 1 and "say whose with --tenant" in said.err
    assert registry.asked == []


def test_nothing_left_to_do_is_said(tenon: Tenon, registry: Registry) -> None:
    registry.answer("Rewrap", [])
    assert tenon("keys", "rewrap").out == "all is wrapped, 0 anew\n"


def test_a_registry_that_stops_in_between_is_asked_again(tenon: Tenon, registry: Registry) -> None:
    one, two = (Progress(done=done, total=2, version=2) for done in (1, 2))
    registry.answer("Rewrap", [one, Unavailable("going down")], [two])
    said = tenon("keys", "rewrap")
    assert said.code == 0 and said.out == "all is wrapped by version 2, 2 anew\n"
    assert len(registry.requests("Rewrap")) == 2


def test_a_registry_that_refuses_is_not_asked_again(tenon: Tenon, registry: Registry) -> None:
    one = Progress(done=1, total=2, version=2)
    registry.answer("Rewrap", [one, FailedPrecondition("version 2 is gone")])
    said = tenon("keys", "rewrap")
    assert said.code == 1 and said.err.endswith("tenon: version 2 is gone\n")
    assert len(registry.requests("Rewrap")) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal has it; runners of tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command_waits() -> bool:
    """Whether the command waits for what the registry says next."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return Path(frame.f_code.co_filename).name == "threading.py" and frame.f_code.co_name == "wait"


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("words", "again"),
    [((), "`tenon keys rewrap`"), (("--tenant", "acme"), "`tenon keys rewrap --tenant acme`")],
)
def test_whoever_stops_to_follow_hears_that_it_goes_on(
    tenon: Tenon, registry: Registry, words: tuple[str, ...], again: str
) -> None:
    def interrupted() -> Progress:
        until(command_waits)
        os.kill(os.getpid(), signal.SIGINT)
        return Progress(done=2, total=9, version=2)

    registry.answer("Rewrap", [Progress(done=1, total=9, version=2), interrupted])
    said = tenon("keys", "rewrap", *words)
    assert said.code == 130
    assert said.err.endswith(f"it goes on by itself; {again} follows it again\n")


@pytest.mark.parametrize(
    ("word", "method", "state"),
    [
        ("disable", "DisableKeyVersion", Version.STATE_DISABLED),
        ("enable", "EnableKeyVersion", Version.STATE_DECRYPT_ONLY),
    ],
)
def test_a_version_is_disabled_and_enabled(
    tenon: Tenon, registry: Registry, word: str, method: str, state: Version.State.ValueType
) -> None:
    registry.answer(method, version(1, state))
    said = tenon("keys", word, "1")
    name = Version.State.Name(state).removeprefix("STATE_").lower().replace("_", "-")
    assert said.code == 0 and ["1", name] in [row[:2] for row in rows(said)]
    ((asked, request),) = registry.asked
    assert (asked, request.version, bool(request.request_id)) == (method, 1, True)


def test_a_version_is_not_destroyed_before_it_is_meant(tenon: Tenon, registry: Registry) -> None:
    said = tenon("keys", "destroy", "1")
    assert said.code == 1 and registry.asked == []
    assert "version 1" in said.err and "backups" in said.err and "--yes" in said.err


@pytest.mark.parametrize(("provider", "by_hand"), [("file", True), ("aws_kms", False)])
def test_what_is_left_to_do_by_hand_is_said(
    tenon: Tenon, registry: Registry, provider: str, *, by_hand: bool
) -> None:
    gone = version(1, Version.STATE_DESTROYED)
    gone.provider = provider
    registry.answer("DestroyKeyVersion", gone)
    said = tenon("keys", "destroy", "1", "--yes")
    assert said.code == 0 and "destroyed" in said.words
    assert ("delete it there by hand" in said.err) is by_hand
    assert registry.request.version == 1


def test_what_the_registry_refuses_is_a_sentence(tenon: Tenon, registry: Registry) -> None:
    registry.answer("DisableKeyVersion", FailedPrecondition("version 1 still wraps 7 keys"))
    said = tenon("keys", "disable", "1")
    assert (said.code, said.out, said.err) == (1, "", "tenon: version 1 still wraps 7 keys\n")


def test_a_version_is_a_number(tenon: Tenon, registry: Registry) -> None:
    assert tenon("keys", "disable", "first").code == 2
    assert registry.asked == []
