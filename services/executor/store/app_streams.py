"""Streams of apps, which bring what is for many tenants: whose each is, and who gets what of it.

Both tables are written with a tenant's projection, inside it, and read across tenants before it is
known whose an item is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Boolean, String, any_, bindparam, delete, func, insert, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from services.chassis.database import Bound, Database, Statement, Transaction
from services.executor.tables import APP_ACCOUNTS, APP_STREAMS, TENANTS

EVERYBODY: Final = "*"
StreamName = tuple[str, str]
"""Provider and app."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A tenant's endpoint by which an app's stream comes in."""

    endpoint_id: UUID
    provider: str
    app: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """An account of whose items a tenant's endpoint wants to hear, while its connection is active.

    One that is not goes on to be claimed, so that nobody else comes by its items. They are heard
    only of the stream that the tenant `app_owner` owns.
    """

    endpoint_id: UUID
    provider: str
    app: str
    account: str
    endpoint: str
    active: bool
    app_owner: str


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint of a tenant, by their names; `active` tells of the connection that claims."""

    tenant: str
    endpoint: str
    active: bool = True


def _owners() -> Statement:
    texts = ARRAY(String)
    asked = (
        func.unnest(bindparam("providers", type_=texts), bindparam("apps", type_=texts))
        .table_valued("provider", "app", name="asked")
        .render_derived()
    )
    these = (APP_STREAMS.c.provider == asked.c.provider) & (APP_STREAMS.c.app == asked.c.app)
    owner = TENANTS.c.tenant_id == APP_STREAMS.c.tenant_id
    return Statement(
        select(APP_STREAMS.c.provider, APP_STREAMS.c.app, TENANTS.c.slug, APP_STREAMS.c.endpoint)
        .select_from(asked)
        .join(APP_STREAMS, these)
        .join(TENANTS, owner)
    )


OWNERS = _owners()
CLAIMS = Statement(
    select(APP_ACCOUNTS.c.account, TENANTS.c.slug, APP_ACCOUNTS.c.endpoint, APP_ACCOUNTS.c.active)
    .join(TENANTS, TENANTS.c.tenant_id == APP_ACCOUNTS.c.tenant_id)
    .where(
        APP_ACCOUNTS.c.provider == bindparam("provider"),
        APP_ACCOUNTS.c.app == bindparam("app"),
        APP_ACCOUNTS.c.app_owner == bindparam("owner"),
        APP_ACCOUNTS.c.account == any_(bindparam("accounts", type_=ARRAY(String))),
        or_(
            bindparam("everybody", type_=Boolean),
            TENANTS.c.slug == any_(bindparam("tenants", type_=ARRAY(String))),
        ),
    )
)
FORGET = [
    Statement(delete(table).where(table.c.tenant_id == bindparam("tenant_id")))
    for table in (APP_STREAMS, APP_ACCOUNTS)
]
ADD_STREAM, ADD_ACCOUNT = (
    Statement(insert(table).values({c.name: bindparam(c.name, type_=c.type) for c in table.c}))
    for table in (APP_STREAMS, APP_ACCOUNTS)
)


async def replace(
    tx: Transaction, tenant_id: UUID, owned: Sequence[Owned], claimed: Sequence[Claimed]
) -> None:
    """Make these the streams a tenant owns and the accounts it hears of, and no others."""
    tenant = {"tenant_id": tenant_id}
    await tx.pipeline(
        [
            *(Bound(statement, tenant) for statement in FORGET),
            *(Bound(ADD_STREAM, tenant | _row(each)) for each in owned),
            *(Bound(ADD_ACCOUNT, tenant | _row(each)) for each in claimed),
        ]
    )


async def owners(
    database: Database, streams: Sequence[StreamName]
) -> dict[StreamName, list[Address]]:
    """Where the streams come in that anybody owns."""
    providers, apps = ([each[at] for each in streams] for at in (0, 1))
    async with database.system() as tx:
        asked = Bound(OWNERS, {"providers": providers, "apps": apps})
        rows = (await tx.conclude([asked]))[0]
    found: dict[StreamName, list[Address]] = {}
    for provider, app, slug, endpoint in rows:
        found.setdefault((provider, app), []).append(Address(slug, endpoint))
    return found


async def claims(
    database: Database,
    stream: StreamName,
    owner: str,
    accounts: Sequence[str],
    tenants: Sequence[str],
) -> Mapping[str, list[Address]]:
    """Who of the tenants that its owner lets in wants to hear of accounts from it, by account.

    Tenants are slugs, or `EVERYBODY`; the owner is let in itself.
    """
    provider, app = stream
    names = {"provider": provider, "app": app, "owner": owner, "accounts": list(accounts)}
    who = {"tenants": [*tenants, owner], "everybody": EVERYBODY in tenants}
    async with database.system() as tx:
        rows = (await tx.conclude([Bound(CLAIMS, names | who)]))[0]
    found: dict[str, list[Address]] = {}
    for account, *whose in rows:
        found.setdefault(account, []).append(Address(*whose))
    return found


def _row(each: Owned | Claimed) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each.__slots__}
