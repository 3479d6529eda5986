"""Takes in what a provider sends of all accounts of an app as one stream.

Its owner's secret proves a delivery. Each item becomes an event of the one tenant that has its
account connected and that the owner lets in; what is for nobody becomes the owner's own. Each
tenant has receipts of its own, so that a delivery of which a part was not kept can be sent again.
"""

import asyncio
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from services.chassis import errors
from services.chassis.database import Database
from services.executor.events.accepting import Event
from services.executor.ingress.doors import Place
from services.executor.ingress.grouped import Grouped
from services.executor.ingress.inbound import (
    Door,
    Echo,
    Inbound,
    kept_headers,
    key_of,
    payload_of,
    type_of,
)
from services.executor.ingress.proofs import SIGNATURE, Delivery
from services.executor.store import app_streams as store
from services.executor.store.app_streams import Address, StreamName
from services.providers.app_streams import Item

T = TypeVar("T")

log = logging.getLogger(__name__)

ACCOUNT: Final = "tenon-account"
"""The header that is kept with an item and says of which account it is."""
NOWHERE: Final = Address("", "")
NOT_THEIRS: Final = (errors.NotFound, errors.FailedPrecondition, errors.ResourceExhausted)
"""Why a tenant cannot have an item: it was just disabled, or its quota is used up."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class Counted(NamedTuple):
    """What is counted of items; `known` are those that the tenant got whose account it is."""

    provider: str
    app: str
    known: bool


Counts = Counter[Counted]


@dataclass(frozen=True, slots=True)
class _Delivered:
    """A proven delivery of a stream, and the slug of the stream's owner."""

    stream: StreamName
    owner: str
    door: Door
    delivery: Delivery
    payload: object
    owners_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def items(self) -> Sequence[Item]:
        """What it is made of."""
        app = self.door.webhook.app
        return app.taken_apart(self.payload) if app else ()

    def event(self, item: Item, place: Place | None) -> Event:
        """What an item is to the tenant of a place; without one to the owner."""
        webhook, headers = self.door.webhook, self.delivery.headers
        whose = {ACCOUNT: item.account} if item.account else {}
        body = self.delivery.body if item.said is self.payload else _written(item.said)
        return Event(
            tenant_id=place.tenant_id if place else self.door.tenant_id,
            endpoint=place.parts["WebhookEndpoint"] if place else self.door.endpoint,
            type=type_of(webhook, headers, item.said),
            delivery_key=item.key or key_of(body),
            headers=kept_headers(webhook, headers) | whose,
            payload=item.said,
            body=body,
        )


class _Bound(NamedTuple):
    """An item, and the place it is for; the owner's is for none."""

    item: Item
    place: Place | None


