"""An apply: one transaction, one answer, one way."""

import asyncio
import logging
from uuid import uuid4

import grpc
import psycopg
import pytest
from tenon.registry.v1 import audit_service_pb2 as audit_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors, failpoints
from services.chassis.failpoints import Arming, Failpoint
from services.registry.wanted import apply
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme

Rows = psycopg.AsyncConnection[tuple[object, ...]]

INSIDE = (apply.BEGUN, apply.HALF_WRITTEN, apply.BEFORE_COMMIT)


async def everything(rows: Rows) -> dict[str, list[str]]:
    """Every row of every table of the registry, as text."""
    tables = await (
        await rows.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'registry' ORDER BY 1"
        )
    ).fetchall()
    return {
        str(name): [
            str(row[0])
            for row in await (
                await rows.execute(f"SELECT t::text FROM registry.{name} t ORDER BY 1")
            ).fetchall()
        ]
        for (name,) in tables
    }


def untold(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Everything but the audit logs, which also tell of what was not done."""
    return {table: of for table, of in found.items() if "audit_" not in table}


def test_every_failpoint_of_an_apply_is_known_here() -> None:
    known = {name for name in failpoints.declared() if name.startswith("apply.")}
    assert known == {point.name for point in (*INSIDE, apply.AFTER_COMMIT)}


async def test_a_second_plan_is_empty(owner: Caller) -> None:
    first = await owner.plan("acme", acme())
    assert [change.kind for change in first.changes] == [
        "Tenant",
        "Credential",
        "Credential",
        "Integration",
        "Connector",
        "WebhookEndpoint",
        "Subscription",
    ]
    applied = await owner.apply("acme", acme(), base_revision=0, plan_hash=first.plan_hash)
    assert (applied.revision, applied.plan) == (1, first)
    second = await owner.plan("acme", acme())
    assert (list(second.changes), second.unchanged, second.base_revision) == ([], 7, 1)
    again = await owner.apply("acme", acme())
    assert again.revision == 1


async def test_a_plan_keeps_nothing(owner: Caller, rows: Rows) -> None:
    await owner.apply("acme", acme()[:3])
    before = await everything(rows)
    await owner.plan("acme", acme())
    await owner.plan("other", [documents.tenant("other")])
    assert await everything(rows) == before


@pytest.mark.parametrize("point", INSIDE, ids=lambda point: str(point.name))
@pytest.mark.parametrize("new", [True, False], ids=["new-tenant", "existing-tenant"])
async def test_an_apply_that_breaks_inside_leaves_nothing_but_the_event_that_tells_it(
    owner: Caller, rows: Rows, monkeypatch: pytest.MonkeyPatch, point: Failpoint, *, new: bool
) -> None:
    if not new:
        await owner.apply("acme", acme()[:2])
    before = await everything(rows)
    with monkeypatch.context() as patch:
        patch.setattr(point, "_arming", Arming("error", None, ""))
        with refused(errors.Internal) as held:
            await owner.apply("acme", acme(), request_id=str(uuid4()))
    assert "quote request" in held[0].message and "failpoint" not in held[0].message
    after = await everything(rows)
    assert untold(after) == untold(before)
    log = "platform_audit_events" if new else "audit_events"
    (told,) = set(after[log]) - set(before[log])
    assert ",failed,error," in told
    assert (await owner.apply("acme", acme())).revision == (1 if new else 2)


async def test_an_apply_that_breaks_after_its_commit_answers_when_asked_again(
    owner: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = str(uuid4())
    with monkeypatch.context() as patch:
        patch.setattr(apply.AFTER_COMMIT, "_arming", Arming("error", None, ""))
        with refused(errors.Internal):
            await owner.apply("acme", acme(), request_id=request_id)
    answer = await owner.apply("acme", acme(), request_id=request_id)
    assert (answer.revision, len(answer.plan.changes)) == (1, 7)


@pytest.mark.parametrize("new", [True, False], ids=["new-tenant", "existing-tenant"])
async def test_one_request_sent_eight_times_at_once_is_applied_once(
    owner: Caller, rows: Rows, *, new: bool
) -> None:
    if not new:
        await owner.apply("acme", acme()[:2])
    request_id = str(uuid4())
    answers = await asyncio.gather(
        *(owner.apply("acme", acme(), request_id=request_id) for _ in range(8))
    )
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert len(answers[0].plan.changes) == (7 if new else 5)
    found = await everything(rows)
    assert len(found["config_revisions"]) == len(found["feed"]) == (1 if new else 2)
    assert len(found["tenants"]) == 1


async def test_a_request_id_is_for_one_request_of_one_caller(
    owner: Caller, calling: Calls, registry: Registry
) -> None:
    request_id = str(uuid4())
    await owner.apply("acme", acme(), request_id=request_id)
    other = [*acme()[:-1], documents.subscription(event_types=["push"])]
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        await owner.apply("acme", other, request_id=request_id)
    # The same words with another secret are another request.
    rotated = [*acme()[:1], documents.credential("token", token=b"another"), *acme()[2:]]
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        await owner.apply("acme", rotated, request_id=request_id)
    somebody = await calling("ADMIN", "acme")
    assert (await somebody.apply("acme", other, request_id=request_id)).revision == 2
    with refused(errors.InvalidArgument):
        await owner.apply("acme", acme(), request_id="17")


async def test_an_answer_is_kept_for_a_day(owner: Caller, rows: Rows) -> None:
    request_id = str(uuid4())
    first = await owner.apply("acme", acme(), request_id=request_id)
    await rows.execute("UPDATE registry.request_answers SET created_at = now() - interval '23 h'")
    assert await owner.apply("acme", acme(), request_id=request_id) == first
    await rows.execute("UPDATE registry.request_answers SET created_at = now() - interval '25 h'")
    second = await owner.apply("acme", acme(), request_id=request_id)
    assert (second.revision, list(second.plan.changes)) == (1, [])
    assert len((await everything(rows))["request_answers"]) == 1


async def test_a_plan_for_another_base_is_stale(owner: Caller, rows: Rows) -> None:
    plan = await owner.plan("acme", acme())
    await owner.apply("acme", acme()[:2])
    before = await everything(rows)
    with refused(errors.Aborted, "STALE_PLAN"):
        await owner.apply("acme", acme(), base_revision=0, plan_hash=plan.plan_hash)
    # What is stale is said before what is wrong.
    with refused(errors.Aborted, "STALE_PLAN"):
        await owner.apply("acme", [documents.integration(provider="no")], base_revision=0)
    assert untold(await everything(rows)) == untold(before)


async def test_only_the_plan_that_was_seen_is_applied(owner: Caller, rows: Rows) -> None:
    await owner.apply("acme", acme()[:2])
    plan = await owner.plan("acme", acme())
    before = await everything(rows)
    changed = [*acme()[:-1], documents.subscription(event_types=["push"])]
    with refused(errors.Aborted, "PLAN_CHANGED"):
        await owner.apply("acme", changed, base_revision=1, plan_hash=plan.plan_hash)
    with refused(errors.Aborted, "PLAN_CHANGED"):
        await owner.apply(
            "acme", acme(), base_revision=1, plan_hash=plan.plan_hash, source="another"
        )
    assert untold(await everything(rows)) == untold(before)
    assert (
        await owner.apply("acme", acme(), base_revision=1, plan_hash=plan.plan_hash)
    ).revision == 2


async def test_of_eight_changes_at_once_for_one_base_one_is_made(owner: Caller) -> None:
    await owner.apply("acme", acme())

    async def change(number: int) -> object:
        document = documents.subscription(event_types=[f"kind.n{number}"])
        try:
            return (await owner.apply("acme", [document], base_revision=1)).revision
        except grpc.aio.AioRpcError as error:
            return error.code()

    outcomes = await asyncio.gather(*(change(number) for number in range(8)))
    assert sorted(outcomes, key=str) == [2, *[grpc.StatusCode.ABORTED] * 7]


async def test_each_change_is_told_in_the_audit_log(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await owner.apply("acme", acme(), source="git", commit="abc123")
    admin = await calling("ADMIN", "acme")
    change = [
        documents.credential("token", token=b"very-secret-canary-rotated"),
        documents.integration(config={"owner": "globex"}, base_url="http://127.0.0.1:9"),
    ]
    await admin.apply("acme", change, source="git", commit="def456")
    request = audit_pb2.ListAuditEventsRequest(parent="tenants/acme")
    events = list((await owner.audit.ListAuditEvents(request)).audit_events)
    assert [(e.action, e.kind, e.revision) for e in events[:2]] == [
        ("update", "Integration", 2),
        ("update", "Credential", 2),
    ]
    assert len(events) == 9
    integration, credential = events[:2]
    assert [(f.path, f.before, f.after) for f in integration.fields] == [
        ("spec.config.owner", '"acme"', '"globex"')
    ]
    assert [f.path for f in credential.fields] == ["spec.values.token"]
    assert credential.fields[0].after.startswith('"fingerprint ')
    assert credential.risk > integration.risk
    assert (credential.actor.kind, credential.actor.role) == ("user", "ADMIN")
    assert (credential.actor.display_name, credential.actor.address) == (
        "ADMIN of acme",
        "127.0.0.1",
    )
    origin = credential.origin
    assert (origin.source, origin.commit, origin.file, origin.line) == (
        "git",
        "def456",
        "token.yaml",
        3,
    )
    revision = (
        await owner.config.ListRevisions(config_pb2.ListRevisionsRequest(parent="tenants/acme"))
    ).revisions[0]
    assert (revision.number, revision.source, revision.commit, revision.updated) == (
        2,
        "git",
        "def456",
        2,
    )
    fed = await (
        await rows.execute("SELECT kind, revision FROM registry.feed ORDER BY 2")
    ).fetchall()
    assert fed == [("revision", 1), ("revision", 2)]


async def test_what_is_named_like_a_secret_is_hidden_in_plans_and_audit(owner: Caller) -> None:
    step: dict[str, object] = {
        "headers": {"X-Api-Key": "k3y-in-clear"},
        "body": {"password": "pa55", "user": "u"},
    }
    await owner.apply("acme", acme())
    plan = await owner.plan("acme", [documents.connector("triage", **step)])
    shown = str(plan)
    assert "k3y-in-clear" not in shown and "pa55" not in shown and '\\"u\\"' in shown
    await owner.apply("acme", [documents.connector("triage", **step)])
    request = audit_pb2.ListAuditEventsRequest(parent="tenants/acme")
    told = str(await owner.audit.ListAuditEvents(request))
    assert "k3y-in-clear" not in told and "pa55" not in told


async def test_a_tenant_is_made_only_by_who_may_make_tenants(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await owner.apply("acme", acme())
    for caller in (await calling("ADMIN", "acme"), await calling("ADMIN")):
        before = await everything(rows)
        for wanted in (acme("other"), [documents.integration(provider="wrong")], []):
            with refused(errors.PermissionDenied):
                await caller.apply("other", wanted)
            with refused(errors.PermissionDenied):
                await caller.plan("other", wanted)
        assert await everything(rows) == before
    with refused(errors.NotFound):
        await owner.apply("other", acme()[1:])
    with refused(errors.NotFound):
        await owner.plan("other", acme()[1:])


async def test_tenants_do_not_touch_each_other(owner: Caller) -> None:
    await owner.apply("acme", acme())
    await owner.apply("globex", acme("globex"))
    changed = documents.integration(config={"owner": "globex"}, base_url="http://127.0.0.1:9")
    await owner.apply("globex", [changed])
    acmes, globexs = await owner.snapshot("acme"), await owner.snapshot("globex")
    owners = [
        found["integration", "github"].resource.integration.config["owner"]
        for found in (acmes, globexs)
    ]
    assert owners == ["acme", "globex"]
    assert not {one.uid for one in acmes.values()} & {one.uid for one in globexs.values()}
    # The same secret does not look the same in two tenants.
    marks = [
        found["credential", "token"].resource.credential.values["token"].fingerprint
        for found in (acmes, globexs)
    ]
    assert marks[0] != marks[1]


def header(tenant: str = "acme") -> config_pb2.ApplyConfigRequest:
    return config_pb2.ApplyConfigRequest(header=config_pb2.ConfigHeader(tenant=tenant))


def chunk(*resources: wanted_pb2.Resource) -> config_pb2.ApplyConfigRequest:
    return config_pb2.ApplyConfigRequest(chunk=config_pb2.ConfigChunk(resources=resources))


async def test_the_header_comes_first_and_once(owner: Caller, rows: Rows) -> None:
    await owner.apply("globex", acme("globex"))
    before = await everything(rows)
    streams = {
        "no header": [chunk(*acme())],
        "late header": [chunk(*acme()), header()],
        "two headers": [header(), chunk(*acme()), header()],
        "another tenant later": [header("acme"), header("globex"), chunk(*acme("globex"))],
        "an empty message": [header(), config_pb2.ApplyConfigRequest(), header()],
        "nothing at all": [],
        "no tenant": [header(""), chunk(*acme())],
    }
    for name, stream in streams.items():
        with refused(errors.InvalidArgument) as held:
            await owner.config.ApplyConfig(iter(stream), timeout=5)
        assert "header" in held[0].message or name == "nothing at all", name
    assert await everything(rows) == before


async def test_a_change_above_16_mib_is_refused(owner: Caller, rows: Rows) -> None:
    before = await everything(rows)
    big = chunk(documents.connector(body="x" * 3 * 2**20))
    with refused(errors.ResourceExhausted, "CONFIG_TOO_LARGE"):
        await owner.config.ApplyConfig(iter([header(), *[big] * 6]), timeout=20)
    assert await everything(rows) == before


async def test_two_thousand_objects_are_one_apply(owner: Caller) -> None:
    many = [
        documents.subscription(f"s{number}", event_types=[f"kind.n{number}"])
        for number in range(2000)
    ]
    applied = await owner.apply("acme", [*acme(), *many])
    assert (applied.revision, len(await owner.snapshot("acme"))) == (1, 2006)


async def test_a_secret_is_told_nowhere(
    owner: Caller, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [str(await owner.plan("acme", acme()))]
    said.append(str(await owner.apply("acme", acme(), request_id=str(uuid4()))))
    said.append(str(await owner.snapshot("acme")))
    wrong = documents.credential("token", "basic", token=documents.TOKEN)
    with refused(errors.InvalidArgument) as held:
        await owner.apply("acme", [wrong], request_id=str(uuid4()))
    said += [held[0].message, str(held[0].violations), caplog.text]
    for table in (await everything(rows)).values():
        said += table
    together = "\n".join(said)
    for spelling in (documents.CANARY, documents.CANARY.encode().hex(), "dmVyeS1zZWNyZXQtY2FuYXJ5"):
        assert spelling not in together
