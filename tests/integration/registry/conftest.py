"""A real registry on real PostgreSQL, and callers with keys of every role."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import psycopg
import pytest

from services.chassis import envelope
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.guesses import Allowance, Guesses
from services.chassis.interceptors import Gates
from services.chassis.process import background
from services.chassis.secret import Secret
from services.chassis.server import Listen, serving
from services.registry import opening
from services.registry.access.control import AccessControl
from services.registry.access.tokens import Tokens
from services.registry.feed import Feed
from services.registry.settings import Settings
from services.registry.store.tenants import Tenants
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.documents import acme
from tests.wiring import settings, wired

Calls = Callable[..., Awaitable[Caller]]


@pytest.fixture
def tokens() -> Tokens:
    """Whose tokens count: nobody's, unless a test says otherwise."""
    return Tokens()


@pytest.fixture
def guesses() -> Guesses:
    """All wrong credentials of a test come from one address, which may send many."""
    return Guesses(Allowance(burst=100_000))


@pytest.fixture
def registry_settings() -> Settings:
    """What the registry is told, besides where its database is."""
    return settings()


@pytest.fixture
async def registry(
    registry_conninfos: tuple[Secret, Secret],
    superuser: Secret,
    tokens: Tokens,
    guesses: Guesses,
    registry_settings: Settings,
) -> AsyncIterator[Registry]:
    """The service, wired as its main wires it, on a free port; its loops run when a test says so."""
    async with Database(*registry_conninfos, constraints=opening.CONSTRAINTS) as database:
        access = AccessControl(database, envelope.new_key(), tokens=tokens, guesses=guesses)
        tenants, feed = Tenants(database), Feed(database)
        gates = Gates(access, tenants).in_order()
        async with (
            wired(database, access, tenants, feed, registry_settings) as (base, wiring),
            background(access.invalidations.listen()),
            serving(wiring.services, gates, Listen("127.0.0.1:0"), grace_s=0.1) as port,
        ):
            yield Registry(
                f"127.0.0.1:{port}", database, access, tenants, feed, superuser, base.vault,
                base.holding, wiring,
            )  # fmt: skip


@pytest.fixture
async def calling(registry: Registry) -> AsyncIterator[Calls]:
    """Opens channels with fresh keys: `await calling("ADMIN", "acme")`."""
    async with AsyncExitStack() as channels:

        async def call(role: str, tenant: str = "", **key: object) -> Caller:
            channel = open_channel(
                registry.target,
                key=await registry.key(role, tenant, **key),  # type: ignore[arg-type]
                reason="a test",
            )
            return Caller(await channels.enter_async_context(channel))

        yield call


@pytest.fixture
async def owner(calling: Calls) -> Caller:
    """Whoever may do everything, everywhere."""
    return await calling("SUPER_ADMIN")


@pytest.fixture
async def executor(owner: Caller, calling: Calls) -> Caller:
    """The executor's channel, in a deployment with two tenants."""
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug))
    return await calling("EXECUTOR", kind="service")


@pytest.fixture
async def anybody(registry: Registry) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that sends no key."""
    async with open_channel(registry.target) as channel:
        yield channel


@pytest.fixture
async def rows(superuser: Secret) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    """Sees every row of every table."""
    async with await psycopg.AsyncConnection.connect(
        superuser.reveal_text(), autocommit=True
    ) as connection:
        yield connection
