"""Roles and bindings as configuration: who they let in, how far, and that nobody goes further."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import key_service_pb2 as keys_pb2
from tenon.registry.v1 import principal_service_pb2 as principals_pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from services.chassis.channel import open_channel
from services.chassis.ids import uuid7
from services.chassis.invalidation import EVERYTHING
from services.registry.store import access as store
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.documents import acme, connector, integration, resource

Rows = psycopg.AsyncConnection[tuple[object, ...]]
Known = Callable[[str, str], Awaitable[Caller]]
AT_ONCE_S = 1.0


@pytest.fixture
async def known(registry: Registry) -> AsyncIterator[Known]:
    """Opens channels as an identity that Tenon itself vouches for: `await known("user", "ada")`."""
    async with AsyncExitStack() as channels:

        async def call(kind: str, name: str) -> Caller:
            principal = uuid7()
            async with registry.database.system() as transaction:
                await transaction.run(
                    store.ADD_PRINCIPAL,
                    principal_id=principal,
                    kind=kind,
                    issuer="",
                    subject=name,
                    display_name=name,
                )
                key = await registry.access.issue(transaction, "test", principal, "test", ["*"])
            channel = open_channel(registry.target, key=key)
            return Caller(await channels.enter_async_context(channel))

        yield call


def role(name: str, *permissions: str) -> wanted_pb2.Resource:
    return resource("role", name, permissions=list(permissions))


def binding(name: str, to: str, who: str, kind: str = "user", **spec: Any) -> wanted_pb2.Resource:
    return resource("role_binding", name, role=to, subject={"kind": kind, "name": who}, **spec)


async def may(caller: Caller, permission: str, tenant: str = "acme") -> bool:
    request = access_pb2.CheckPermissionRequest(tenant=f"tenants/{tenant}", permission=permission)
    return (await caller.access.CheckPermission(request)).allowed


async def at_once(condition: Callable[[], Awaitable[bool]]) -> None:
    """Fails where the condition does not hold within the second that is promised."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < AT_ONCE_S
        await asyncio.sleep(0.02)


async def everything(rows: Rows) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for table in ("tenant_roles", "role_bindings", "connectors", "config_revisions", "feed"):
        found += await (await rows.execute(f"SELECT t::text FROM registry.{table} t")).fetchall()
    return found


async def test_a_binding_lets_in_and_its_deletion_shuts_out_at_once(
    owner: Caller, known: Known
) -> None:
    ada = await known("user", "ada")
    await owner.apply("acme", acme())
    assert not await may(ada, "connectors.run")
    support = role("support", "tenants.read", "connectors.run")
    await owner.apply("acme", [support, binding("ada", "support", "ada")])
    await at_once(lambda: may(ada, "connectors.run"))
    assert not await may(ada, "config.plan")

    await owner.apply("acme", [role("support", "tenants.read", "config.plan")])
    await at_once(lambda: may(ada, "config.plan"))
    assert not await may(ada, "connectors.run")

    name = "tenants/acme/roleBindings/ada"
    await owner.config.DeleteObject(config_pb2.DeleteObjectRequest(name=name, force=True))

    async def is_out() -> bool:
        return not await may(ada, "tenants.read")

    await at_once(is_out)


async def test_a_source_is_held_to_its_tenant_its_kinds_and_its_name(
    owner: Caller, known: Known, rows: Rows
) -> None:
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))
    git = await known("source", "acme-git")
    await owner.apply("acme", [binding("git", "ADMIN", "acme-git", "source", kinds=["Connector"])])
    await at_once(lambda: may(git, "config.apply"))

    applied = await git.apply("acme", [connector("nightly")], source="acme-git")
    assert [change.name for change in applied.plan.changes] == ["nightly"]

    before = await everything(rows)
    wanted = [connector("nightly", path="/x"), integration("two"), integration("three")]
    for ask in (git.plan, git.apply):
        with refused(errors.PermissionDenied) as held:
            await ask("acme", wanted, source="acme-git")
        assert [one.field for one in held[0].violations] == [
            "Integration/two#",
            "Integration/three#",
        ]
        with refused(errors.PermissionDenied) as held:
            await ask("acme", [connector("nightly", path="/x")], source="cli")
        assert "as source cli" in held[0].violations[0].description
        with refused(errors.PermissionDenied):
            await ask("globex", [connector("nightly")], source="acme-git")
    with refused(errors.PermissionDenied):
        await git.config.DeleteObject(
            config_pb2.DeleteObjectRequest(name="tenants/acme/connectors/nightly", force=True)
        )
    assert await everything(rows) == before


async def test_who_may_plan_only_plans_only(owner: Caller, calling: Any) -> None:
    await owner.apply("acme", acme())
    manager = await calling("MANAGER", "acme")
    planned = await manager.plan("acme", [connector("nightly")])
    assert len(planned.changes) == 1
    with refused(errors.PermissionDenied) as held:
        await manager.plan("acme", [role("support", "tenants.read")])
    assert "access.manage" in held[0].violations[0].description