class Streams:
    """The way in for them; `counts` is told of every item that was kept."""

    def __init__(self, inbound: Inbound, database: Database, counts: Counts) -> None:
        self._inbound = inbound
        self._database = database
        self._counts = counts
        self._owners: Grouped[StreamName, list[Address]] = Grouped(self._ask)

    async def receive(self, stream: StreamName, delivery: Delivery) -> Sequence[UUID] | Echo:
        """Take a delivery in; answers with its items' events, or with what it asks to hear.

        Raises NotLetIn for whatever is refused, ResourceExhausted or Unavailable for what should be
        sent again: what was kept of it by then is known by its receipts.
        """
        owner = await self._owner(stream)
        door = self._inbound.let_in(await self._door(stream, owner), delivery)
        payload = payload_of(delivery.body)
        answer = door.webhook.answer("body", payload)
        if answer is not None:
            return Echo(answer)
        with self._inbound.room(door.tenant_id):
            return await self._kept_all(_Delivered(stream, owner.tenant, door, delivery, payload))

    async def _door(self, stream: StreamName, owner: Address) -> Door | None:
        place = await self._inbound.find(owner.tenant, owner.endpoint)
        if not _is_of(place, stream):
            return None
        door = await self._inbound.opened(place, stream[1])
        return door if door and door.webhook.app and door.proof.auth == SIGNATURE else None

    async def _owner(self, stream: StreamName) -> Address:
        owners = []
        if all(map(_NAME.fullmatch, stream)):
            owners = await self._owners.get(stream) or []
        if len(owners) > 1:
            # While it goes from one tenant to another, and only one of them is projected anew.
            log.warning("the stream %s/%s has more than one owner", *stream)
        return owners[0] if len(owners) == 1 else NOWHERE

    async def _ask(self, streams: Sequence[StreamName]) -> Mapping[StreamName, list[Address]]:
        return await store.owners(self._database, streams)

    async def _kept_all(self, delivered: _Delivered) -> list[UUID]:
        items = delivered.items()
        accounts = sorted({item.account for item in items} - {""})
        places = await self._receivers(delivered, accounts)
        of_tenant: dict[UUID | None, list[_Bound]] = defaultdict(list)
        for item in items:
            place = places.get(item.account)
            of_tenant[place.tenant_id if place else None].append(_Bound(item, place))
        kept = await _all(
            self._kept_of_one(delivered, tenant_id, bound) for tenant_id, bound in of_tenant.items()
        )
        return [event_id for of_one in kept for event_id in of_one]

    async def _receivers(
        self, delivered: _Delivered, accounts: Sequence[str]
    ) -> Mapping[str, Place]:
        """Where the items of accounts go; an account that two claim is nobody's."""
        if not accounts:
            return {}
        let_in = delivered.door.endpoint.spec["tenants"]
        found = await store.claims(
            self._database, delivered.stream, delivered.owner, accounts, let_in
        )
        sole = {account: who[0] for account, who in found.items() if len(who) == 1}
        if len(sole) < len(found):
            log.warning("%s/%s: more than one endpoint claims an account", *delivered.stream)
        addresses = list(set(sole.values()))
        places = await _all(self._inbound.find(each.tenant, each.endpoint) for each in addresses)
        there = dict(zip(addresses, places, strict=True))
        return {
            account: there[address]
            for account, address in sole.items()
            if address.active and _receives(there[address], delivered.stream)
        }

    async def _kept_of_one(
        self, delivered: _Delivered, tenant_id: UUID | None, bound: Sequence[_Bound]
    ) -> list[UUID]:
        """Keep the items of a tenant, in their order; the owner's are without one.

        One after another: of all at once most would find too many waiting for the filters of their
        tenant's subscriptions, each time the delivery came again. Raises Busy where too much of the
        tenant is under way.
        """
        # The owner has room already: for the whole delivery.
        room = self._inbound.room(tenant_id) if tenant_id else nullcontext()
        with room:
            return [await self._kept(delivered, item, place) for item, place in bound]

    async def _kept(self, delivered: _Delivered, item: Item, place: Place | None) -> UUID:
        if place is None:
            return await self._kept_by_owner(delivered, item)
        try:
            event = delivered.event(item, place)
            kept = await self._inbound.keep(event, place.subscribed)
        except NOT_THEIRS as error:
            # The stream is everybody's: no tenant may make its provider send all of it again.
            log.warning("%s/%s: kept by the owner: %s", *delivered.stream, error.message)
            return await self._kept_by_owner(delivered, item)
        self._counts[Counted(*delivered.stream, known=True)] += 1
        return kept

    async def _kept_by_owner(self, delivered: _Delivered, item: Item) -> UUID:
        event = delivered.event(item, None)
        # What tenants could not have comes to the owner from many at once.
        async with delivered.owners_turn:
            kept = await self._inbound.keep(event, delivered.door.subscribed)
        self._counts[Counted(*delivered.stream, known=False)] += 1
        return kept


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all come to, once all have ended: then the first fault is raised, if there is one."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for each in ended:
        if isinstance(each, BaseException):
            raise each
    return [each for each in ended if not isinstance(each, BaseException)]


def _is_of(place: Place, stream: StreamName) -> bool:
    """Whether it is an endpoint of that stream, as it is wanted now."""
    endpoint, integration = place.parts.get("WebhookEndpoint"), place.parts.get("Integration")
    return (
        endpoint is not None
        and integration is not None
        and (integration.spec["provider"], endpoint.spec.get("app")) == stream
    )


def _receives(place: Place, stream: StreamName) -> bool:
    """Whether it is an active receiver of that stream."""
    return _is_of(place, stream) and all(
        place.parts[kind].spec["is_active"] for kind in ("WebhookEndpoint", "Integration")
    )


def _written(said: object) -> bytes:
    """An item by itself, in JSON."""
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
