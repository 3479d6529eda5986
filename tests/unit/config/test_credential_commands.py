"""`credentials`: how they are looked at and changed, and where their values never appear."""

import io
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis.errors import InvalidArgument, PermissionDenied, TenonError, Unavailable
from tests.unit.config.conftest import KEY, Registry, Said, Tenon, rows

Credential = pb2.Credential
CANARY = "canary-value-1"
MADE = Timestamp()
MADE.FromDatetime(datetime(2026, 5, 1, 8, 30, tzinfo=UTC))
NAME = "tenants/acme/credentials/github-token"


def credential() -> Credential:
    """One with everything that can be known."""
    one = Credential(
        name=NAME,
        uid="c-1",
        type="oauth2",
        description="for issues",
        version=3,
        fingerprints={"access_token": "f00d"},
        status=Credential.STATUS_RECONNECT,
        status_reason="the provider gives no tokens",
        granted_scopes=["repo", "user"],
        findings=[pb2.FINDING_RECONNECT, pb2.FINDING_OVER_SCOPED],
        rate_limit={"remaining": "12"},
        revoked_by="grace",
        revoke_reason="it leaked",
        created_by="ada",
    )
    for field in (
        *("create_time", "rotate_time", "validate_time", "use_time", "expire_time"),
        *("refresh_expire_time", "rotation_due_time", "revoke_time"),
    ):
        getattr(one, field).CopyFrom(MADE)
    day = one.usage.add(uses=40, errors=2)
    day.period.seconds = 86_400
    one.usage.add(uses=900).period.seconds = 30 * 86_400
    one.spec.type, one.spec.provider, one.spec.notes = "oauth2", "github", "ask first"
    one.spec.allowed_ranges.append("198.51.100.0/24")
    one.spec.rotation.every.seconds = 86_400
    one.spec.values["refresh_token"].fingerprint = "beef"
    one.versions.add(version=3, origin="refresh", created_by="executor", key_version=2)
    one.versions.add(version=2, origin="oauth", create_time=MADE, shred_time=MADE)
    return one


def test_the_list_says_how_each_stands(tenon: Tenon, registry: Registry) -> None:
    plain = Credential(name="tenants/acme/credentials/hook", type="webhook_secret")
    registry.answer(
        "ListCredentials",
        pb2.ListCredentialsResponse(credentials=[credential()], next_page_token="more"),
        pb2.ListCredentialsResponse(credentials=[plain]),
    )
    said = tenon("credentials", "list", "acme", "--finding", "over-scoped")
    at = "2026-05-01 08:30"
    line = f"github-token oauth2 3 reconnect {at} {at} 40, 2 failed reconnect, over-scoped"
    assert line in said.words and ["hook", "webhook_secret", "unspecified"] in rows(said)
    first, second = registry.requests("ListCredentials")
    assert (first.parent, first.finding) == ("tenants/acme", pb2.FINDING_OVER_SCOPED)
    assert (second.page_token, second.finding) == ("more", pb2.FINDING_OVER_SCOPED)


def test_every_finding_of_the_contract_can_be_asked_for(tenon: Tenon, registry: Registry) -> None:
    words = ("unused", "expiring", "never-validated", "over-scoped", "rotation-due")
    registry.answer("ListCredentials", pb2.ListCredentialsResponse())
    for word in (*words, "reconnect", "invalid", "expired"):
        assert tenon("credentials", "list", "acme", "--finding", word).code == 0
    asked = [request.finding for request in registry.requests("ListCredentials")]
    assert asked == [number for number in pb2.Finding.values() if number]
    assert tenon("credentials", "list", "acme", "--finding", "odd").code == 2


def test_one_is_shown_with_all_that_is_known(tenon: Tenon, registry: Registry) -> None:
    registry.answer("GetCredential", credential())
    said = tenon("credentials", "show", "acme", "github-token")
    at = "2026-05-01 08:30"
    for fact in (
        f"credential {NAME}",
        "status reconnect: the provider gives no tokens",
        "findings reconnect, over-scoped",
        "parts access_token f00d",
        f"made {at} by ada",
        f"values changed {at}",
        f"last let in {at}",
        "in the last 1 day 40, 2 failed",
        "in the last 30 days 900",
        f"refreshed until {at}",
        f"rotation due {at}",
        "granted scopes repo, user",
        "rate limit remaining 12",
        f"taken back {at} by grace: it leaked",
        "values (wanted) refresh_token beef",
        "provider (wanted) github",
        "allowed ranges (wanted) 198.51.100.0/24",
        "rotation (wanted) every 86400s",
        "notes (wanted) ask first",
        "3 refresh executor 2",
        f"2 oauth {at} {at}",
    ):
        assert fact in said.words, fact
    assert registry.request.name == NAME


def test_what_others_wrote_is_no_markup(tenon: Tenon, registry: Registry) -> None:
    one = Credential(name=NAME, description="[/docs] \x1b[31m:smile:")
    registry.answer("GetCredential", one)
    said = tenon("credentials", "show", "acme", "github-token")
    assert said.code == 0 and "description [/docs] �[31m:smile:" in said.words


