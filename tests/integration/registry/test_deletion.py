"""Objects that are not wanted any more: gone whole, told whole, and never under others' feet."""

import json
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tenon.options.v1 import rule_pb2
from tenon.registry.v1 import audit_service_pb2 as audit_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2

from services.chassis import errors
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import (
    CANARY,
    TOKEN,
    acme,
    connector,
    credential,
    integration,
    resource,
)

Rows = psycopg.AsyncConnection[tuple[object, ...]]
DELETE = config_pb2.Change.ACTION_DELETE


async def delete(
    caller: Caller, name: str, tenant: str = "acme", **said: object
) -> config_pb2.ApplyConfigResponse:
    request = config_pb2.DeleteObjectRequest(name=f"tenants/{tenant}/{name}")
    for field, value in {"force": True, **said}.items():
        setattr(request, field, value)
    return await caller.config.DeleteObject(request, timeout=20)


async def count(rows: Rows, table: str) -> int:
    (found,) = await (await rows.execute(f"SELECT count(*) FROM registry.{table}")).fetchall()
    return int(str(found[0]))


@pytest.fixture
async def tenant(owner: Caller) -> None:
    await owner.apply("acme", acme())


@pytest.mark.usefixtures("tenant")
async def test_all_of_a_tenant_goes_object_by_object(owner: Caller, rows: Rows) -> None:
    names = (
        "subscriptions/opened",
        "webhookEndpoints/events",
        "connectors/triage",
        "integrations/github",
        "credentials/token",
        "credentials/hook",
    )
    for number, name in enumerate(names, start=2):
        done = await delete(owner, name)
        assert done.revision == number
        (change,) = done.plan.changes
        assert (change.action, change.risk) == (DELETE, rule_pb2.RISK_CRITICAL)
    assert not await owner.snapshot("acme")
    for table in ("credentials", "credential_versions", "integrations", "connectors"):
        assert await count(rows, table) == 0, table
    owned = await (await rows.execute("SELECT kind FROM registry.config_ownership")).fetchall()
    assert owned == [("Tenant",)]
    listed = await owner.config.ListRevisions(
        config_pb2.ListRevisionsRequest(parent="tenants/acme")
    )
    assert [one.deleted for one in listed.revisions] == [1, 1, 1, 1, 1, 1, 0]
    # The name is free again, and nothing of the old one is left in the new.
    await owner.apply("acme", [credential("token", token=TOKEN)])


@pytest.mark.usefixtures("tenant")
async def test_what_others_refer_to_stays_and_they_are_named(owner: Caller) -> None:
    for name, by in (
        ("credentials/token", ["Integration github refers to it (spec.credential)"]),
        (
            "integrations/github",
            [
                "Connector triage refers to it (spec.steps[0].integration)",
                "WebhookEndpoint events refers to it (spec.integration)",
            ],
        ),
        ("connectors/triage", ["Subscription opened refers to it (spec.connector)"]),
    ):
        with refused(errors.FailedPrecondition, "IN_USE") as held:
            await delete(owner, name)
        assert [one.description for one in held[0].violations] == by
    await owner.apply(
        "acme",
        [
            resource("role", "support", permissions=["tenants.read"]),
            resource("role_binding", "ada", role="support", subject={"kind": "user", "name": "a"}),
        ],
    )
    with refused(errors.FailedPrecondition, "IN_USE") as held:
        await delete(owner, "roles/support")
    assert held[0].violations[0].description == "RoleBinding ada refers to it (spec.role)"


@pytest.mark.usefixtures("tenant")
async def test_what_another_source_has_set_goes_by_force_only(owner: Caller, rows: Rows) -> None:
    with refused(errors.FailedPrecondition, "OWNED_BY_ANOTHER") as held:
        await delete(owner, "subscriptions/opened", force=False)
    (violation,) = held[0].violations
    assert violation.field == "Subscription/opened#"
    assert violation.description.startswith("source cli has set it")
    assert await count(rows, "subscriptions") == 1
    await owner.apply("acme", [connector("nightly")], source="rpc")
    assert (await delete(owner, "connectors/nightly", force=False)).revision == 3


