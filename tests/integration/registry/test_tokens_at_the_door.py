"""Whoever a trusted issuer speaks for comes in by a token; everybody else is refused alike."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from sqlalchemy import insert
from tenon.registry.v1 import access_service_pb2 as pb
from tenon.registry.v1 import tenant_service_pb2 as tenant_pb

from services.chassis.channel import open_channel
from services.chassis.database import Statement
from services.chassis.errors import Unauthenticated, Unavailable
from services.chassis.secret import Secret
from services.chassis.status import from_rpc_error
from services.registry import tables as t
from services.registry.access.issuers import Issuer
from services.registry.access.jwks import Keys
from services.registry.access.tokens import Tokens
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import tenant
from tests.tokens import AUDIENCE, ISSUER, TokenIssuer, segment

OURS = TokenIssuer()
PUBLISHED = {"down": False}


async def fetch() -> bytes:
    if PUBLISHED["down"]:
        raise Unavailable("down")
    return OURS.published()


@pytest.fixture
def tokens() -> Tokens:
    PUBLISHED["down"] = False
    issuer = Issuer.model_construct(issuer=ISSUER, audience=AUDIENCE, jwks="", kind="user")
    return Tokens([(issuer, Keys(ISSUER, fetch))])


async def bind(registry: Registry, slug: str, subject: str, role: str = "VIEWER") -> UUID:
    """Name somebody of the issuer in a tenant; answers with the tenant's id."""
    tenant_id = await registry.tenant_id(slug)
    row = {
        "tenant_id": tenant_id,
        "binding_id": uuid4(),
        "name": f"of-{subject}",
        "labels": {},
        "annotations": {},
        "revision": 0,
        "role": role,
        "principal_kind": "user",
        "issuer": ISSUER,
        "subject": subject,
        "kinds": [],
        "sources": ["*"],
    }
    async with registry.database.tenant(tenant_id) as transaction:
        await transaction.run(Statement(insert(t.role_bindings).values(row)))
    return tenant_id


async def who(registry: Registry, token: str) -> pb.WhoAmIResponse:
    async with open_channel(registry.target, key=Secret(token)) as channel:
        return await Caller(channel).access.WhoAmI(pb.WhoAmIRequest(), timeout=10)


async def test_a_user_whom_a_binding_names_comes_to_be_at_first_sight(
    registry: Registry, owner: Caller, rows: Any
) -> None:
    await owner.apply("acme", [tenant("acme")])
    await bind(registry, "acme", "ada")
    token = OURS.token("ada", name="Ada", email="ada@acme.example")
    answers = await asyncio.gather(*(who(registry, token + "") for _ in range(20)))
    assert {each.principal.display_name for each in answers} == {"Ada"}
    assert [each.tenant for each in answers[0].grants] == ["acme"]
    found = await rows.execute(
        "SELECT kind, issuer, subject, email FROM registry.principals WHERE subject = 'ada'"
    )
    assert await found.fetchall() == [("user", ISSUER, "ada", "ada@acme.example")]


async def test_first_sights_at_once_make_one_principal(
    registry: Registry, owner: Caller, rows: Any
) -> None:
    await owner.apply("acme", [tenant("acme")])
    await bind(registry, "acme", "ada")
    # Different tokens, so that no question is joined.
    tokens = [OURS.token("ada", jti=f"t-{number}") for number in range(20)]
    answers = await asyncio.gather(*(who(registry, token) for token in tokens))
    assert len({each.principal.uid for each in answers}) == 1
    found = await rows.execute("SELECT count(*) FROM registry.principals WHERE subject = 'ada'")
    assert await found.fetchone() == (1,)


async def test_somebody_nobody_named_is_refused_like_a_forger(
    registry: Registry, owner: Caller, rows: Any
) -> None:
    await owner.apply("acme", [tenant("acme")])
    await bind(registry, "acme", "ada")
    told = set()
    for token in (
        OURS.token("eve"),
        TokenIssuer().token("ada"),
        OURS.token("ada", aud="other"),
        OURS.token("ada", exp=1),
        OURS.token("ada", padding="x" * 9000),
        f"{segment({'alg': 'none'})}.{segment(OURS.claims('ada'))}.",
        "tnk_test_nobody",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as held:
            await who(registry, token)
        error = from_rpc_error(held.value)
        told.add(
            (type(error), error.code, error.message, *sorted(set(error.metadata) - {"request_id"}))
        )
    assert told == {(Unauthenticated, "UNAUTHENTICATED", "the credential is not valid")}
    found = await rows.execute(
        "SELECT count(*) FROM registry.principals WHERE issuer = %s", [ISSUER]
    )
    assert await found.fetchone() == (0,)


async def test_a_token_gives_what_its_bindings_give_and_no_more(
    registry: Registry, owner: Caller
) -> None:
    await owner.apply("acme", [tenant("acme")])
    await owner.apply("globex", [tenant("globex")])
    await bind(registry, "acme", "ada")
    async with open_channel(registry.target, key=Secret(OURS.token("ada"))) as channel:
        caller = Caller(channel)
        found = await caller.tenants.GetTenant(
            tenant_pb.GetTenantRequest(name="tenants/acme"), timeout=10
        )
        assert found.name == "tenants/acme"
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.tenants.GetTenant(
                tenant_pb.GetTenantRequest(name="tenants/globex"), timeout=10
            )


async def test_a_token_of_a_disabled_user_is_refused(
    registry: Registry, owner: Caller, rows: Any
) -> None:
    await owner.apply("acme", [tenant("acme")])
    await bind(registry, "acme", "ada")
    await who(registry, OURS.token("ada"))
    await rows.execute("UPDATE registry.principals SET disabled_at = now() WHERE subject = 'ada'")
    with refused(Unauthenticated):
        await who(registry, OURS.token("ada", jti="another"))


async def test_an_issuer_that_does_not_answer_is_no_refusal(
    registry: Registry, calling: Calls
) -> None:
    await calling("SUPER_ADMIN")
    PUBLISHED["down"] = True
    with refused(Unavailable):
        await who(registry, OURS.token("ada"))
