"""A tenant is disabled and enabled, then deleted by command: what its people and senders meet."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from tenon.executor.v1 import execution_service_pb2 as execution
from tenon.executor.v1 import execution_service_pb2_grpc as execution_grpc
from tenon.registry.v1 import integration_service_pb2 as integration
from tenon.registry.v1 import integration_service_pb2_grpc as integration_grpc

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from services.chassis.status import from_rpc_error
from tests.family import ROOT, Family, plain_environment, until

SOON_S: Final = 1.0
NAME: Final = "tenants/acme"
OF_TENANT: Final = ("events", "event_receipts", "executions", "work")


def body(number: int) -> bytes:
    return json.dumps(
        {
            "action": "opened",
            "issue": {"number": number, "locked": False},
            "repository": {"name": "shop", "owner": {"login": "acme"}},
            "sender": {"login": "octocat"},
        }
    ).encode()


def switch(family: Family, *, enabled: bool) -> None:
    """Apply the tenant's document with another `enabled`, until the executor works by it."""
    path = family.example() / "tenant.yaml"
    plain = "\n".join(line for line in path.read_text().splitlines() if "enabled:" not in line)
    path.write_text(f"{plain}\n  enabled: {str(enabled).lower()}\n")
    family.apply_example()


def counts(family: Family) -> dict[str, int]:
    """How much of what a tenant begins there is."""
    return {
        table: family.rows(f"SELECT count(*) FROM executor.{table}")[0][0] for table in OF_TENANT
    }


def integrations(family: Family, key: Secret) -> str:
    """The registry's answer to a reader: `OK`, or why not."""
    with open_sync_channel(family.registry, key=key) as channel:
        stub = integration_grpc.IntegrationServiceStub(channel)
        request = integration.ListIntegrationsRequest(parent=NAME)
        return _answer(lambda: stub.ListIntegrations(request, timeout=20))


def executions(family: Family, key: Secret) -> str:
    """The executor's answer to who wants to see why."""
    with open_sync_channel(family.executor, key=key) as channel:
        stub = execution_grpc.ExecutionServiceStub(channel)
        request = execution.ListExecutionsRequest(parent=NAME)
        return _answer(lambda: stub.ListExecutions(request, timeout=20))


def run(family: Family, key: Secret) -> str:
    """The executor's answer to who wants to run a connector."""
    with open_sync_channel(family.executor, key=key) as channel:
        stub = execution_grpc.ExecutionServiceStub(channel)
        request = execution.RunConnectorRequest(name=f"{NAME}/connectors/triage")
        return _answer(lambda: stub.RunConnector(request, timeout=20))


def _answer(call: Any) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc_error(error).code
    return "OK"


def test_a_disabled_tenant_begins_nothing_until_it_is_enabled(family: Family) -> None:
    family.apply_example("elsewhere")
    tenant_id, other = family.tenant_id("acme"), family.tenant_id("elsewhere")
    viewer, admin, stranger = (
        asyncio.run(family.new_key(role, tenant))
        for role, tenant in (("VIEWER", tenant_id), ("ADMIN", tenant_id), ("VIEWER", other))
    )
    assert family.webhook(body(1))[0] == 202
    assert (integrations(family, viewer), run(family, admin)) == ("OK", "OK")
    until(lambda: counts(family)["work"] == 0, what="the end of the runs")

    switch(family, enabled=False)
    since = time.monotonic()
    before = counts(family)
    unknown = family.webhook(body(2), tenant="nobody")
    assert family.webhook(body(2)) == unknown == (404, {"error": "not found"})
    until(lambda: integrations(family, viewer) == "TENANT_DISABLED", SOON_S, "the reader's refusal")
    until(lambda: run(family, admin) == "TENANT_DISABLED", SOON_S, "the runner's refusal")
    assert time.monotonic() - since < 2 * SOON_S
    assert executions(family, admin) == "OK"
    assert counts(family) == before
    told = {_refusal(family, stranger, name) for name in (NAME, "tenants/nobody")}
    assert len(told) == 1

    switch(family, enabled=True)
    until(lambda: integrations(family, viewer) == "OK", SOON_S, "the reader's return")
    assert family.webhook(body(3))[0] == 202
    until(lambda: counts(family)["work"] == 0, what="the end of the run")
    assert counts(family)["executions"] == before["executions"] + 1


def _refusal(family: Family, key: Secret, name: str) -> tuple[str, str]:
    """What a stranger is told of a tenant, without its name."""
    with open_sync_channel(family.registry, key=key, reason="a test") as channel:
        stub = integration_grpc.IntegrationServiceStub(channel)
        request = integration.ListIntegrationsRequest(parent=name)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListIntegrations(request, timeout=20)
    told = from_rpc_error(refused.value)
    return told.code, told.message.replace(name, "")


def typed(family: Family, words: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a `tenon` command as the owner, and type something."""
    ours = plain_environment() | {
        "TENON_REGISTRY": family.registry,
        "TENON_KEY_FILE": str(family.deployment.owner_key),
        "TENON_REASON": "the contract has ended",
    }
    command = [sys.executable, "-m", "services.command", *arguments]
    return subprocess.run(
        command, env=ours, cwd=ROOT, text=True, capture_output=True, input=words, timeout=90
    )


def test_a_tenant_is_deleted_by_command_and_its_tombstone_shown(family: Family) -> None:
    family.apply_example("leaver")
    assert "leaver" in family.tenon("tenants", "list").stdout
    shown = json.loads(family.tenon("tenants", "show", "leaver", "--output", "json").stdout)
    assert (shown[0]["state"], shown[0]["limits"]["weight"]) == ("STATE_ACTIVE", 1)

    refused = typed(family, "leaver\n", "tenants", "delete", "leaver")
    assert refused.returncode == 1
    assert "is enabled, with 1 active connectors; disable it first, or force it" in refused.stderr
    mistyped = typed(family, "leave\n", "tenants", "delete", "leaver", "--force")
    assert "nothing was deleted" in mistyped.stderr
    assert "active" in family.tenon("tenants", "show", "leaver").stdout

    done = typed(family, "leaver\n", "tenants", "delete", "leaver", "--force")
    assert done.returncode == 0, done.stderr
    assert "draining: what runs may end" in done.stderr
    assert "purged" in done.stderr
    for words in ("the contract has ended", "projected_objects", "data_keys 1"):
        assert words in done.stdout
    assert "leaver" not in family.tenon("tenants", "list").stdout
    assert "the contract has ended" in family.tenon("tenants", "show", "leaver").stdout
    again = family.tenon("apply", Path(family.example("leaver")))
    assert again.returncode != 0
    assert "a slug is never used again" in again.stdout + again.stderr
