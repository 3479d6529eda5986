"""Links by which end users of a tenant connect an account of theirs: signed, expiring, used once.

A link names its tenant and its row, and an HMAC over both proves that we made it; what it is for,
and until when, stands in the row. Opening it begins a flow that only the same browser can end. It
serves as long as its maker might make it still: not longer than the key that it was made with.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from hmac import compare_digest
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import NotFound, PermissionDenied, invalid
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.registry.audit.log import Actor, Event, Log
from services.registry.keys.vault import Vault
from services.registry.oauth.flows import Flows
from services.registry.oauth.wishes import Addresses, Begun, Starter, Wishes, starter_of, wishes_of
from services.registry.store import oauth as store
from services.registry.store.objects import GET_INTEGRATION

KIND: Final = "ConnectLink"
PATH: Final = "/connect/"
TTL: Final = timedelta(hours=24)
LONGEST_TTL: Final = timedelta(days=30)
OVER: Final = "this link is not valid any more"
_ID_BYTES: Final = 16
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{86}")


class LinkRefused(NotFound):
    """No link of ours, or one that is used or over."""

    reason = "CONNECT_LINK_REFUSED"


@dataclass(frozen=True, slots=True)
class Link:
    """A link that was made."""

    url: str = field(repr=False)
    row: Any = field(repr=False)


class Links:
    """The use cases."""

    def __init__(
        self, database: Database, vault: Vault, flows: Flows, addresses: Addresses, log: Log
    ) -> None:
        self._database = database
        self._vault = vault
        self._flows = flows
        self._addresses = addresses
        self._log = log

    async def create(self, starter: Starter, wishes: Wishes, ttl: timedelta | None) -> Link:
        """Make one. Raises NotFound, InvalidArgument or FailedPrecondition."""
        lasting = TTL if ttl is None else ttl
        if not timedelta(0) < lasting <= LONGEST_TTL:
            raise invalid("ttl", f"must be more than 0s and at most {LONGEST_TTL.days} days")
        self._flows.check(wishes)
        self._addresses.callback()
        tenant_id, link_id = starter.tenant_id, uuid7()
        place = {"tenant_id": tenant_id}
        async with self._database.tenant(tenant_id) as transaction:
            found = await transaction.one(GET_INTEGRATION, **place, name=wishes.integration)
            if found is None:
                raise NotFound(f"there is no integration {wishes.integration}")
            row = {
                **place,
                "link_id": link_id,
                "integration_id": found.integration_id,
                "principal_id": starter.actor.principal_id,
                "actor": starter.written(),
                "wishes": asdict(wishes),
                "lasting": lasting,
            }
            added = await transaction.one(store.ADD_LINK, **row)
            made = Event("create", KIND, wishes.integration, link_id, Risk.MEDIUM)
            await self._log.append(transaction, tenant_id, starter.actor, [made])
        token = self._token(tenant_id, link_id)
        return Link(f"{self._addresses.public_url}{PATH}{token}", added)

    async def page(self, tenant_id: UUID, after: UUID, size: int) -> list[Any]:
        """The rows of links that may still be used, the oldest first."""
        place = {"tenant_id": tenant_id, "after": after, "size": size}
        return await self._database.read(tenant_id, store.LINKS, **place)

    async def revoke(self, tenant_id: UUID, link_id: UUID, actor: Actor) -> Any:
        """Take one back; its row. Raises NotFound for one that is used, over or not there.

        What was begun by it ends no more: that uses the link, and there is nothing to use.
        """
        async with self._database.tenant(tenant_id) as transaction:
            row = await transaction.one(store.REVOKE_LINK, tenant_id=tenant_id, the_link_id=link_id)
            if row is None:
                raise NotFound("there is no such link that may still be used")
            wished = wishes_of(row).integration
            revoked = Event("revoke", KIND, wished, link_id, Risk.MEDIUM)
            await self._log.append(transaction, tenant_id, actor, [revoked])
        return row

    async def open(self, token: str) -> Begun:
        """Begin what a link is for. Raises LinkRefused."""
        tenant_id, link_id = self._read(token)
        rows = await self._database.read(
            tenant_id, store.FIND_LINK, tenant_id=tenant_id, link_id=link_id
        )
        if not rows:
            raise LinkRefused(OVER)
        row = rows[0]
        try:
            await self._flows.caller(row)
        except PermissionDenied:
            raise LinkRefused(OVER) from None
        starter = replace(starter_of(row), link_id=link_id)
        return await self._flows.begin(starter, wishes_of(row), in_browser=True)

    def _token(self, tenant_id: UUID, link_id: UUID) -> str:
        mark = self._vault.link_mark(tenant_id.bytes, link_id.bytes)
        whole = tenant_id.bytes + link_id.bytes + mark
        return urlsafe_b64encode(whole).rstrip(b"=").decode()

    def _read(self, token: str) -> tuple[UUID, UUID]:
        if not _TOKEN.fullmatch(token):
            raise LinkRefused(OVER)
        whole = urlsafe_b64decode(f"{token}==")
        tenant, link, mark = whole[:_ID_BYTES], whole[_ID_BYTES : 2 * _ID_BYTES], whole[32:]
        if not compare_digest(mark, self._vault.link_mark(tenant, link)):
            raise LinkRefused(OVER)
        return UUID(bytes=tenant), UUID(bytes=link)
