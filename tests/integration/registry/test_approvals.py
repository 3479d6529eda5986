"""Changes that wait for the approval of others, through a real registry."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import config_service_pb2 as pb2
from tenon.registry.v1 import key_service_pb2 as key_pb2
from tenon.registry.v1 import principal_service_pb2 as principal_pb2
from tenon.registry.v1 import tenant_service_pb2 as tenant_pb2
from tenon.registry.v1 import wanted_pb2 as wanted

from services.chassis import envelope, errors
from services.registry import opening
from services.registry.credentials.sealing import Sealing
from services.registry.reviews import expiry as expiries
from services.registry.reviews.endings import Endings
from services.registry.reviews.expiry import Expiry
from services.registry.reviews.staging import Staging
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme, connector, credential, integration, resource

Rows = psycopg.AsyncConnection[tuple[object, ...]]
Pending = pb2.PendingRevision
CANARY = b"canary-that-waits-for-approval"
# Where no secret belongs.
STRAY = "stray-canary-in-a-header"


def policy(name: str = "four-eyes", /, **spec: object) -> wanted.Resource:
    return resource("review_policy", name, **({"min_risk": "MEDIUM"} | spec))


def change(number: int = 1) -> list[wanted.Resource]:
    """A change of medium risk."""
    return [integration(config={"owner": "acme"}, base_url=f"http://127.0.0.1:{number}")]


async def begin(owner: Caller, *policies: wanted.Resource) -> None:
    """A tenant with policies; what makes a tenant cannot fall under one."""
    made = await owner.apply("acme", [*acme(), *(policies or [policy()])])
    assert made.revision == 1 and not made.HasField("pending")


async def submit(who: Caller, resources: Iterable[wanted.Resource], **header: Any) -> Pending:
    answer = await who.apply("acme", resources, **header)
    assert answer.HasField("pending") and answer.revision == answer.plan.base_revision
    return answer.pending


async def approve(who: Caller, pending: Pending, **more: str) -> Pending:
    return await who.config.ApproveRevision(
        pb2.ApproveRevisionRequest(name=pending.name, **more), timeout=20
    )


async def reject(who: Caller, pending: Pending, **more: str) -> Pending:
    return await who.config.RejectRevision(
        pb2.RejectRevisionRequest(name=pending.name, **more), timeout=20
    )


async def look(who: Caller, pending: Pending) -> Pending:
    return await who.config.GetPendingRevision(pb2.GetPendingRevisionRequest(name=pending.name))


async def told(rows: Rows) -> list[tuple[object, ...]]:
    """What the audit log says of pending revisions, the oldest first."""
    return await (
        await rows.execute(
            "SELECT action, actor_kind, risk FROM registry.audit_events"
            " WHERE kind = 'PendingRevision' ORDER BY seq"
        )
    ).fetchall()


async def sealed(rows: Rows) -> list[tuple[object, ...]]:
    return await (
        await rows.execute("SELECT wrapped_key, sealed FROM registry.pending_revisions")
    ).fetchall()


async def test_a_change_under_a_policy_takes_effect_with_the_approval_of_another(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    before = await owner.snapshot("acme")

    plan = await author.plan("acme", change())
    assert list(plan.needs_approval.policies) == ["four-eyes"]
    assert plan.needs_approval.approvals == 1 and not plan.needs_approval.self_approval
    pending = await submit(author, change(), commit="c0ffee")
    assert (pending.state, pending.commit) == (Pending.STATE_PENDING, "c0ffee")
    assert await owner.snapshot("acme") == before
    seen = await look(other, pending)
    assert [one.fields[0].path for one in seen.plan.changes] == ["spec.base_url"]

    done = await approve(other, pending, note="looks right")
    assert (done.state, done.revision) == (Pending.STATE_APPLIED, 2)
    assert [one.note for one in done.approvals] == ["looks right"]
    after = await owner.snapshot("acme")
    base_url = after["integration", "github"].resource.integration.base_url
    assert base_url == "http://127.0.0.1:1"
    assert [row[0] for row in await told(rows)] == ["submit", "apply", "approve"]
    ((fields,),) = await (
        await rows.execute("SELECT fields FROM registry.audit_events WHERE action = 'apply'")
    ).fetchall()
    assert fields == [{"path": "approved_by", "after": '["ADMIN of acme"]'}]
    ((who, approved_by),) = await (
        await rows.execute(
            "SELECT e.actor_id, p.author_id FROM registry.audit_events e, registry.pending_revisions p"
            " WHERE e.kind = 'Integration' AND e.action = 'update'"
        )
    ).fetchall()
    assert who == approved_by


async def test_what_no_policy_is_about_takes_effect_at_once(owner: Caller, calling: Calls) -> None:
    await begin(
        owner,
        policy("high-only", min_risk="HIGH"),
        policy("connectors", kinds=["Connector"]),
        policy("off", is_active=False),
    )
    author = await calling("ADMIN", "acme")
    assert not (await author.plan("acme", change())).HasField("needs_approval")
    assert (await author.apply("acme", change())).revision == 2


async def test_of_several_policies_the_strictest_of_each_field_counts(
    owner: Caller, calling: Calls
) -> None:
    await begin(
        owner,
        policy("two", approvals=2, expires="86400s", allow_self_approval=True),
        policy("short", expires="3600s"),
        policy("elsewhere", approvals=5, kinds=["Connector"]),
    )
    author = await calling("ADMIN", "acme")
    needed = (await author.plan("acme", change())).needs_approval
    assert list(needed.policies) == ["short", "two"]
    assert (needed.approvals, needed.expires.seconds, needed.self_approval) == (2, 3600, False)
    pending = await submit(author, change())
    first, second = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    assert (await approve(first, pending)).state == Pending.STATE_PENDING
    with refused(errors.AlreadyExists, "ALREADY_APPROVED"):
        await approve(first, pending)
    assert (await approve(second, pending)).state == Pending.STATE_APPLIED


async def test_only_other_people_may_approve(owner: Caller, calling: Calls) -> None:
    await begin(owner)
    author = await calling("ADMIN", "acme")
    pending = await submit(author, change())
    with refused(errors.PermissionDenied, "SELF_APPROVAL"):
        await approve(author, pending)
    for role, kind in (("ADMIN", "service"), ("ADMIN", "source"), ("MANAGER", "user")):
        with refused(errors.PermissionDenied):
            await approve(await calling(role, "acme", kind=kind), pending)
    assert (await look(author, pending)).state == Pending.STATE_PENDING


async def test_who_makes_a_key_for_somebody_does_not_approve_by_it(
    owner: Caller, calling: Calls, registry: Registry
) -> None:
    await begin(owner)
    person = await calling("SUPER_ADMIN")
    uid = (await person.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    pending = await submit(owner, change())

    def wish(name: str) -> key_pb2.CreateKeyRequest:
        return key_pb2.CreateKeyRequest(
            principal=f"principals/{uid}", display_name=name, scopes=["*"]
        )

    lent = await owner.keys.CreateKey(wish("lent"))
    async with registry.caller(lent.text) as owner_again:
        # What a lent key makes is lent as well.
        made = await owner_again.keys.CreateKey(wish("of the lent one"))
        next_one = await owner_again.keys.RotateKey(key_pb2.RotateKeyRequest(name=lent.key.name))
    for text in (lent.text, made.text, next_one.text):
        async with registry.caller(text) as owner_again:
            for decide in (approve, reject):
                with refused(errors.PermissionDenied, "LENT_KEY"):
                    await decide(owner_again, pending)
    own = await person.keys.CreateKey(wish("own"))
    async with registry.caller(own.text) as person_again:
        assert (await approve(person_again, pending)).state == Pending.STATE_APPLIED


async def test_who_makes_a_key_does_not_approve_what_is_submitted_with_it(
    owner: Caller, calling: Calls, registry: Registry
) -> None:
    await begin(owner)
    admin, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    robot = await admin.principals.CreatePrincipal(
        principal_pb2.CreatePrincipalRequest(
            parent="tenants/acme", kind="service", display_name="robot"
        )
    )
    acme_id = await registry.tenant_id("acme")
    await grant(registry.database, acme_id, "service", UUID(robot.uid), "ADMIN")
    made = await admin.keys.CreateKey(
        key_pb2.CreateKeyRequest(
            parent="tenants/acme", principal=robot.name, display_name="robot", scopes=["*"]
        )
    )
    async with registry.caller(made.text) as itself:
        pending = await submit(itself, change())
    with refused(errors.PermissionDenied, "SELF_APPROVAL"):
        await approve(admin, pending)
    assert (await approve(other, pending)).state == Pending.STATE_APPLIED


async def test_who_made_the_key_of_a_change_s_author_does_not_approve_it(
    owner: Caller, calling: Calls, registry: Registry
) -> None:
    await owner.apply("acme", acme())
    alice = await calling("ADMIN", "acme")
    bots = [
        await alice.principals.CreatePrincipal(
            principal_pb2.CreatePrincipalRequest(
                parent="tenants/acme", kind="service", display_name=name
            )
        )
        for name in ("bot", "other-bot")
    ]
    bindings = [
        resource(
            "role_binding",
            bot.display_name,
            role="ADMIN",
            subject={"kind": "service", "issuer": "", "name": bot.uid},
        )
        for bot in bots
    ]
    await owner.apply("acme", [*bindings, policy()])

    def wish(bot: Any) -> key_pb2.CreateKeyRequest:
        return key_pb2.CreateKeyRequest(
            parent="tenants/acme", principal=bot.name, display_name="k", scopes=["*"]
        )

    made = await alice.keys.CreateKey(wish(bots[0]))
    async with registry.caller(made.text) as bot:
        by_key = await submit(bot, change(1))
        by_bot = await bot.keys.CreateKey(wish(bots[1]))
    rotated = await alice.keys.RotateKey(key_pb2.RotateKeyRequest(name=by_bot.key.name))
    submitted = [by_key]
    for number, text in enumerate((by_bot.text, rotated.text), 2):
        async with registry.caller(text) as bot:
            submitted.append(await submit(bot, change(number)))
    for pending in submitted:
        with refused(errors.PermissionDenied, "SELF_APPROVAL"):
            await approve(alice, pending)
    bob = await calling("ADMIN", "acme")
    assert (await approve(bob, by_key)).state == Pending.STATE_APPLIED


async def test_where_the_policy_allows_it_the_author_may_approve(
    owner: Caller, calling: Calls
) -> None:
    await begin(owner, policy(allow_self_approval=True))
    author = await calling("ADMIN", "acme")
    assert (await approve(author, await submit(author, change()))).revision == 2


async def test_nobody_loosens_a_policy_alone(owner: Caller, calling: Calls, rows: Rows) -> None:
    await begin(owner, policy(kinds=["Connector"], min_risk="CRITICAL"))
    author = await calling("ADMIN", "acme")
    binding = resource(
        "role_binding", "friend", role="ADMIN", subject={"kind": "user", "issuer": "x", "name": "y"}
    )
    for loosened in (
        policy(is_active=False),
        policy(min_risk="CRITICAL", allow_self_approval=True),
        resource("review_policy", "another", min_risk="HIGH", allow_self_approval=True),
        binding,
    ):
        assert (await submit(author, [loosened])).state == Pending.STATE_PENDING
    delete = pb2.DeleteObjectRequest(name="tenants/acme/reviewPolicies/four-eyes", force=True)
    answer = await author.config.DeleteObject(delete)
    assert answer.HasField("pending")
    assert {risk for _, _, risk in await told(rows)} == {4}
    other = await calling("ADMIN", "acme")
    assert (await approve(other, answer.pending)).state == Pending.STATE_APPLIED
    assert ("review_policy", "four-eyes") not in await owner.snapshot("acme")


async def test_a_change_over_another_state_is_stale_and_ends(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    first, second = await submit(author, change(1)), await submit(author, change(2))
    assert (await approve(other, first)).state == Pending.STATE_APPLIED
    with refused(errors.Aborted, "STALE_REVISION"):
        await approve(other, second)
    assert (await look(author, second)).state == Pending.STATE_STALE
    with refused(errors.FailedPrecondition, "REVISION_NOT_PENDING"):
        await approve(other, second)
    assert await sealed(rows) == [(None, None), (None, None)]
    assert [row[0] for row in await told(rows)][-2:] == ["stale", "approve"]


async def test_of_two_last_approvals_at_once_one_applies(owner: Caller, calling: Calls) -> None:
    await begin(owner)
    author = await calling("ADMIN", "acme")
    pending = await submit(author, change())
    others = [await calling("ADMIN", "acme") for _ in range(4)]
    came = await asyncio.gather(
        *(approve(each, pending) for each in others), return_exceptions=True
    )
    assert sum(isinstance(one, Pending) for one in came) == 1
    revisions = await owner.config.ListRevisions(pb2.ListRevisionsRequest(parent="tenants/acme"))
    assert [one.number for one in revisions.revisions] == [2, 1]


async def test_an_approval_and_an_apply_at_once_are_one_after_the_other(
    owner: Caller, calling: Calls
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    for number in range(6):
        pending = await submit(author, change(number + 1))
        harmless = connector()
        harmless.connector.description = f"number {number}"
        done, approved = await asyncio.gather(
            owner.apply("acme", [harmless]), approve(other, pending), return_exceptions=True
        )
        assert isinstance(done, pb2.ApplyConfigResponse) and not done.HasField("pending")
        if isinstance(approved, Pending):
            assert approved.state == Pending.STATE_APPLIED
        else:
            assert isinstance(approved, grpc.aio.AioRpcError)
            assert approved.code() is grpc.StatusCode.ABORTED, approved.details()


async def test_a_change_whose_author_may_not_make_it_any_more_is_refused(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    pending = await submit(author, change())
    who = (await author.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    await rows.execute("DELETE FROM registry.role_bindings WHERE subject = %s", [who])
    with refused(errors.Aborted, "STALE_REVISION"):
        await approve(other, pending)
    seen = await look(other, pending)
    assert (seen.state, seen.note) == (Pending.STATE_STALE, "its author may not make it now")


async def test_an_approval_of_somebody_who_lost_the_role_does_not_count(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner, policy(approvals=2))
    author, gone = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    pending = await submit(author, change())
    await approve(gone, pending)
    who = (await gone.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    await rows.execute("DELETE FROM registry.role_bindings WHERE subject = %s", [who])
    assert (await approve(await calling("ADMIN", "acme"), pending)).state == Pending.STATE_PENDING
    assert (await approve(await calling("ADMIN", "acme"), pending)).state == Pending.STATE_APPLIED


async def test_who_may_change_some_kinds_may_approve_only_those(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, narrow = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    pending = await submit(author, change())
    who = (await narrow.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    narrowed = "UPDATE registry.role_bindings SET kinds = %s WHERE subject = %s"
    await rows.execute(narrowed, [["Connector"], who])
    with refused(errors.PermissionDenied):
        await approve(narrow, pending)
    await rows.execute(narrowed, [["Connector", "Integration"], who])
    assert (await approve(narrow, pending)).state == Pending.STATE_APPLIED


async def test_the_same_plan_waits_once_and_a_repeated_request_gets_its_answer(
    owner: Caller, calling: Calls
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    request_id = str(uuid4())
    pending = await submit(author, change(), request_id=request_id)
    assert await submit(author, change(), request_id=request_id) == pending
    assert (await submit(other, change())).name == pending.name
    given = str(uuid4())
    done = await approve(other, pending, request_id=given)
    assert await approve(other, pending, request_id=given) == done
    # The first answer stays the answer.
    assert await submit(author, change(), request_id=request_id) == pending


async def test_what_waits_too_long_expires(
    registry: Registry, owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner, policy(expires="3600s"))
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    pending = await submit(author, change())
    log = opening.open_log(registry.vault)

    def expiry(later: timedelta) -> Expiry:
        now = datetime.now(UTC) + later
        return Expiry(registry.database, Endings(log, lambda: now), lambda: now)

    assert await expiry(timedelta(minutes=59)).expire() == 0
    assert await expiry(timedelta(minutes=61)).expire() == 1
    assert await expiry(timedelta(minutes=61)).expire() == 0
    assert (await look(author, pending)).state == Pending.STATE_EXPIRED
    with refused(errors.FailedPrecondition, "REVISION_NOT_PENDING"):
        await approve(other, pending)
    assert (await told(rows))[-1][:2] == ("expire", "system")
    assert await sealed(rows) == [(None, None)]
    # The same change may be submitted again.
    assert (await submit(author, change())).name != pending.name


async def test_what_is_past_its_time_cannot_be_approved_before_anybody_lets_it_go(
    owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    for _ in range(2):
        # The second one is let go by the submission of the same change.
        pending = await submit(author, change())
        await rows.execute("UPDATE registry.pending_revisions SET expires_at = now()")
    with refused(errors.FailedPrecondition, "REVISION_NOT_PENDING"):
        await approve(other, pending)
    listed = await author.config.ListPendingRevisions(
        pb2.ListPendingRevisionsRequest(parent="tenants/acme")
    )
    assert [one.state for one in listed.pending_revisions] == [Pending.STATE_EXPIRED] * 2


async def test_what_waits_in_one_tenant_expires_whatever_is_the_matter_with_another(
    registry: Registry, owner: Caller, calling: Calls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More fail than are looked for at once.
    monkeypatch.setattr(expiries, "AT_ONCE", 1)
    slugs = ("draining", "broken", "acme")
    submitted: dict[str, Pending] = {}
    for slug in slugs:
        await owner.apply(slug, [*acme(slug), policy(kinds=["Integration"])])
        author = await calling("ADMIN", slug)
        submitted[slug] = (await author.apply(slug, change())).pending
    await owner.tenants.DeleteTenant(
        tenant_pb2.DeleteTenantRequest(name="tenants/draining", force=True)
    )
    # No event of this tenant can be told.
    broken = str(await registry.tenant_id("broken"))
    await rows.execute(
        "ALTER TABLE registry.audit_heads ADD CONSTRAINT broken"
        f" CHECK (tenant_id <> '{broken}') NOT VALID".encode()
    )
    later = datetime.now(UTC) + timedelta(days=4)
    endings = Endings(opening.open_log(registry.vault), lambda: later)
    assert await Expiry(registry.database, endings, lambda: later).expire() == 2
    states = await rows.execute(
        "SELECT t.slug, p.state FROM registry.pending_revisions p"
        " JOIN registry.tenants t USING (tenant_id)"
    )
    expected = {"draining": "expired", "broken": "pending", "acme": "expired"}
    assert {*await states.fetchall()} == {*expected.items()}


async def test_a_kept_answer_holds_no_value_of_what_was_rejected(
    owner: Caller, calling: Calls
) -> None:
    await begin(owner, policy(approvals=2))
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    asked, approved = str(uuid4()), str(uuid4())
    stray = [connector("triage", headers={"x-stray": STRAY}), *change()]
    pending = await submit(author, stray, request_id=asked)
    assert STRAY in str((await look(other, pending)).plan)
    await approve(other, pending, request_id=approved)
    await reject(other, pending)
    again = await author.apply("acme", stray, request_id=asked)
    assert again.pending == pending and STRAY not in str(again)
    assert [field.path for field in again.plan.changes[0].fields]
    assert STRAY not in str(await approve(other, pending, request_id=approved))


@pytest.mark.parametrize("end", ["reject", "stale", "expire", "apply"])
async def test_nothing_that_is_left_opens_what_was_sealed(
    end: str, registry: Registry, owner: Caller, calling: Calls, rows: Rows
) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    first = await submit(author, change())
    stray = connector("triage", headers={"x-stray": STRAY})
    pending = await submit(author, [credential("token", token=CANARY), stray])
    assert STRAY in str((await look(other, pending)).plan)
    # Somebody copied the row while it waited, and has the tenant's key and ours.
    async with rows.cursor(row_factory=psycopg.rows.namedtuple_row) as cursor:
        await cursor.execute(
            "SELECT * FROM registry.pending_revisions WHERE pending_id = %s",
            [pending.name.rpartition("/")[2]],
        )
        copied: Any = await cursor.fetchone()
    assert copied is not None
    log = opening.open_log(registry.vault)
    staging = Staging(Sealing(registry.vault), Endings(log), log)
    async with registry.database.tenant(copied.tenant_id) as transaction:
        opened = await staging.open(transaction, "acme", copied)
    assert opened.declared[0].secrets["token"].reveal() == CANARY

    if end == "reject":
        await reject(other, pending, note="no")
    elif end == "apply":
        await approve(other, pending)
    elif end == "stale":
        await approve(other, first)
        with refused(errors.Aborted):
            await approve(other, pending)
    else:
        later = datetime.now(UTC) + timedelta(days=4)
        await Expiry(registry.database, Endings(log), lambda: later).expire()
    left = await dump(registry)
    assert CANARY.hex() not in left and CANARY.decode() not in left
    assert bytes(copied.wrapped_key).hex() not in left
    assert bytes(copied.sealed).hex() not in left
    # What is wanted now is another matter.
    assert (STRAY in left) is (end == "apply")
    assert STRAY not in str(await look(other, pending))
    # Every other wrapped key that is left is of something else.
    keys = await (
        await rows.execute(
            "SELECT wrapped FROM registry.data_keys UNION SELECT wrapped_key"
            " FROM registry.credential_versions UNION SELECT wrapped_key"
            " FROM registry.pending_revisions WHERE wrapped_key IS NOT NULL"
        )
    ).fetchall()
    for (key,) in keys:
        with pytest.raises(envelope.Unsealable):
            async with registry.database.tenant(copied.tenant_id) as transaction:
                await staging.open(transaction, "acme", copied._replace(wrapped_key=key))


async def dump(registry: Registry) -> str:
    """Everything a logical dump of the registry's database would have."""
    async with await psycopg.AsyncConnection.connect(registry.superuser.reveal_text()) as rows:
        found = await (
            await rows.execute(
                "SELECT c.oid::regclass::text FROM pg_class c"
                " WHERE c.relnamespace = 'registry'::regnamespace AND c.relkind = 'r'"
            )
        ).fetchall()
        texts = []
        for (table,) in found:
            query = f"SELECT row_to_json(t)::text FROM {table} t"
            texts += [row[0] for row in await (await rows.execute(query.encode())).fetchall()]
        return "\n".join(texts)


