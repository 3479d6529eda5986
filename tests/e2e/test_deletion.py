"""What is not wanted any more stops: its webhooks find nobody, and what waited for it ends."""

import json

import pytest
from tenon.executor.v1 import lane_service_pb2, lane_service_pb2_grpc

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from tests.family import Family, until

CALL_S = 20.0
OPENED = {
    "action": "opened",
    "issue": {"number": 7, "locked": False},
    "repository": {"name": "shop", "owner": {"login": "acme"}},
    "sender": {"login": "octocat"},
}
ENDED = (
    "SELECT state, failure_reason FROM executor.executions"
    " WHERE trigger_id = %s::uuid AND ended_at IS NOT NULL"
)


def pause(family: Family, connector: str) -> None:
    """Hold back what the connector's lane would run."""
    key = Secret(family.deployment.owner_key.read_text())
    with open_sync_channel(family.executor, key=key, reason="a test") as channel:
        stub = lane_service_pb2_grpc.LaneServiceStub(channel)
        asked = lane_service_pb2.ListLanesRequest(parent="tenants/acme")
        lanes = stub.ListLanes(asked, timeout=CALL_S).lanes
        (name,) = (lane.name for lane in lanes if lane.owner.endswith(connector))
        stub.PauseLane(
            lane_service_pb2.PauseLaneRequest(name=name, reason="a test"), timeout=CALL_S
        )


def deleted(family: Family, *words: str) -> None:
    done = family.tenon("delete", *words, "--tenant", "acme", "--force")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("family")
def test_what_is_deleted_stops_and_what_waited_for_it_ends(family: Family) -> None:
    body = json.dumps(OPENED).encode()
    pause(family, "triage")
    status, answer = family.webhook(body)
    assert status == 202

    refused = family.tenon("delete", "Connector", "triage", "--tenant", "acme", "--force")
    assert refused.returncode == 1
    assert "Subscription" in refused.stderr and "refers to it (spec.connector)" in refused.stderr

    for one in family.rows("SELECT name FROM registry.subscriptions ORDER BY name"):
        deleted(family, "Subscription", *one)
    deleted(family, "Connector", "triage")
    deleted(family, "WebhookEndpoint", "github-events")

    assert until(lambda: family.rows(ENDED, answer["event"])) == [("failed", "CONNECTOR_GONE")]
    assert until(lambda: family.webhook(body)[0] == 404, what="404")
    assert not family.rows("SELECT FROM registry.webhook_endpoints")

    # A deleted credential is gone for good, sealed versions and all.
    before = family.rows("SELECT count(*) FROM registry.credential_versions")
    deleted(family, "Credential", "github-webhook")
    assert family.rows("SELECT count(*) FROM registry.credential_versions") < before
