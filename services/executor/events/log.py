"""Events as people look at them: page by page, and one as it came."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition, NotFound
from services.executor.events.accepting import OF_BODY, PUBLISHED
from services.executor.events.retelling import opened
from services.executor.redacting import rules_of, shown
from services.executor.registry.credentials import Secrets
from services.executor.store import event_pages as store
from services.executor.store import projected
from services.executor.store.event_pages import Noted
from services.executor.store.events import Kept
from services.executor.store.execution_pages import NEWEST


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events to list: of a type; empty does not filter."""

    tenant_id: UUID
    type: str = ""
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, the newest first, and the token of the next page."""

    events: tuple[Noted, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Seen:
    """An event in the clear; `shown` is what people may see of its body."""

    noted: Noted
    said: Kept
    shown: bytes = field(repr=False)


class EventLog:
    """The use cases."""

    def __init__(self, database: Database, secrets: Secrets) -> None:
        self._database = database
        self._secrets = secrets

    async def page(self, query: EventQuery) -> EventPage:
        """A page of events without what they say, the newest first."""
        size = pages.page_size(query.page_size)
        marks = (str(query.tenant_id), query.type)
        after = pages.after_of(query.page_token, *marks)
        before = UUID(after) if after else NEWEST
        found = await store.page(self._database, query.tenant_id, query.type, before, size + 1)
        token = pages.next_token(str(found[size - 1].id), *marks) if len(found) > size else ""
        rules = await rules_for(self._database, query.tenant_id, filter(_tells, found))
        seen = [known_by(each, rules.get(each.endpoint_id, ())) for each in found[:size]]
        return EventPage(tuple(seen), token)

    async def get(self, tenant_id: UUID, event_id: UUID) -> Seen:
        """An event as it came, and as the endpoint it came by lets people see it now.

        Raises NotFound, or FailedPrecondition where it does not open.
        """
        noted, kept, endpoint = await store.get(self._database, tenant_id, event_id)
        if noted is None or kept is None:
            raise NotFound(f"events/{event_id} does not exist")
        said = await opened(self._secrets, kept)
        if said is None:
            raise FailedPrecondition(
                "the event is there, but what it says does not open any more",
                reason="PAYLOAD_UNREADABLE",
            )
        rules = rules_of(endpoint.spec if endpoint else None)
        seen = await asyncio.to_thread(shown, said.body, rules) if rules else said.body
        return Seen(known_by(noted, rules), said, seen)


async def rules_for(
    database: Database, tenant_id: UUID, events: Iterable[Noted]
) -> Mapping[UUID, Sequence[str]]:
    """What the endpoints that events came by let nobody see, by the endpoints' ids."""
    came_by = {each.endpoint_id for each in events} - {PUBLISHED}
    return await projected.redacting(database, tenant_id, came_by) if came_by else {}


def known_by(noted: Noted, rules: Sequence[str]) -> Noted:
    """An event as people may know it: not by what its body is, where they must not see all of it.

    Whoever has the rest of a body could try what is masked in it until the key is the same.
    """
    return replace(noted, delivery_key="") if rules and _tells(noted) else noted


def _tells(noted: Noted) -> bool:
    return noted.delivery_key.startswith(OF_BODY)
