"""Events as people look at them: page by page, and one as it came."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from services.chassis import pages
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition, NotFound
from services.executor.events.accepting import PUBLISHED
from services.executor.events.retelling import known_by, opened, shown_of, tells_of_body
from services.executor.registry.credentials import Secrets
from services.executor.store import event_pages as store
from services.executor.store import projected
from services.executor.store.event_pages import Noted
from services.executor.store.events import Kept
from services.executor.store.execution_pages import NEWEST
from services.executor.store.projected import ProjectedObject


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
        endpoints = await endpoints_for(
            self._database, query.tenant_id, filter(tells_of_body, found)
        )
        seen = [known_by(each, endpoints) for each in found[:size]]
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
        endpoints = {endpoint.object_id: endpoint} if endpoint else {}
        seen = await shown_of(noted, said, endpoints)
        return Seen(known_by(noted, endpoints), said, seen.body)


async def endpoints_for(
    database: Database, tenant_id: UUID, events: Iterable[Noted]
) -> Mapping[UUID, ProjectedObject]:
    """The endpoints that events came by, as far as they are there now, by their ids."""
    came_by = {each.endpoint_id for each in events} - {PUBLISHED}
    return await projected.endpoints_of(database, tenant_id, came_by) if came_by else {}
