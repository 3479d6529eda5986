"""A tenant's data key replaced, and what was tampered with: told, refused, and passed over."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tenon.registry.v1 import config_service_pb2 as config
from tenon.registry.v1 import credential_service_pb2 as credentials
from tenon.registry.v1 import vault_service_pb2 as pb2

from services.chassis import envelope, errors
from services.chassis.secret import Secret
from services.registry import opening
from services.registry.credentials.places import key_place
from services.registry.credentials.tampering import Tampering
from services.registry.keys.replacing import MOST_SEALS
from services.registry.keys.rewrapping import Rewrapping
from services.registry.keys.vault import TenantKey, Wrapped
from services.registry.settings import Settings
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme
from tests.integration.registry.test_key_versions import leading, rotate
from tests.wiring import settings

Rows = psycopg.AsyncConnection[tuple[Any, ...]]
ACME = "tenants/acme"
TOKENS = {"acme": b"token-of-acme", "globex": b"token-of-globex"}


@pytest.fixture
def registry_settings() -> Settings:
    """A keyring that has the second version already."""
    keys = "\n".join(f"{version}:{envelope.new_key().reveal().hex()}" for version in (1, 2))
    return settings(key_encryption_key=Secret(keys))


@pytest.fixture
def leader(registry: Registry) -> Rewrapping:
    return leading(registry)


@pytest.fixture
async def executor(owner: Caller, calling: Calls) -> Caller:
    """Beside two tenants, each with a token of its own."""
    for slug, value in TOKENS.items():
        others = [each for each in acme(slug) if each.metadata.name != "token"]
        await owner.apply(slug, [*others, documents.credential("token", token=value)])
    return await calling("EXECUTOR", kind="service")


async def resolve(executor: Caller, name: str = "token", tenant: str = "acme") -> bytes:
    request = credentials.ResolveCredentialRequest(name=f"tenants/{tenant}/credentials/{name}")
    answer = await executor.credentials.ResolveCredential(request, timeout=5)
    (value,) = answer.values.values()
    return value


async def lease(executor: Caller, uid: str = "", tenant: str = "acme") -> tuple[str, bytes]:
    """A data key's uid, and what is leased of it."""
    request = credentials.LeaseKeyRequest(name=f"tenants/{tenant}", data_key_uid=uid)
    answer = await executor.credentials.LeaseKey(request, timeout=5)
    return answer.data_key_uid, answer.key


async def replace(owner: Caller, **asked: str) -> pb2.TenantKey:
    return await owner.vault.ReplaceTenantKey(pb2.ReplaceTenantKeyRequest(name=ACME, **asked))


