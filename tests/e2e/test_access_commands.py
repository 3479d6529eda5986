"""`whoami`, `keys`, `principals`, `staff` and `bootstrap`, as people type them at a real family."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.family import Family, plain_environment, tenon, until


def said(family: Family, *arguments: object, key_file: Path | None = None) -> Any:
    """What a command says as JSON."""
    as_whom = ("--key-file", key_file) if key_file else ()
    done = family.tenon(*arguments, "--output", "json", *as_whom)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def refused(family: Family, *arguments: object) -> str:
    """The one line in which a command is refused."""
    done = family.tenon(*arguments)
    assert done.returncode == 1 and done.stdout == "", done.stdout
    assert done.stderr.startswith("tenon: ") and "Traceback" not in done.stderr
    return done.stderr


def bootstrap(family: Family, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`tenon bootstrap` with the registry's own settings."""
    settings = family.deployment.environment("registry")
    return tenon(("bootstrap", *arguments), plain_environment() | settings)


@pytest.fixture(scope="module")
def billing(family: Family) -> str:
    """The uid of a service of acme."""
    (made,) = said(family, "principals", "create", "service", "billing", "--tenant", "acme")
    return str(made["uid"])


def test_the_first_owner_is_of_the_staff_and_made_once(family: Family) -> None:
    (who,) = said(family, "whoami")
    assert who["staff_role"] == "owner" and who["session"].startswith("key ")
    assert "owner of the staff" in " ".join(family.tenon("whoami").stdout.split())
    assert [one["role"] for one in said(family, "staff", "list")] == ["owner"]
    told = "SELECT actor_name, kind FROM registry.platform_audit_events ORDER BY seq"
    assert family.rows(told)[:2] == [("tenon bootstrap", "Staff"), ("tenon bootstrap", "Principal")]
    done = bootstrap(family, "--key-file", family.folder / "second")
    assert done.returncode == 1 and "there is an owner" in done.stderr
    assert not (family.folder / "second").exists()


def test_a_service_gets_an_identity_and_no_key(family: Family) -> None:
    identity = ("--issuer", "mtls", "--subject", "spiffe://tenon.example/executor")
    before = family.rows("SELECT count(*) FROM registry.api_keys")
    for _ in range(2):
        done = bootstrap(family, "--service", "executor", *identity)
        assert done.returncode == 0, done.stderr
    query = """
        SELECT kind, role FROM registry.principals JOIN registry.platform_grants
        USING (principal_id) WHERE subject = 'spiffe://tenon.example/executor'"""
    assert family.rows(query) == [("service", "EXECUTOR")]
    assert family.rows("SELECT count(*) FROM registry.api_keys") == before
    told = "SELECT count(*) FROM registry.platform_audit_events WHERE object = 'executor'"
    # By `up` with a key, and now: the second time changed nothing.
    assert family.rows(told) == [(2,)]
    for wrong in (("--issuer", "mtls"), (), (*identity, "--key-file", "/nowhere")):
        done = bootstrap(family, *wrong)
        assert done.returncode == 1 and "Traceback" not in done.stderr


def test_a_key_lives_from_its_text_to_its_end(family: Family, billing: str) -> None:
    out = family.folder / "billing.key"
    acme = ("--tenant", "acme")
    create = ("keys", "create", *acme, billing, "ledger", "--scope", "*", "--expires-in", "90d")
    (made,) = said(family, *create, "--out", out)
    assert out.stat().st_mode & 0o777 == 0o600
    text, key_id = out.read_text().strip(), made["name"].rpartition("/")[2]
    assert text.startswith(f"tnk_local_{key_id}_") and text not in json.dumps(made)
    assert "File exists" in refused(family, *create, "--out", out)
    (who,) = said(family, "whoami", key_file=out)
    assert who["session"] == f"key {key_id}"
    done = family.tenon("keys", "rotate", *acme, key_id, "--overlap", "1h")
    assert done.stdout.startswith("tnk_local_") and "never told again" in done.stderr
    states = [one["state"] for one in said(family, "keys", "list", *acme)]
    assert states == ["STATE_LIVE", "STATE_LIVE"]
    assert "two keys" in refused(family, "keys", "rotate", *acme, key_id)
    (revoked,) = said(family, "keys", "revoke", *acme, key_id, "--why", "a test")
    assert revoked["state"] == "STATE_REVOKED" and revoked["revoke_reason"] == "a test"
    until(lambda: family.tenon("whoami", "--key-file", out).returncode == 1, 5)


def test_what_a_key_was_used_for_is_seen_from_both_services(family: Family, billing: str) -> None:
    out = family.folder / "busy.key"
    acme = ("--tenant", "acme")
    (made,) = said(family, "keys", "create", *acme, billing, "busy", "--scope", "*", "--out", out)
    key_id = made["name"].rpartition("/")[2]
    for _ in range(3):
        said(family, "whoami", key_file=out)
    # It has no role in acme: what is refused is counted, too.
    assert family.tenon("lanes", "acme", "--key-file", out).returncode == 1

    def counted() -> dict[str, int]:
        hour = said(family, "keys", "usage", *acme, key_id)[0]
        return {
            one["name"].rpartition("/")[2]: int(one["count"]) for one in hour.get("by_method", ())
        }

    until(lambda: counted() == {"WhoAmI": 3, "ListLanes": 1}, 20, "the count of every call")
    assert "WhoAmI 3" in family.tenon("keys", "usage", *acme, key_id).stdout
    (shown,) = [one for one in said(family, "keys", "list", *acme) if one["name"] == made["name"]]
    assert "last_use_time" in shown


def test_staff_are_set_and_removed(family: Family) -> None:
    (alice,) = said(family, "principals", "create", "user", "alice", "--email", "a@example.com")
    uid = alice["uid"]
    (made,) = said(family, "staff", "set", uid, "developer", "--permission", "keys.read")
    assert made["permissions"] == ["keys.read"]
    assert family.tenon("staff", "remove", uid).returncode == 0
    assert [one["role"] for one in said(family, "staff", "list")] == ["owner"]
    (boss,) = said(family, "staff", "list")
    assert "last owner" in refused(family, "staff", "remove", boss["principal"].rpartition("/")[2])
    (disabled,) = said(family, "principals", "disable", uid)
    assert "disable_time" in disabled
    assert " no" in family.tenon("principals", "list", "--kind", "user").stdout
