"""One service dies: the other goes on by what it knows, says plainly what it cannot, and recovers."""

import asyncio
import json
from collections.abc import Iterator
from uuid import uuid4

import grpc
import pytest
from tenon.executor.v1 import execution_service_pb2, execution_service_pb2_grpc

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from tests.family import Family, until

ENDED = "SELECT state FROM executor.executions WHERE trigger_id = %s::uuid AND ended_at IS NOT NULL"
CALL_S = 20.0


@pytest.fixture
def outage(family: Family) -> Iterator[Family]:
    """The family without its registry, which is back afterwards."""
    warm_up(family)
    family.kill("registry")
    yield family
    if not family.alive("registry"):
        family.start("registry")


def warm_up(family: Family) -> None:
    """Let the executor learn its caller, credentials and key."""
    run_ends_well(family)
    assert executions_of(family, owner(family)) is not None


def issue_opened() -> bytes:
    return json.dumps(
        {
            "action": "opened",
            "issue": {"number": 5, "locked": False},
            "repository": {"name": "shop", "owner": {"login": "acme"}},
            "sender": {"login": "octocat"},
        }
    ).encode()


def run_ends_well(family: Family) -> None:
    """A webhook is taken in and its run succeeds."""
    status, answer = family.webhook(issue_opened())
    assert status == 202
    assert until(lambda: family.rows(ENDED, answer["event"])) == [("success",)]


def owner(family: Family) -> Secret:
    return Secret(family.deployment.owner_key.read_text())


def executions_of(family: Family, key: Secret) -> list[str]:
    """The first tenant's executions, asked of the executor."""
    with open_sync_channel(family.executor, key=key, reason="a test") as channel:
        stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        request = execution_service_pb2.ListExecutionsRequest(parent="tenants/acme")
        return [one.name for one in stub.ListExecutions(request, timeout=CALL_S).executions]


def test_executor_goes_on_without_the_registry(outage: Family) -> None:
    run_ends_well(outage)
    assert executions_of(outage, owner(outage))


def test_unknown_callers_hear_unavailable_not_unauthenticated(outage: Family) -> None:
    stranger = asyncio.run(outage.new_key("SUPER_ADMIN"))
    with pytest.raises(grpc.RpcError) as refused:
        executions_of(outage, stranger)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    outage.start("registry")
    until(lambda: _is_served(outage, stranger))


def _is_served(family: Family, key: Secret) -> bool:
    """Whether a caller is let in; else the registry is still out of reach."""
    try:
        return bool(executions_of(family, key))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


def test_an_executor_that_knows_nothing_yet_answers_503_until_the_registry_is_back(
    outage: Family,
) -> None:
    outage.restart("executor")
    delivery = str(uuid4())
    assert outage.webhook(issue_opened(), delivery_id=delivery)[0] == 503
    assert outage.webhook(issue_opened(), secret=Secret("wrong"))[0] == 503
    assert outage.webhook(issue_opened(), tenant="absent")[0] == 404
    assert not outage.rows("SELECT id FROM executor.events WHERE delivery_key = %s", delivery)

    outage.start("registry")
    until(lambda: outage.webhook(issue_opened(), delivery_id=delivery)[0] == 202)
    run_ends_well(outage)


def test_changes_made_after_the_outage_are_taken_up(outage: Family) -> None:
    outage.start("registry")
    folder = outage.example()
    for path in folder.glob("triage.yaml"):
        path.write_text(path.read_text().replace("Triage of new issues", f"Triage {uuid4()}"))
    done = outage.tenon("apply", "--wait", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run_ends_well(outage)


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_commands_say_where_they_found_nobody_and_what_to_try(outage: Family, command: str) -> None:
    done = outage.tenon(command, outage.example())
    assert done.returncode == 1
    said = done.stderr.replace("\n", " ")
    assert outage.registry in said
    assert "make up" in said
    assert "TENON_REGISTRY" in said
    assert "Traceback" not in done.stdout + done.stderr


def test_wanted_state_changes_without_the_executor(family: Family) -> None:
    family.kill("executor")
    tenant = f"later-{uuid4().hex[:8]}"
    done = family.tenon("apply", family.example(tenant))
    assert done.returncode == 0, done.stdout + done.stderr
    assert family.webhook(issue_opened(), tenant=tenant)[0] == 0
    family.start("executor")
    until(lambda: family.webhook(issue_opened(), tenant=tenant)[0] == 202)