async def found(rows: Rows, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return await (await rows.execute(query, parameters)).fetchall()


async def under(rows: Rows, table: str) -> set[str]:
    """The data keys of acme that wrap what still opens in a table."""
    query = (
        f"SELECT DISTINCT data_key_id::text FROM registry.{table} JOIN registry.tenants t"
        " USING (tenant_id) WHERE t.slug = 'acme' AND wrapped_key IS NOT NULL"
    )
    return {key for (key,) in await found(rows, query)}


async def alarms(rows: Rows) -> list[tuple[Any, ...]]:
    """What was told of things that do not open, as often as there is a notice of it."""
    query = (
        "SELECT e.kind, e.object, e.outcome, e.error, e.risk, t.slug,"
        " (SELECT count(*) FROM registry.feed f WHERE f.kind = 'notice'"
        "  AND f.tenant_id = e.tenant_id AND f.subject LIKE '%%' || e.id || '%%')"
        " FROM registry.audit_events e JOIN registry.tenants t USING (tenant_id)"
        " WHERE e.action = 'open' ORDER BY e.kind, e.object"
    )
    return await found(rows, query)


async def test_all_that_a_tenants_key_wraps_goes_to_the_next_and_opens(
    registry: Registry,
    owner: Caller,
    executor: Caller,
    leader: Rewrapping,
    calling: Calls,
    rows: Rows,
) -> None:
    old, leased = await lease(executor)
    await owner.apply("acme", [documents.credential("token", token=b"second")])
    await owner.apply("acme", [documents.resource("review_policy", "eyes", min_risk="MEDIUM")])
    waiting = [documents.credential("late", token=b"approved later")]
    pending = (await owner.apply("acme", waiting)).pending
    tenant_id = await registry.tenant_id("acme")
    flow_id, secret = await flow(registry, rows, tenant_id, UUID(old))

    request_id = str(uuid4())
    made = await replace(owner, request_id=request_id)
    assert await replace(owner, request_id=request_id) == made
    assert made.uid not in {"", old} and made.key_version == 1
    asked = pb2.RewrapRequest(name=ACME)
    seen = []
    async for each in owner.vault.Rewrap(asked, timeout=20):
        seen.append((each.done, each.total))
        await leader.round()
    # Three versions of credentials, a pending revision and a flow.
    assert (seen[0], seen[-1]) == ((0, 5), (5, 5)) and seen == sorted(seen)
    for table in ("credential_versions", "pending_revisions", "oauth_flows"):
        assert await under(rows, table) == {made.uid}
    assert [each async for each in owner.vault.Rewrap(asked)] == [pb2.RewrapProgress(version=1)]

    assert await resolve(executor) == b"second"
    assert await resolve(executor, "hook") == documents.HOOK
    assert await resolve(executor, tenant="globex") == TOKENS["globex"]
    async with registry.caller(await admin_key(registry)) as other:
        await other.config.ApproveRevision(config.ApproveRevisionRequest(name=pending.name))
    assert await resolve(executor, "late") == b"approved later"
    await check_flow(registry, rows, flow_id, secret)
    assert await lease(executor, old) == (old, leased)
    assert (await lease(executor))[0] == made.uid
    told = "SELECT actor_kind, risk FROM registry.audit_events WHERE action = 'replace'"
    assert await found(rows, told) == [("user", 4)]


async def admin_key(registry: Registry) -> str:
    return (await registry.key("ADMIN", "acme")).reveal_text()


async def data_key(registry: Registry, rows: Rows, data_key_id: UUID) -> TenantKey:
    query = "SELECT tenant_id, key_version, wrapped FROM registry.data_keys WHERE data_key_id = %s"
    ((tenant_id, version, wrapped),) = await found(rows, query, data_key_id)
    return registry.vault.open_tenant_key(tenant_id, data_key_id, Wrapped(version, wrapped))


async def flow(
    registry: Registry, rows: Rows, tenant_id: UUID, data_key_id: UUID
) -> tuple[UUID, Secret]:
    """An authorisation under way, and the key that what it keeps is sealed by."""
    flow_id, key = uuid4(), envelope.new_key()
    wrapping = (await data_key(registry, rows, data_key_id)).key
    wrapped = envelope.wrap(wrapping, key_place(tenant_id, flow_id), key)
    await rows.execute(
        "INSERT INTO registry.oauth_flows (tenant_id, flow_id, integration_id, principal_id, actor,"
        " state_hash, wishes, data_key_id, wrapped_key, sealed, expires_at)"
        " VALUES (%s, %s, %s, %s, '{}', '', '{}', %s, %s, '', now() + interval '10 minutes')",
        [tenant_id, flow_id, uuid4(), uuid4(), data_key_id, wrapped],
    )
    return flow_id, key


async def check_flow(registry: Registry, rows: Rows, flow_id: UUID, secret: Secret) -> None:
    query = (
        "SELECT tenant_id, data_key_id, wrapped_key FROM registry.oauth_flows WHERE flow_id = %s"
    )
    ((tenant_id, data_key_id, wrapped),) = await found(rows, query, flow_id)
    wrapping = (await data_key(registry, rows, data_key_id)).key
    assert envelope.unwrap(wrapping, key_place(tenant_id, flow_id), wrapped) == secret


async def retired_for(rows: Rows, days: int) -> None:
    query = (
        "UPDATE registry.data_keys SET retired_at = now() - make_interval(days => %s)"
        " WHERE state = 'retired'"
    )
    await rows.execute(query, [days])


async def test_a_replaced_key_is_leased_until_its_time_is_over(
    owner: Caller, executor: Caller, leader: Rewrapping, rows: Rows
) -> None:
    old, leased = await lease(executor)
    await replace(owner)
    for days in (0, 1, 199):
        await retired_for(rows, days)
        await leader.round()
        assert await lease(executor, old) == (old, leased)
    await retired_for(rows, 201)
    await leader.round()
    with refused(errors.FailedPrecondition, "KEY_SHREDDED"):
        await lease(executor, old)
    with refused(errors.NotFound):
        await lease(executor, str(uuid4()))
    assert await resolve(executor) == TOKENS["acme"]
    query = "SELECT wrapped FROM registry.data_keys WHERE data_key_id = %s"
    assert await found(rows, query, UUID(old)) == [(None,)]


async def test_a_key_that_somebody_still_needs_is_not_shredded(
    owner: Caller, executor: Caller, leader: Rewrapping, rows: Rows
) -> None:
    old, _ = await lease(executor)
    await replace(owner)
    await retired_for(rows, 201)
    async with rows.transaction():
        await rows.execute(
            "SELECT FROM registry.credential_versions v JOIN registry.credentials c"
            " USING (tenant_id, credential_id) WHERE c.name = 'token' FOR UPDATE OF v"
        )
        await leader.round()
        assert await under(rows, "credential_versions") == {old, (await lease(executor))[0]}
    assert await resolve(executor) == TOKENS["acme"]
    await leader.round()
    with refused(errors.FailedPrecondition, "KEY_SHREDDED"):
        await lease(executor, old)
    assert await resolve(executor) == TOKENS["acme"]


async def test_a_key_that_has_sealed_too_often_is_replaced_by_itself_and_once(
    registry: Registry, executor: Caller, leader: Rewrapping, rows: Rows
) -> None:
    old, leased = await lease(executor)
    report = credentials.ReportCredentialUseRequest(parent=ACME, seals={old: 10})
    await rows.execute("UPDATE registry.data_keys SET wraps = %s", [MOST_SEALS - 11])
    await executor.credentials.ReportCredentialUse(report)
    assert (await lease(executor))[0] == old
    await asyncio.gather(*(executor.credentials.ReportCredentialUse(report) for _ in range(4)))
    made, other = await lease(executor)
    assert made != old and other != leased
    await executor.credentials.ReportCredentialUse(report)
    assert (await lease(executor))[0] == made
    assert await lease(executor, old) == (old, leased)
    told = "SELECT actor_kind, actor_name FROM registry.audit_events WHERE action = 'replace'"
    assert await found(rows, told) == [("service", "registry")]
    await leader.round()
    assert await under(rows, "credential_versions") == {made}
    assert await resolve(executor) == TOKENS["acme"]


OF = " FROM registry.tenants t WHERE t.tenant_id = k.tenant_id AND t.slug = 'acme'"
OTHERS = (
    " FROM registry.data_keys o, registry.tenants t WHERE o.tenant_id <> k.tenant_id"
    " AND t.tenant_id = k.tenant_id AND t.slug = 'acme'"
)
# What somebody who may write the database does to acme's data key, while version 2 is unused.
DATA_KEY = {
    "another tenant's": f"UPDATE registry.data_keys k SET wrapped = o.wrapped{OTHERS}",
    "another version": f"UPDATE registry.data_keys k SET key_version = 2{OF}",
    "one bit": "UPDATE registry.data_keys k"
    f" SET wrapped = set_bit(wrapped, 500, 1 - get_bit(wrapped, 500)){OF}",
    "cut off": f"UPDATE registry.data_keys k SET wrapped = substr(wrapped, 1, 40){OF}",
}


@pytest.mark.parametrize("tampering", DATA_KEY.values(), ids=DATA_KEY)
async def test_a_data_key_that_was_tampered_with_is_refused_and_told(
    registry: Registry,
    owner: Caller,
    executor: Caller,
    leader: Rewrapping,
    rows: Rows,
    tampering: str,
) -> None:
    # It was opened before, so that this process remembers it.
    uid, _ = await lease(executor)
    if "key_version" in tampering:
        await rotate(owner, registry, _still(leader))
    assert (await rows.execute(tampering)).rowcount == 1
    with refused(errors.Internal, "INTERNAL"):
        await lease(executor)
    told = ("DataKey", uid, "failed", "UNSEALABLE", 4, "acme")
    assert [alarm[:6] for alarm in await alarms(rows)] == [told]
    with refused(errors.Internal, "INTERNAL"):
        await resolve(executor)
    kinds = [alarm[0] for alarm in await alarms(rows)]
    assert kinds == ["Credential", "DataKey"] and {alarm[6] for alarm in await alarms(rows)} == {1}
    assert (await lease(executor, tenant="globex"))[1]


def _still(leader: Rewrapping) -> Rewrapping:
    """A leader that lets a new version wrap, and rewraps nothing yet."""

    async def nothing(*_: object) -> None:
        return None

    leader._rewrap = nothing  # type: ignore[method-assign, assignment]
    return leader


@pytest.mark.parametrize("tampering", list(DATA_KEY.values())[::2], ids=list(DATA_KEY)[::2])
async def test_a_rotation_tells_of_a_data_key_that_does_not_open_and_goes_on(
    registry: Registry,
    owner: Caller,
    executor: Caller,
    leader: Rewrapping,
    rows: Rows,
    tampering: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uid, _ = await lease(executor)
    await rows.execute(tampering)
    # The first batch has nothing else in it.
    monkeypatch.setattr("services.registry.keys.rewrapping.BATCH", 1)
    await rotate(owner, registry, leader)
    query = (
        "SELECT t.slug, key_version FROM registry.data_keys JOIN registry.tenants t"
        " USING (tenant_id) ORDER BY t.slug"
    )
    assert await found(rows, query) == [("acme", 1), ("globex", 2)]
    assert await alarms(rows) == [("DataKey", uid, "failed", "UNSEALABLE", 4, "acme", 1)]
    await leader.round()
    assert len(await alarms(rows)) == 1
    with refused(errors.FailedPrecondition, "KEY_VERSION_IN_USE"):
        await owner.vault.DisableKeyVersion(pb2.DisableKeyVersionRequest(version=1))
    assert await resolve(executor, tenant="globex") == TOKENS["globex"]


VERSIONS = "UPDATE registry.credential_versions v SET "
TOKEN = " FROM registry.credentials c WHERE c.credential_id = v.credential_id AND c.name = 'token'"
HOOKS = (
    " FROM registry.credential_versions o, registry.credentials c, registry.credentials d"
    " WHERE c.credential_id = v.credential_id AND c.name = 'token'"
    " AND d.credential_id = o.credential_id AND d.name = 'hook' AND o.tenant_id = v.tenant_id"
)
# What they do to the keys of both tenants' tokens.
VERSION_KEY = {
    "another credential's": f"{VERSIONS}wrapped_key = o.wrapped_key{HOOKS}",
    "another tenant's": f"{VERSIONS}wrapped_key = o.wrapped_key FROM registry.credential_versions o,"
    " registry.credentials c, registry.credentials d WHERE c.credential_id = v.credential_id"
    " AND d.credential_id = o.credential_id AND c.name = 'token' AND d.name = 'token'"
    " AND o.tenant_id <> v.tenant_id",
    "one bit": f"{VERSIONS}wrapped_key ="
    f" set_bit(v.wrapped_key, 400, 1 - get_bit(v.wrapped_key, 400)){TOKEN}",
}


@pytest.mark.parametrize("tampering", VERSION_KEY.values(), ids=VERSION_KEY)
async def test_what_was_tampered_with_stays_under_the_old_key_and_all_else_goes(
    registry: Registry,
    owner: Caller,
    executor: Caller,
    leader: Rewrapping,
    rows: Rows,
    tampering: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, _ = await lease(executor)
    assert (await rows.execute(tampering)).rowcount == 2
    made = await replace(owner)
    monkeypatch.setattr("services.registry.keys.rewrapping.BATCH", 1)
    await leader.round()
    query = (
        "SELECT c.name, v.data_key_id::text FROM registry.credential_versions v"
        " JOIN registry.credentials c USING (tenant_id, credential_id)"
        " JOIN registry.tenants t USING (tenant_id) WHERE t.slug = 'acme' ORDER BY c.name"
    )
    assert await found(rows, query) == [("hook", made.uid), ("token", old)]
    assert await alarms(rows) == [("Credential", "token", "failed", "UNSEALABLE", 4, "acme", 1)]
    for tenant in TOKENS:
        with refused(errors.Internal, "INTERNAL"):
            await resolve(executor, tenant=tenant)
    assert await resolve(executor, "hook") == documents.HOOK
    # The proof of it is not destroyed with the key.
    await retired_for(rows, 201)
    await leader.round()
    assert (await lease(executor, old))[0] == old


RETIRED = (
    "FROM registry.data_keys o JOIN registry.tenants t USING (tenant_id)"
    " WHERE t.slug = 'acme' AND o.state = 'retired' AND"
)
STANDING = {
    "values under the old key": "UPDATE registry.credential_versions v"
    f" SET data_key_id = o.data_key_id {RETIRED} o.tenant_id = v.tenant_id",
    "the old key as the new": "UPDATE registry.data_keys k"
    f" SET wrapped = o.wrapped {RETIRED} o.tenant_id = k.tenant_id AND k.state = 'active'",
}


@pytest.mark.parametrize("tampering", STANDING.values(), ids=STANDING)
async def test_a_tenants_own_keys_cannot_stand_for_each_other(
    owner: Caller, executor: Caller, leader: Rewrapping, rows: Rows, tampering: str
) -> None:
    await replace(owner)
    await leader.round()
    assert (await rows.execute(tampering)).rowcount > 0
    with refused(errors.Internal, "INTERNAL"):
        await resolve(executor)
    assert [alarm[:2] for alarm in await alarms(rows)] == [("Credential", "token")]
    assert await resolve(executor, tenant="globex") == TOKENS["globex"]


async def test_a_replaced_key_outlives_whoever_has_just_seen_it_as_the_current_one(
    registry: Registry, owner: Caller, executor: Caller, rows: Rows
) -> None:
    log = opening.open_log(registry.vault)
    at_once = Rewrapping(
        *(registry.database, registry.vault, registry.holding, log),
        *(Tampering(registry.database, log), timedelta(0)),
    )
    await replace(owner)
    await at_once.round()
    query = "SELECT state FROM registry.data_keys WHERE retired_at IS NOT NULL"
    assert await found(rows, query) == [("retired",)]
    await retired_for(rows, 1)
    await at_once.round()
    assert await found(rows, query) == [("shredded",)]
