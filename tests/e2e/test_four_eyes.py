"""Four eyes through the real command: planned, submitted, looked at, approved, rejected."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.family import Family, until

TENANT = "apiVersion: tenon/v1\nkind: Tenant\nmetadata: {name: acme}\nspec: {}\n"
POLICY = """\
apiVersion: tenon/v1
kind: ReviewPolicy
metadata: {name: four-eyes, tenant: acme}
spec: {min_risk: MEDIUM, expires: 3600s}
"""
CHANGE = """\
apiVersion: tenon/v1
kind: Integration
metadata: {name: extra, tenant: acme}
spec: {provider: http, base_url: "https://PLACE.example"}
"""


@pytest.fixture(scope="module")
def other(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody else who administers the tenant."""
    path = tmp_path_factory.mktemp("keys") / "other.key"
    key = asyncio.run(family.new_key("ADMIN", family.tenant_id("acme")))
    path.write_text(key.reveal_text())
    return {"TENON_KEY_FILE": str(path)}


@pytest.fixture(scope="module")
def guarded(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The example, under a policy."""
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(POLICY)
    done = family.tenon("apply", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return family


def as_json(done: "subprocess.CompletedProcess[str]") -> Any:
    return json.loads(done.stdout)


def test_a_change_is_submitted_looked_at_and_approved(
    guarded: Family, other: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "change.yaml"
    path.write_text(CHANGE.replace("PLACE", "first"))
    planned = guarded.tenon("plan", path)
    assert planned.returncode == 3
    assert "needs 1 approval of others before it takes effect (policy four-eyes)" in planned.stdout
    applied = guarded.tenon("apply", "--wait", path)
    assert applied.returncode == 3, applied.stdout + applied.stderr
    told = next(line for line in applied.stdout.splitlines() if "tenon approve" in line)
    name = told.rpartition(" ")[2]
    assert f"not applied; it waits as {name}" in applied.stdout

    listed = guarded.tenon("revisions", "list", "acme", "--output", "json", environment=other)
    first, *rest = as_json(listed)
    assert (first["name"], first["state"]) == (name, "STATE_PENDING")
    assert all("/revisions/" in one["name"] for one in rest)
    shown = guarded.tenon("revisions", "show", name, environment=other)
    assert "+ create Integration extra" in shown.stdout and "https://first.example" in shown.stdout

    own = guarded.tenon("approve", name)
    assert own.returncode == 1 and "somebody else must" in own.stderr
    done = guarded.tenon("approve", name, "--note", "seen", environment=other)
    assert done.returncode == 0 and f"{name}: approved and applied: revision 3" in done.stdout
    assert guarded.tenon("plan", path).returncode == 0
    shown = guarded.tenon("revisions", "show", "tenants/acme/revisions/3")
    assert "applied" in shown.stdout


def test_a_change_is_rejected(guarded: Family, other: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "change.yaml"
    path.write_text(CHANGE.replace("PLACE", "second"))
    applied = guarded.tenon("apply", "--output", "json", path)
    assert applied.returncode == 3
    (tenant,) = as_json(applied)["tenants"]
    assert tenant["exit"] == 3 and "revision" not in tenant
    assert tenant["needs_approval"]["policies"] == ["four-eyes"]
    name = tenant["pending"]["name"]
    assert guarded.tenon("reject", name, environment=other).returncode == 2
    done = guarded.tenon("reject", name, "--note", "not today", environment=other)
    assert done.returncode == 0 and f"{name}: rejected" in done.stdout
    shown = guarded.tenon("revisions", "show", name)
    assert "Integration extra: " in shown.stdout and "spec.base_url" in shown.stdout
    assert "second.example" not in shown.stdout and "not today" in shown.stdout
    late = guarded.tenon("approve", name, environment=other)
    assert late.returncode == 1 and "it is rejected" in late.stderr
    listed = guarded.tenon("revisions", "list", "acme", "--pending", environment=other)
    assert "rejected" in listed.stdout


def test_the_policy_itself_is_not_deleted_alone(guarded: Family, other: dict[str, str]) -> None:
    arguments = ("delete", "ReviewPolicy", "four-eyes", "--tenant", "acme", "--force")
    planned = guarded.tenon(*arguments, "--plan")
    assert planned.returncode == 3 and "needs 1 approval of others" in planned.stdout
    deleted = guarded.tenon(*arguments, "--output", "json")
    assert deleted.returncode == 3
    (tenant,) = as_json(deleted)["tenants"]
    done = guarded.tenon("approve", tenant["pending"]["name"], environment=other)
    assert done.returncode == 0 and "approved and applied" in done.stdout


def test_what_nobody_approves_in_time_ends_by_itself(family: Family, tmp_path: Path) -> None:
    tenant_of_its_own, change = tmp_path / "tenant.yaml", tmp_path / "change.yaml"
    made = f"{TENANT}---\n{POLICY.replace('3600s', '1s')}".replace("acme", "hasty")
    tenant_of_its_own.write_text(made)
    change.write_text(CHANGE.replace("acme", "hasty"))
    assert family.tenon("apply", tenant_of_its_own).returncode == 0
    applied = family.tenon("apply", "--output", "json", change)
    (tenant,) = as_json(applied)["tenants"]
    pending_id = tenant["pending"]["name"].rpartition("/")[2]
    query = (
        "SELECT 1 FROM registry.pending_revisions"
        " WHERE pending_id = %s AND state = 'expired' AND wrapped_key IS NULL"
    )
    until(lambda: family.rows(query, pending_id), what="its end")
