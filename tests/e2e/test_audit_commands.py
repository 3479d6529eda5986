"""`tenon audit`, as people type it at a real family."""

import asyncio
import json
from typing import Any

from tests.family import Family


def said(family: Family, *arguments: object, expect: int = 0) -> Any:
    """What a command says as JSON."""
    done = family.tenon("audit", *arguments, "--output", "json")
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads(done.stdout)


def shown(family: Family, *arguments: object, expect: int = 0) -> str:
    done = family.tenon("audit", *arguments)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def test_the_log_is_listed_shown_counted_and_exported(family: Family) -> None:
    events = said(family, "list", "acme")
    assert {one["kind"] for one in events} > {"Tenant", "Connector", "Credential"}
    risky = said(family, "list", "acme", "--min-risk", "high", "--pending")
    assert {one["name"] for one in risky} < {one["name"] for one in events}
    assert said(family, "list", "acme", "--until", "2020-01-01") == []
    event = risky[0]["name"]
    page = shown(family, "show", "acme", event)
    assert "waits: for a review" in page and "because: a test" in page
    counted = said(family, "summary", "acme")
    assert sum(int(one["count"]) for one in counted) == len(events)
    lines = shown(family, "export", "acme").splitlines()
    assert [json.loads(line)["name"] for line in lines] == [one["name"] for one in events]
    assert event.rpartition("/")[2] in shown(family, "list", "acme")


def test_who_did_it_does_not_review_it_and_another_does(family: Family) -> None:
    event = said(family, "list", "acme", "--pending", "--kind", "Credential")[0]["name"]
    own = family.tenon("audit", "review", "acme", event, "--note", "fine")
    assert own.returncode == 1 and "may not review" in own.stderr
    key_file = family.folder / "reviewer.key"

    key_file.write_text(
        asyncio.run(family.new_key("ADMIN", family.tenant_id("acme"))).reveal_text()
    )
    key_file.chmod(0o600)
    page = shown(family, "review", "acme", event, "--note", "fine", "--key-file", key_file)
    assert "review: somebody: fine" in page


def test_verify_says_intact_and_then_names_what_is_not(family: Family) -> None:
    assert shown(family, "verify", "acme").rstrip().endswith("events: intact")
    assert shown(family, "verify").rstrip().endswith("events: intact")
    family.rows(
        "UPDATE registry.audit_events SET actor_name = 'Eve' WHERE tenant_id = %s AND seq = 2"
        " RETURNING 1",
        family.tenant_id("acme"),
    )
    told = shown(family, "verify", "acme", expect=2)
    assert "changed" in told and told.rstrip().endswith("1 faults")
    (answer,) = said(family, "verify", "acme", expect=2)
    assert [(one["kind"], one["seq"]) for one in answer["faults"]] == [("KIND_CHANGED", "2")]
