"""Events that internal services publish: taken in together, and routed like those of providers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import invalid
from services.chassis.evaluator import Evaluator
from services.chassis.expressions import Json
from services.chassis.ids import DOTTED, DOTTED_RULE, uuid7
from services.executor.events import accepting
from services.executor.events.accepting import Draft, Event
from services.executor.events.payloads import check_payloads
from services.executor.events.routing import Subscribed, subscribed
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.store import projected

MOST: Final = 100
LARGEST: Final = 2**20
"""Bytes of all payloads of a call as JSON."""
_KEY: Final = re.compile(r"[\x21-\x7e]{0,200}")
LONGEST_TYPE: Final = 200


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event as a service tells it; without a `key` it is never the same as another."""

    type: str
    payload: Json = field(repr=False)
    key: str = ""


class Publishing:
    """The use case."""

    def __init__(
        self, database: Database, secrets: Secrets, evaluator: Evaluator, *, seal: bool = True
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._evaluator = evaluator
        self._seal = seal

    async def publish(self, tenant_id: UUID, new: Sequence[NewEvent]) -> list[UUID]:
        """Take events in, all or none; their ids in order, of a known key the first one's.

        Raises InvalidArgument, and ResourceExhausted where the tenant's quota is used up.
        """
        check(new)
        key = await self._secrets.lease_key(tenant_id)
        types = sorted({each.type for each in new})
        subscriptions, known = await projected.published(self._database, tenant_id, types)
        await check_payloads([(each.type, each.payload) for each in new], known)
        to = await subscribed(self._database, tenant_id, subscriptions)
        drafts = [await self._draft(tenant_id, each, to, key) for each in new]
        async with self._database.tenant(tenant_id) as tx:
            return await accepting.accept(tx, drafts)

    async def _draft(
        self,
        tenant_id: UUID,
        new: NewEvent,
        to: Subscribed,
        key: LeasedKey,
    ) -> Draft:
        event_id = uuid7()
        event = Event(
            tenant_id=tenant_id,
            endpoint=None,
            type=new.type,
            delivery_key=new.key or str(event_id),
            headers={},
            payload=new.payload,
            body=_body(new),
            id=event_id,
        )
        taking = await accepting.taken_by(event, to, self._evaluator)
        return accepting.draft(event, taking, key, seal=self._seal)


def _body(new: NewEvent) -> bytes:
    return json.dumps(new.payload, ensure_ascii=False, separators=(",", ":")).encode()


def check(new: Sequence[NewEvent]) -> int:
    """How many bytes the payloads have. Raises InvalidArgument for what no call may tell."""
    if not 1 <= len(new) <= MOST:
        raise invalid("events", f"must be 1 to {MOST}")
    for index, each in enumerate(new):
        if not (DOTTED.fullmatch(each.type) and len(each.type) <= LONGEST_TYPE):
            raise invalid(
                f"events[{index}].type",
                f"must be {DOTTED_RULE}, at most {LONGEST_TYPE}",
            )
        if not _KEY.fullmatch(each.key):
            raise invalid(f"events[{index}].key", "must be at most 200 printable ASCII characters")
    size = sum(len(_body(each)) for each in new)
    if size > LARGEST:
        raise invalid("events", f"payloads must have at most {LARGEST} bytes as JSON in all")
    return size