def test_json_has_the_whole_answer(tenon: Tenon, registry: Registry) -> None:
    registry.answer("GetCredential", credential())
    (found,) = json.loads(
        tenon("credentials", "show", "acme", "github-token", "--output", "json").out
    )
    assert found["findings"] == ["FINDING_RECONNECT", "FINDING_OVER_SCOPED"]
    assert [each["version"] for each in found["versions"]] == [3, 2]


def rotated(secret: bytes = b"") -> pb2.RotateCredentialResponse:
    return pb2.RotateCredentialResponse(credential=credential(), secret=secret)


def rotate(tenon: Tenon, *words: str | Path) -> Said:
    return tenon("credentials", "rotate", "acme", "github-token", *words)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What will be read from standard input."""
    data = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
    return data


def test_new_values_are_taken_from_where_they_stand(
    tenon: Tenon,
    registry: Registry,
    tmp_path: Path,
    stdin: io.BytesIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.answer("RotateCredential", rotated())
    monkeypatch.setenv("NEW_TOKEN", f"{CANARY}-a")
    (tmp_path / "b").write_text(f"{CANARY}-b\r\n")
    stdin.write(f"{CANARY}-c\n\r\n".encode())
    stdin.seek(0)
    values = ("token=env:NEW_TOKEN", f"user=file:{tmp_path / 'b'}", "client_secret=-")
    words = [word for value in values for word in ("--value", value)]
    said = rotate(tenon, *words, "--overlap", "12h")
    assert said.code == 0 and "github-token" in said.out
    assert CANARY not in said.out + said.err
    sent = {part: value.plain.decode() for part, value in registry.request.values.items()}
    # One line break at the end of a file or of standard input is no part of a secret.
    assert sent == {
        "token": f"{CANARY}-a",
        "user": f"{CANARY}-b",
        "client_secret": f"{CANARY}-c\n",
    }
    assert registry.request.overlap.seconds == 12 * 3600 and registry.request.request_id


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("t=env:NOT_SET_ANYWHERE",), "--value t: the environment variable named here is not set"),
        (("t=env:EMPTY",), "--value t: the secret named here is empty"),
        (("t=file:/nowhere/canary",), "--value t: the file named here: cannot be read"),
        (("t=-",), "--value t: standard input is empty"),
        (("t=-", "u=-"), "standard input holds the value of one part"),
        (("t=env:EMPTY", "t=-"), "each part may be given once"),
    ],
)
def test_a_value_that_is_not_there_stops_it(
    tenon: Tenon,
    registry: Registry,
    stdin: io.BytesIO,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setenv("EMPTY", "")
    said = rotate(tenon, *(each for word in words for each in ("--value", word)))
    assert said.code == 1 and told in said.err and "canary" not in said.err
    assert registry.asked == []


@pytest.mark.parametrize(
    "word", [f"token={CANARY}", CANARY, f"token=plain:{CANARY}", f"{CANARY}=-"]
)
def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    tenon: Tenon, registry: Registry, word: str
) -> None:
    word = word.replace("canary-value-1=", "CANARY-value-1=")
    said = rotate(tenon, "--value", word)
    assert said.code == 2 and "a value itself is refused" in said.err
    assert CANARY not in (said.out + said.err).lower()
    assert registry.asked == []


def test_standard_input_is_not_read_without_end(
    tenon: Tenon, registry: Registry, stdin: io.BytesIO
) -> None:
    stdin.write(b"x" * (64 * 2**10 + 1))
    stdin.seek(0)
    said = rotate(tenon, "--value", "t=-")
    assert said.code == 1 and "larger than 64 KiB" in said.err and registry.asked == []


def test_a_terminal_would_show_what_is_typed(
    tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal, os.fdopen(ours):
        monkeypatch.setattr("sys.stdin", terminal)
        said = rotate(tenon, "--value", "t=-")
    assert said.code == 1 and "a terminal would show it" in said.err and registry.asked == []


def test_a_refusal_that_repeats_a_value_is_told_without_it(
    tenon: Tenon, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEW_TOKEN", CANARY)
    registry.answer("RotateCredential", InvalidArgument(f"the part {CANARY} is too short"))
    said = rotate(tenon, "--value", "token=env:NEW_TOKEN")
    assert said.code == 1 and "is too short" in said.err
    assert CANARY not in said.out + said.err


@pytest.mark.parametrize("failure", [Unavailable, PermissionDenied])
def test_a_rotation_that_fails_is_told_as_any_command_that_does(
    tenon: Tenon,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[TenonError],
) -> None:
    monkeypatch.setenv("NEW_TOKEN", CANARY)
    error = failure(f"not with {KEY} at this moment")
    registry.answer("GetCredential", error)
    registry.answer("RotateCredential", error)
    other = tenon("credentials", "show", "acme", "github-token")
    said = rotate(tenon, "--value", "token=env:NEW_TOKEN")
    assert said == other
    assert said.code == 1 and "at this moment" in said.err and KEY not in said.err


def test_a_secret_that_tenon_makes_is_all_of_standard_output(
    tenon: Tenon, registry: Registry
) -> None:
    registry.answer("RotateCredential", rotated(b"whsec_new"))
    said = rotate(tenon)
    assert (said.code, said.out) == (0, "whsec_new\n")
    assert "whsec_new" not in said.err and "version 3" in said.err
    assert not registry.request.values and not registry.request.HasField("overlap")


def test_a_secret_that_tenon_makes_goes_to_a_file_for_its_owner(
    tenon: Tenon, registry: Registry, tmp_path: Path
) -> None:
    registry.answer("RotateCredential", rotated(b"whsec_new"))
    out = tmp_path / "secret"
    said = rotate(tenon, "--out", out)
    assert said.code == 0 and ["github-token", "oauth2", "3"] in [row[:3] for row in rows(said)]
    assert out.read_bytes() == b"whsec_new\n" and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "whsec_new" not in said.out + said.err
    again = rotate(tenon, "--out", out)
    assert again.code == 1 and "File exists" in again.err
    assert len(registry.asked) == 1


def test_no_file_stays_where_no_secret_was_made(
    tenon: Tenon, registry: Registry, tmp_path: Path
) -> None:
    registry.answer("RotateCredential", InvalidArgument("say the values of a token"))
    assert rotate(tenon, "--out", tmp_path / "secret").code == 1
    assert not (tmp_path / "secret").exists()


def test_out_and_values_do_not_go_together(
    tenon: Tenon, registry: Registry, tmp_path: Path
) -> None:
    said = rotate(tenon, "--value", "t=env:HOME", "--out", tmp_path / "secret")
    assert said.code == 1 and "--out is for the secret that Tenon makes" in said.err
    assert registry.asked == []


def test_a_made_secret_is_told_again_to_whoever_may(
    tenon: Tenon, registry: Registry, tmp_path: Path
) -> None:
    registry.answer("RevealCredential", pb2.RevealCredentialResponse(version=3, secret=b"whsec_x"))
    reveal = ("credentials", "reveal", "acme", "github-token")
    said = tenon(*reveal)
    assert (said.code, said.out) == (0, "whsec_x\n")
    assert "whsec_x" not in said.err and "version 3" in said.err
    said = tenon(*reveal, "--out", tmp_path / "secret", "--output", "json")
    assert json.loads(said.out) == [{"version": 3}]
    assert (tmp_path / "secret").read_bytes() == b"whsec_x\n"
    assert {request.name for request in registry.requests("RevealCredential")} == {NAME}


def test_a_refresh_asks_for_newer_tokens_than_there_are(tenon: Tenon, registry: Registry) -> None:
    registry.answer("GetCredential", credential())
    registry.answer("RefreshCredential", credential())
    assert tenon("credentials", "refresh", "acme", "github-token").code == 0
    (request,) = registry.requests("RefreshCredential")
    assert (request.name, request.version) == (NAME, 3)


def test_one_is_taken_back_with_a_reason(tenon: Tenon, registry: Registry) -> None:
    registry.answer("RevokeCredential", credential())
    revoke = ("credentials", "revoke", "acme", "github-token")
    assert tenon(*revoke).code == 2 and registry.asked == []
    assert tenon(*revoke, "--why", "it leaked").code == 0
    assert (registry.request.name, registry.request.reason) == (NAME, "it leaked")
    assert registry.request.request_id


def test_a_versions_key_is_destroyed(tenon: Tenon, registry: Registry) -> None:
    registry.answer("ShredCredentialVersion", credential())
    said = tenon("credentials", "shred", "acme", "github-token", "2")
    assert said.code == 0 and "2 oauth" in said.words
    assert (registry.request.name, registry.request.version) == (NAME, 2)
    assert registry.request.request_id


def test_what_is_no_name_is_refused_before_anybody_is_asked(
    tenon: Tenon, registry: Registry
) -> None:
    said = tenon("credentials", "show", "acme", "tenants/globex/credentials/x")
    assert said.code == 1 and "a name is 1 to 63" in said.err and registry.asked == []


def test_of_a_pair_that_turns_the_public_key_is_told(
    tenon: Tenon, registry: Registry, tmp_path: Path
) -> None:
    answer = rotated()
    answer.credential.public_key = "whpk_PUBLIC"
    registry.answer("RotateCredential", answer)
    said = rotate(tenon)
    assert (said.code, said.out) == (0, "whpk_PUBLIC\n")
    assert "this is the public key of version" in said.err
    assert rotate(tenon, "--out", tmp_path / "new.key").code == 0
    assert (tmp_path / "new.key").read_text().strip() == "whpk_PUBLIC"


def test_a_public_key_is_shown(tenon: Tenon, registry: Registry) -> None:
    one = credential()
    one.public_key = "whpk_NOW"
    one.versions[1].public_key = "whpk_BEFORE"
    registry.answer("GetCredential", one)
    said = tenon("credentials", "show", "acme", "github-token")
    assert "public key whpk_NOW" in said.words and "whpk_BEFORE" in said.words