async def test_people_reject_with_their_reason(owner: Caller, calling: Calls, rows: Rows) -> None:
    await begin(owner)
    author, other = await calling("ADMIN", "acme"), await calling("ADMIN", "acme")
    pending = await submit(author, change())
    seen = await reject(other, pending, note="not today")
    assert (seen.state, seen.note) == (Pending.STATE_REJECTED, "not today")
    assert [row[0] for row in await told(rows)] == ["submit", "reject"]
    # An author may take their own change back.
    assert (await reject(author, await submit(author, change()))).state == Pending.STATE_REJECTED
    assert (await owner.plan("acme", change())).changes


async def test_of_another_tenant_nobody_learns_or_approves_anything(
    owner: Caller, calling: Calls
) -> None:
    await begin(owner)
    await owner.apply("globex", acme("globex"))
    pending = await submit(await calling("ADMIN", "acme"), change())
    stranger = await calling("ADMIN", "globex")
    with refused(errors.PermissionDenied):
        await approve(stranger, pending)
    pending.name = pending.name.replace("acme", "globex")
    with refused(errors.NotFound):
        await approve(stranger, pending)


async def test_they_are_listed_by_page_and_by_state(owner: Caller, calling: Calls) -> None:
    await begin(owner)
    author, viewer = await calling("ADMIN", "acme"), await calling("VIEWER", "acme")
    submitted = [await submit(author, change(number)) for number in (1, 2, 3)]
    await reject(author, submitted[1])

    async def names(**asked: Any) -> tuple[list[str], str]:
        request = pb2.ListPendingRevisionsRequest(parent="tenants/acme", **asked)
        answer = await viewer.config.ListPendingRevisions(request)
        assert not any(one.HasField("plan") for one in answer.pending_revisions)
        return [one.name for one in answer.pending_revisions], answer.next_page_token

    newest = [one.name for one in reversed(submitted)]
    first, token = await names(page_size=2)
    assert (first, await names(page_size=2, page_token=token)) == (newest[:2], (newest[2:], ""))
    assert await names(state=Pending.STATE_PENDING) == ([newest[0], newest[2]], "")
    with refused(errors.InvalidArgument):
        await names(page_token=token, state=Pending.STATE_PENDING)
    for wrong in ("tenants/acme/revisions/1", "tenants/acme/pendingRevisions/x", "tenants/acme"):
        with refused(errors.InvalidArgument):
            await look(viewer, Pending(name=wrong))
    with refused(errors.InvalidArgument):
        await approve(author, submitted[0], note="x" * 1001)