@pytest.mark.parametrize(
    "wanted",
    [
        [binding("mine", "ADMIN", "keeper")],
        [binding("mine", "MANAGER", "mallory")],
        [role("more", "config.apply", "connectors.run")],
        [role("keeper", "config.apply", "access.manage", "config.plan", "audit.read")],
        [role("more", "config.apply"), binding("mine", "more", "mallory"), role("x", "audit.read")],
    ],
    ids=["to-himself", "to-a-friend", "a-new-role", "his-own-role", "among-others"],
)
async def test_nobody_gives_more_than_they_have(
    owner: Caller, known: Known, rows: Rows, wanted: list[wanted_pb2.Resource]
) -> None:
    keeper = await known("user", "keeper")
    of_keeper = role("keeper", "config.apply", "access.manage", "config.plan")
    await owner.apply("acme", [*acme(), of_keeper, binding("keeper", "keeper", "keeper")])
    await at_once(lambda: may(keeper, "access.manage"))
    before = await everything(rows)
    for ask in (keeper.plan, keeper.apply):
        with refused(errors.PermissionDenied) as held:
            await ask("acme", wanted)
        assert "more than you have here" in held[0].violations[0].description
    assert await everything(rows) == before
    # What they have they may give.
    await keeper.apply("acme", [binding("friend", "keeper", "friend")])


async def test_a_key_reaches_no_further_than_who_makes_it(
    registry: Registry, owner: Caller, known: Known
) -> None:
    await owner.apply("acme", acme())
    made = await owner.principals.CreatePrincipal(
        principals_pb2.CreatePrincipalRequest(
            parent="tenants/acme", kind="service", display_name="billing"
        )
    )
    narrow = await known("user", "narrow")
    of_narrow = binding("narrow", "ADMIN", "narrow", kinds=["Connector"])
    await owner.apply("acme", [of_narrow, binding("billing", "ADMIN", made.uid, "service")])
    await at_once(lambda: may(narrow, "keys.manage"))

    def wish(name: str, *scopes: str) -> keys_pb2.CreateKeyRequest:
        return keys_pb2.CreateKeyRequest(
            parent="tenants/acme", principal=made.name, display_name=name, scopes=scopes
        )

    # Both are ADMIN, but one of them of connectors alone.
    with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
        await narrow.keys.CreateKey(wish("a", "config.apply"))
    await narrow.keys.CreateKey(wish("b", "connectors.run"))
    # Nor does a key make a wider one for its own principal.
    key = (await owner.keys.CreateKey(wish("c", "keys.manage"))).text
    async with registry.caller(key) as itself:
        with refused(errors.PermissionDenied, "MORE_THAN_YOURS"):
            await itself.keys.CreateKey(wish("d", "*"))


async def test_platform_roles_are_not_bound_in_a_tenant(owner: Caller) -> None:
    await owner.apply("acme", acme())
    for name in ("SUPER_ADMIN", "EXECUTOR", "CONFIG_SOURCE", "STAFF_OWNER"):
        with refused(errors.InvalidArgument) as held:
            await owner.apply("acme", [binding("one", name, "ada")])
        (violation,) = held[0].violations
        assert violation.field == "RoleBinding/one#spec.role"
        assert "must be one of VIEWER, MANAGER, ADMIN, or name a Role" in violation.description


async def test_changes_of_access_are_critical(owner: Caller) -> None:
    planned = await owner.plan("acme", [*acme(), role("r", "audit.read"), binding("b", "r", "ada")])
    risks = {change.kind: change.risk for change in planned.changes}
    assert risks["Role"] == risks["RoleBinding"] == 4
    again = await owner.apply("acme", [*acme(), role("r", "audit.read"), binding("b", "r", "ada")])
    assert again.revision == 1
    planned = await owner.plan("acme", [role("r", "audit.read"), binding("b", "r", "ada")])
    assert not planned.changes


PERMISSIONS = ("tenants.read", "connectors.run", "config.plan", "config.apply", "access.manage")
NAMES = ("ada", "bob", "eve")


def random_document(chance: random.Random) -> wanted_pb2.Resource:
    if chance.random() < 0.4:
        some = chance.sample(PERMISSIONS, chance.randint(1, 4))
        return role(chance.choice(["own-a", "own-b"]), *some)
    kinds = chance.choice([[], [], ["Connector"], ["Role", "RoleBinding"]])
    to = chance.choice(["VIEWER", "MANAGER", "ADMIN", "own-a", "own-b"])
    return binding(f"b{chance.randint(1, 4)}", to, chance.choice(NAMES), kinds=kinds)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_submitted_nobody_has_what_the_submitter_lacked(
    registry: Registry, owner: Caller, known: Known, seed: int
) -> None:
    chance = random.Random(seed)
    callers = {name: await known("user", name) for name in NAMES}
    await owner.apply("acme", acme())

    async def held() -> dict[str, set[str]]:
        # Not by what is remembered: how soon a change is heard of is asked elsewhere.
        registry.access._forget(EVERYTHING)
        return {
            name: {one for one in PERMISSIONS if await may(caller, one)}
            for name, caller in callers.items()
        }

    done = 0
    for _ in range(8):
        keeps = role("own-a", "config.apply", "access.manage", *chance.sample(PERMISSIONS[:3], 2))
        who = chance.choice(NAMES)
        await owner.apply("acme", [keeps, role("own-b", "tenants.read")])
        with contextlib.suppress(grpc.aio.AioRpcError):  # who has it already
            await owner.apply("acme", [binding("b0", "own-a", who)])
        for name in NAMES:
            before = await held()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await callers[name].apply("acme", [random_document(chance)])
                done += 1
            for other, has in (await held()).items():
                assert has - before[other] <= before[name], (name, other)
    assert done > 3