@pytest.mark.usefixtures("tenant")
async def test_a_deletion_is_told_with_what_was_there(owner: Caller) -> None:
    await owner.apply("acme", [credential("spare", token=TOKEN, description="of last year")])
    await delete(owner, "credentials/spare")
    found = await owner.audit.ListAuditEvents(
        audit_pb2.ListAuditEventsRequest(parent="tenants/acme", page_size=1)
    )
    (event,) = found.audit_events
    assert (event.action, event.kind, event.object) == ("delete", "Credential", "spare")
    assert event.risk == rule_pb2.RISK_CRITICAL and event.origin.source == "rpc"
    assert event.object_uid
    told = {field.path: (field.before, field.after) for field in event.fields}
    assert told["spec.type"] == ('"bearer"', "")
    assert told["spec.values"][1] == ""
    assert CANARY not in str(event)


@pytest.mark.usefixtures("tenant")
async def test_a_plan_of_a_deletion_keeps_nothing_and_binds(owner: Caller, rows: Rows) -> None:
    seen = await delete(owner, "subscriptions/opened", validate_only=True)
    assert (seen.revision, seen.plan.base_revision, len(seen.plan.changes)) == (1, 1, 1)
    fields = {field.path: field.before for field in seen.plan.changes[0].fields}
    assert json.loads(fields["spec.event_types"]) == ["issues.opened"]
    assert await count(rows, "subscriptions") == 1
    bound: dict[str, Any] = {"base_revision": 1, "plan_hash": seen.plan.plan_hash}
    with refused(errors.Aborted, "PLAN_CHANGED"):
        await delete(owner, "subscriptions/opened", **(bound | {"plan_hash": "0" * 64}))
    await owner.apply("acme", [connector(path="/x")])
    with refused(errors.Aborted, "STALE_PLAN"):
        await delete(owner, "subscriptions/opened", **bound)


@pytest.mark.usefixtures("tenant")
async def test_a_request_sent_twice_deletes_once_and_answers_the_same(owner: Caller) -> None:
    request_id = str(uuid4())
    first = await delete(owner, "subscriptions/opened", request_id=request_id)
    assert await delete(owner, "subscriptions/opened", request_id=request_id) == first
    with refused(errors.NotFound):
        await delete(owner, "subscriptions/opened")
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        await delete(owner, "connectors/triage", request_id=request_id)


@pytest.mark.usefixtures("tenant")
@pytest.mark.parametrize(
    "name", ["connector/triage", "connectors", "connectors/a/b", "tenants/acme", "x/triage"]
)
async def test_a_name_that_is_none_is_refused(owner: Caller, name: str) -> None:
    with refused(errors.InvalidArgument):
        await delete(owner, name)


@pytest.mark.usefixtures("tenant")
async def test_a_change_may_let_go_and_delete_in_one(owner: Caller) -> None:
    gone = resource("credential", "token")
    gone.absent = True
    other = credential("other", token=TOKEN)
    done = await owner.apply("acme", [gone, other, integration(credential="other")])
    assert [(each.name, each.action) for each in done.plan.changes] == [
        ("other", config_pb2.Change.ACTION_CREATE),
        ("github", config_pb2.Change.ACTION_UPDATE),
        ("token", DELETE),
    ]
    assert {name for _, name in await owner.snapshot("acme")} >= {"other", "github"}


@pytest.mark.usefixtures("tenant")
async def test_a_tenant_is_not_deleted_as_an_object(owner: Caller) -> None:
    gone = resource("tenant", "acme")
    gone.absent = True
    with refused(errors.InvalidArgument):
        await owner.apply("acme", [gone])


@pytest.mark.usefixtures("tenant")
async def test_only_who_may_change_it_deletes_it(owner: Caller, calling: Calls) -> None:
    await owner.apply("globex", acme("globex"))
    for role, slug in (("MANAGER", "acme"), ("ADMIN", "globex")):
        caller = await calling(role, slug)
        with refused(errors.PermissionDenied):
            await delete(caller, "subscriptions/opened")
    admin = await calling("ADMIN", "acme")
    assert (await delete(admin, "subscriptions/opened")).revision == 2
