"""AuditService: what it lists, counts, exports; who may review; what was refused."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tenon.registry.v1 import audit_service_pb2 as pb2
from tenon.registry.v1.config_service_pb2 import WatchFeedRequest

from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from services.chassis.ids import uuid7
from services.registry.audit.log import Actor
from services.registry.audit.refusals import QUIET_S, Attempt, Refusals
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme
from tests.integration.registry.test_audit_chain import Books

PARENT = "tenants/acme"
STEPS = [{"name": "get", "integration": "github", "method": "GET", "path": "/user"}]
NOTICES = "SELECT subject FROM registry.feed WHERE kind = 'notice'"
Rows = psycopg.AsyncConnection[tuple[object, ...]]


async def events(caller: Caller, parent: str = PARENT, **asked: Any) -> list[pb2.AuditEvent]:
    request = pb2.ListAuditEventsRequest(
        parent=parent, page_size=500, filter=pb2.AuditFilter(**asked)
    )
    return list((await caller.audit.ListAuditEvents(request)).audit_events)


@pytest.fixture
async def admin(owner: Caller, calling: Calls) -> Caller:
    """An admin of a tenant that the owner has made."""
    await owner.apply("acme", acme(), source="git", commit="abc123")
    return await calling("ADMIN", "acme")


async def change(caller: Caller, **spec: Any) -> None:
    await caller.apply("acme", [documents.integration(**spec)], source="git")


async def test_an_event_says_who_from_where_with_what_and_why(admin: Caller) -> None:
    await change(admin, display_name="Ours")
    event = (await events(admin))[0]
    actor = event.actor
    assert (actor.kind, actor.role, actor.address) == ("user", "ADMIN", "127.0.0.1")
    assert actor.session.startswith("key ") and actor.reason == "a test"
    assert actor.method == "/tenon.registry.v1.ConfigService/ApplyConfig"
    assert (event.outcome, event.severity, event.error) == ("done", "info", "")
    assert event.name == f"{PARENT}/auditEvents/{event.name.rpartition('/')[2]}"
    got = await admin.audit.GetAuditEvent(
        pb2.GetAuditEventRequest(parent=PARENT, uid=event.name.rpartition("/")[2])
    )
    assert got == event
    with refused(NotFound):
        await admin.audit.GetAuditEvent(pb2.GetAuditEventRequest(parent=PARENT, uid=str(uuid7())))


async def test_filters_are_each_their_own(admin: Caller, owner: Caller) -> None:
    everything = await events(owner)
    mine, first = (await events(owner, actor="ADMIN of acme")), everything[-1]
    assert mine == []
    await change(admin, display_name="Ours")
    (mine_now,) = await events(owner, actor="ADMIN of acme")
    assert await events(owner, actor=mine_now.actor.uid) == [mine_now]
    assert await events(owner, action="update") == [mine_now]
    assert await events(owner, outcome="refused") == []
    assert await events(owner, min_severity="warning") == []
    assert await events(owner, from_time=mine_now.create_time) == [mine_now]
    assert await events(owner, to_time=first.create_time) == []
    assert len(await events(owner, to_time=mine_now.create_time)) == len(everything)
    assert await events(owner, object="github", action="update") == [mine_now]
    with refused(InvalidArgument):
        await events(owner, min_severity="loud")


@pytest.mark.parametrize(
    ("risk", "wanted"),
    [
        # The four examples.
        (1, [documents.resource("connector", "triage", schedule={"every": "3600s"}, steps=STEPS)]),
        (2, [documents.integration(base_url="http://127.0.0.1:10", config={"owner": "acme"})]),
        (3, [documents.credential("token", token=b"another-secret-canary")]),
    ],
)
async def test_the_examples_are_as_risky_as_they_say(
    admin: Caller, risk: int, wanted: list[Any]
) -> None:
    plan = await admin.plan("acme", wanted, source="git")
    await admin.apply("acme", wanted, source="git")
    assert [c.risk for c in plan.changes] == [risk] == [(await events(admin))[0].risk]


async def test_what_is_critical_is_told_at_once(
    admin: Caller, calling: Calls, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    gone = documents.subscription()
    gone.ClearField("subscription")
    gone.subscription.SetInParent()
    gone.absent = True
    plan = await admin.plan("acme", [gone], source="git")
    await admin.apply("acme", [gone], source="git")
    event = (await events(admin, action="delete"))[0]
    assert event.review_pending and event.risk == plan.changes[0].risk == 4
    told = await (await rows.execute(NOTICES)).fetchall()
    assert told == [(event.name.removeprefix(f"{PARENT}/"),)]
    watch = (await calling("EXECUTOR", kind="service")).config.WatchFeed(WatchFeedRequest())
    async for answer in watch:
        if answer.entry.kind == "notice":
            assert answer.entry.subject == told[0][0]
            break
    watch.cancel()
    assert any(one.message.startswith("critical: delete") for one in caplog.records)


async def sign(caller: Caller, event: pb2.AuditEvent, note: str = "I looked") -> pb2.AuditEvent:
    uid = event.name.rpartition("/")[2]
    return await caller.audit.ReviewAuditEvent(
        pb2.ReviewAuditEventRequest(parent=PARENT, uid=uid, note=note)
    )


async def test_risky_events_wait_for_a_person_who_did_not_do_it(
    admin: Caller, owner: Caller, calling: Calls
) -> None:
    waiting = await events(admin, pending=True)
    assert waiting and all(one.risk >= 3 and one.review_pending for one in waiting)
    one = waiting[0]
    with refused(PermissionDenied, "OWN_EVENT"):
        await sign(owner, one)
    machine = await calling("ADMIN", "acme", kind="service")
    with refused(PermissionDenied, "NOT_A_PERSON"):
        await sign(machine, one)
    with refused(PermissionDenied):
        await sign(await calling("MANAGER", "acme"), one)
    with refused(InvalidArgument):
        await sign(admin, one, note=" ")
    signed = await sign(admin, one)
    assert (signed.review.reviewer, signed.review.note) == ("ADMIN of acme", "I looked")
    assert not signed.review_pending
    with refused(FailedPrecondition, "ALREADY_REVIEWED"):
        await sign(await calling("ADMIN", "acme"), one)
    assert await events(admin, pending=True) == waiting[1:]
    review = (await events(admin))[0]
    assert (review.action, review.kind, review.object) == (
        "review",
        "AuditEvent",
        one.name.rpartition("/")[2],
    )
    with refused(FailedPrecondition, "NO_REVIEW_NEEDED"):
        await sign(await calling("ADMIN", "acme"), review)


async def test_the_summary_counts_what_the_list_lists(admin: Caller) -> None:
    request = pb2.SummarizeAuditEventsRequest(parent=PARENT)
    counts = list((await admin.audit.SummarizeAuditEvents(request)).counts)
    listed = await events(admin)
    assert sum(one.count for one in counts) == len(listed)
    created = [
        one for one in listed if (one.kind, one.risk) == ("Integration", counts_risk(counts))
    ]
    (integration,) = [one for one in counts if one.kind == "Integration"]
    assert (integration.count, integration.action) == (len(created), "create")
    assert integration.day == listed[0].create_time.ToDatetime().strftime("%Y-%m-%d")


def counts_risk(counts: list[pb2.AuditCount]) -> int:
    return next(one.risk for one in counts if one.kind == "Integration")


async def test_the_export_is_every_event_a_line(admin: Caller) -> None:
    lines = b""
    async for part in admin.audit.ExportAuditEvents(pb2.ExportAuditEventsRequest(parent=PARENT)):
        lines += part.lines
    exported = [json.loads(line) for line in lines.splitlines()]
    assert [one["name"] for one in exported] == [one.name for one in await events(admin)]


async def test_the_chain_is_verified_over_the_wire(admin: Caller, rows: Rows) -> None:
    async def verdict() -> tuple[bool, list[Any]]:
        faults, last = [], pb2.ChainVerdict()
        async for part in admin.audit.VerifyChain(pb2.VerifyChainRequest(parent=PARENT)):
            faults += [(one.kind, one.seq, one.event) for one in part.faults]
            last = part.verdict
        return last.intact, faults

    assert await verdict() == (True, [])
    event = (await events(admin))[0]
    await rows.execute(
        "UPDATE registry.audit_events SET actor_name = 'Eve' WHERE seq = %s", [event.seq]
    )
    assert await verdict() == (False, [(pb2.ChainFault.KIND_CHANGED, event.seq, event.name)])


async def test_the_platform_s_log_is_its_own(admin: Caller, owner: Caller) -> None:
    assert await events(owner, parent="") == []
    with refused(PermissionDenied):
        await events(admin, parent="")


async def test_a_refused_apply_is_an_event_once_a_minute(admin: Caller) -> None:
    for _ in range(3):
        with refused(InvalidArgument):
            await change(admin, provider="githob")
    (event,) = await events(admin, outcome="refused")
    assert (event.action, event.kind, event.error) == ("apply", "Config", "INVALID_CONFIG")
    assert (event.severity, event.origin.source) == ("warning", "git")
    assert not event.review_pending


async def test_who_was_not_let_in_leaves_no_event(admin: Caller, calling: Calls) -> None:
    stranger = await calling("VIEWER", "acme")
    with refused(PermissionDenied):
        await change(stranger, display_name="Mine")
    assert await events(admin, outcome="refused") == []


async def test_a_refusal_says_how_often_it_came_before(registry: Registry) -> None:
    books, now = Books(registry.database), [0.0]
    refusals = Refusals(registry.database, books.log, lambda: now[0])
    actor = Actor(uuid4(), "user", "Ada", "ADMIN", "", "", "")
    tenant_id = uuid7()

    async def fail(error: Exception, source: str = "git") -> None:
        with pytest.raises(type(error)):
            async with refusals.telling(Attempt(tenant_id, actor, "apply", source, "")):
                raise error

    for _ in range(5):
        await fail(InvalidArgument("no"))
    now[0] = QUIET_S
    await fail(InvalidArgument("no"))
    await fail(RuntimeError("a bug"))
    read = "SELECT outcome, error, repeats FROM registry.audit_events WHERE tenant_id = %s ORDER BY seq"
    async with await psycopg.AsyncConnection.connect(registry.superuser.reveal_text()) as admin:
        found = await (await admin.execute(read, [tenant_id])).fetchall()
    assert found == [
        ("refused", "INVALID_ARGUMENT", 0),
        ("refused", "INVALID_ARGUMENT", 4),
        ("failed", "RuntimeError", 0),
    ]


async def test_a_refusal_that_could_not_be_written_is_told_the_next_time(
    registry: Registry,
) -> None:
    refusals = Refusals(registry.database, Books(registry.database).log)
    tenant_id, who = uuid7(), uuid4()
    for reason in ("\0", "\0", "a test", "a test"):
        actor = Actor(who, "user", "Ada", "ADMIN", "", "", "", reason=reason)
        with pytest.raises(InvalidArgument):
            async with refusals.telling(Attempt(tenant_id, actor, "apply", "git", "")):
                raise InvalidArgument("no")
    read = "SELECT repeats FROM registry.audit_events WHERE tenant_id = %s ORDER BY seq"
    async with await psycopg.AsyncConnection.connect(registry.superuser.reveal_text()) as admin:
        found = await (await admin.execute(read, [tenant_id])).fetchall()
    assert found == [(2,)]


@pytest.mark.parametrize("field", ["commit", "source"])
async def test_a_header_has_no_control_characters(admin: Caller, field: str) -> None:
    with refused(InvalidArgument) as held:
        await admin.apply("acme", [], **{field: "a\0b"})
    assert [each.field for each in held[0].violations] == [f"header.{field}"]


async def test_what_a_service_tells_is_taken_once_and_has_the_log_s_own_id_and_time(
    admin: Caller, calling: Calls
) -> None:
    """Ids say when: one of the past would put an event among those that are forgotten soon."""
    executor = await calling("EXECUTOR", kind="service")
    uid = str(uuid7(int(datetime(2020, 2, 1, tzinfo=UTC).timestamp() * 1000)))
    told = pb2.RecordedEvent(uid=uid, action="pause", kind="Lane", object="late")
    told.create_time.FromJsonString("2020-02-01T00:00:00Z")
    told.actor.uid = str(uuid7())
    for taken in (1, 0):
        request = pb2.RecordAuditEventsRequest(parent=PARENT, events=[told, told])
        assert (await executor.audit.RecordAuditEvents(request)).taken == taken
    (event,) = await events(admin, object="late")
    assert not event.name.endswith(uid)
    assert event.create_time.ToDatetime(UTC) > datetime.now(UTC) - timedelta(minutes=1)
    (field,) = event.fields
    assert (field.path, field.after) == ("create_time", '"2020-02-01T00:00:00+00:00"')


async def test_of_a_recovery_the_log_keeps_how_many_went_again_and_since_when(
    admin: Caller, calling: Calls
) -> None:
    executor = await calling("EXECUTOR", kind="service")
    told = pb2.RecordedEvent(uid=str(uuid7()), action="recover", kind="Delivery", object="ledger")
    told.create_time.GetCurrentTime()
    told.actor.uid = str(uuid7())
    told.fields.add(path="count", after="500")
    told.fields.add(path="since", after='"2026-01-31T12:00:00Z"')
    request = pb2.RecordAuditEventsRequest(parent=PARENT, events=[told])
    await executor.audit.RecordAuditEvents(request)
    (event,) = await events(admin, object="ledger")
    kept = {field.path: field.after for field in event.fields}
    assert (kept["count"], kept["since"]) == ("500", '"2026-01-31T12:00:00Z"')
