"""An event that is kept, as it was when it was routed; what it says, opened, and as it is shown."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from services.chassis.envelope import Unsealable
from services.executor.events import accepting
from services.executor.events.accepting import Event
from services.executor.redacting import rules_of, shown
from services.executor.registry.credentials import Secrets
from services.executor.store.event_pages import Noted
from services.executor.store.events import Kept
from services.executor.store.projected import ProjectedObject


async def opened(secrets: Secrets, kept: Kept) -> Kept | None:
    """What an event says, in the clear; None: it does not open any more. Raises Unavailable."""
    try:
        sealed_by = kept.data_key_id
        key = await secrets.lease_key(kept.tenant_id, sealed_by) if sealed_by else None
        return accepting.opened(kept, key)
    except Unsealable:
        return None


def retold(noted: Noted, said: Kept, endpoints: Mapping[UUID, ProjectedObject]) -> Event:
    """The event, by what it says in the clear; `endpoints` are those there are now, by id."""
    whence = endpoints.get(noted.endpoint_id)
    return accepting.event_of(said, noted.type, whence, noted.delivery_key)


async def shown_of(noted: Noted, said: Kept, endpoints: Mapping[UUID, ProjectedObject]) -> Kept:
    """What an event says, as far as the endpoint it came by lets people see it now.

    Where that has gone nobody knows any more what it let them see: nothing is shown.
    """
    if noted.endpoint_id == accepting.PUBLISHED:
        return said
    whence = endpoints.get(noted.endpoint_id)
    if whence is None:
        return replace(said, body=b"")
    rules = rules_of(whence.spec)
    return replace(said, body=await asyncio.to_thread(shown, said.body, rules)) if rules else said


def known_by(noted: Noted, endpoints: Mapping[UUID, ProjectedObject]) -> Noted:
    """An event as people may know it: not by what its body is, where they must not see all of it.

    Whoever has the rest of a body could try what is masked in it until the key is the same.
    """
    whence = endpoints.get(noted.endpoint_id)
    exact = noted.endpoint_id == accepting.PUBLISHED or (whence and not rules_of(whence.spec))
    return noted if exact or not tells_of_body(noted) else replace(noted, delivery_key="")


def tells_of_body(noted: Noted) -> bool:
    """Whether its key is a digest of its body."""
    return noted.delivery_key.startswith(accepting.OF_BODY)


def source_of(noted: Noted, event: Event) -> str | None:
    """The name of the endpoint it came by, empty for what was published.

    None where that endpoint has gone, so that nobody is subscribed to it.
    """
    if noted.endpoint_id == accepting.PUBLISHED:
        return ""
    return None if event.endpoint is None else event.endpoint.name


def is_subscribed(subscription: ProjectedObject, source: str | None) -> bool:
    """Whether a subscription is to events of a source."""
    return (subscription.spec.get("endpoint") or "") == source
