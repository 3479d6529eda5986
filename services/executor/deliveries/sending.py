"""The work of kind `delivery`: one event is sent to one endpoint, until it has taken it.

Each try is recorded with what it came to, in one transaction with what becomes of the work. A
worker that dies in a call leaves none: the delivery is sent again, with the same `webhook-id`, by
which its receiver knows it (Standard Webhooks 1.0.0). Of a call that lasts, the claim is renewed
and the state says `sending`.
"""

import asyncio
import contextlib
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Bound, Database
from services.chassis.egress import EgressError
from services.chassis.envelope import Unsealable
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, TenonError
from services.chassis.secret import Secret
from services.executor.deliveries import messages, verdicts
from services.executor.deliveries.loading import Loading
from services.executor.deliveries.policies import KIND
from services.executor.deliveries.starting import BODY, TABLE
from services.executor.deliveries.transports import Outgoing, Transports
from services.executor.deliveries.verdicts import NotTaken, Verdict
from services.executor.engine.work import Claimed, Done, Failed, Later, Notes, Outcome, Why
from services.executor.events import accepting
from services.executor.executions.masking import MORE, sentence
from services.executor.registry.credentials import Resolved, Secrets
from services.executor.sealing import Row, opened_bytes
from services.executor.store import deliveries as store
from services.executor.store.deliveries import Attempt, Taken
from services.executor.store.lanes import SET_PAUSE
from services.executor.store.projected import WayOut
from services.providers.brokers import scheme_of

BEFORE_SEND: Final = failpoints.declare("delivery.before_send", "it is sent by the next worker")
AFTER_SEND: Final = failpoints.declare("delivery.after_send", "it is sent again, with the same id")

LASTS_S: Final = 0.5
"""A call that takes longer is seen under way."""
UNAVAILABLE: Final = "CREDENTIAL_UNAVAILABLE"
INACTIVE_S: Final = 60.0
GONE: Final = "the endpoint answered 410 Gone"
UNAUTHORIZED: Final = 401
GIVEN_UP: Final[Mapping[Why, tuple[str, str]]] = {
    "CANCELLED": ("failed", "CANCELLED"),
    "DEADLINE_EXCEEDED": ("dead", "DEADLINE_EXCEEDED"),
    # The last try has said why.
    "EXHAUSTED": ("dead", ""),
}
STATES: Final = {"taken": "success", "again": "retrying", "refused": "failed", "gone": "failed"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A delivery as it stands, what goes out, and what it goes with."""

    number: int
    way: WayOut
    outgoing: Outgoing = field(repr=False)


class Sending:
    """Sends deliveries."""

    name = KIND

    def __init__(
        self,
        database: Database,
        secrets: Secrets,
        transports: Transports,
        notes: Notes,
    ) -> None:
        self._loading = Loading(database)
        self._secrets = secrets
        self._transports = transports
        self._notes = notes

    async def prepare(self, claimed: Claimed) -> Prepared | Outcome:
        """What is to be sent; or at once what becomes of it, where nothing can be."""
        tenant_id = claimed.tenant_id
        delivery = await self._loading.load(claimed)
        if delivery is None or delivery.ended_at is not None:
            return Done()
        way = delivery.way
        if not (way.enabled and way.endpoint is not None):
            gone = "ENDPOINT_GONE" if way.enabled else "TENANT_DISABLED"
            return self._ended(claimed, "failed", gone)
        if not way.endpoint.spec["is_active"]:
            return Later(delay_s=INACTIVE_S)
        number = delivery.attempts + 1
        try:
            body = await self._body(tenant_id, delivery)
            secrets, credential = await self._opened(tenant_id, way)
        except Unsealable:
            return self._ended(claimed, "failed", "PAYLOAD_UNREADABLE")
        except LookupError:
            return self._ended(claimed, "failed", "EVENT_GONE")
        except (NotFound, FailedPrecondition):
            return self._recorded(claimed, number, Verdict("again", reason=UNAVAILABLE))
        outgoing = Outgoing(tenant_id, delivery, way.endpoint, body, secrets, credential)
        return Prepared(number, way, outgoing)

    async def call(self, claimed: Claimed, prepared: Prepared | Outcome) -> Outcome:
        """Send it once."""
        if isinstance(prepared, Outcome):
            return prepared
        BEFORE_SEND.hit()
        begun = time.monotonic()
        verdict = await self._seen(claimed, self._sent(prepared.outgoing))
        AFTER_SEND.hit()
        if verdict.status == UNAUTHORIZED:
            await self._renew(claimed.tenant_id, prepared)
        return self._recorded(claimed, prepared.number, verdict, time.monotonic() - begun)

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """The end of a delivery that was cancelled, late, or not taken at its last try."""
        state, reason = GIVEN_UP[why]
        return self._ended(claimed, state, reason)

    async def _sent(self, outgoing: Outgoing) -> Verdict:
        transport = self._transports[scheme_of(outgoing.endpoint.spec["url"])]
        try:
            verdict = await transport.send(outgoing)
        except NotTaken as error:
            verdict = error.verdict
        except EgressError as error:
            return verdicts.unanswered(error)
        except (InvalidArgument, FailedPrecondition) as error:
            return Verdict("again", reason=error.code)
        return verdicts.with_head(
            verdict, sentence(verdict.head, _hidden(outgoing), verdicts.HEAD_BYTES - len(MORE))
        )

    async def _seen(self, claimed: Claimed, sending: Any) -> Verdict:
        """The verdict of a call; one that lasts is seen under way. Raises ClaimLost."""
        call: asyncio.Task[Verdict] = asyncio.create_task(sending)
        try:
            await asyncio.wait([call], timeout=LASTS_S)
            if not call.done():
                await self._notes.note(
                    claimed, [store.sending(claimed.tenant_id, claimed.target_id)], durable=False
                )
            return await call
        finally:
            call.cancel()

    async def _renew(self, tenant_id: UUID, prepared: Prepared) -> None:
        """Have newer tokens for the next try; where there are none, the refusal stands."""
        wanted, known = prepared.way.credential, prepared.outgoing.credential
        if wanted is not None and known is not None and known.type == "oauth2":
            with contextlib.suppress(TenonError):
                await self._secrets.refresh(tenant_id, wanted.name, known.version)

    async def _body(self, tenant_id: UUID, delivery: Taken) -> bytes:
        """What goes out. Raises LookupError where the event has gone, and Unsealable."""
        if delivery.sealed_body is not None:
            key = await self._secrets.lease_key(tenant_id, delivery.data_key_id)
            row = Row(TABLE, tenant_id, delivery.id)
            return opened_bytes(key, row, BODY, delivery.sealed_body)
        kept = delivery.event
        if kept is None:
            raise LookupError
        sealed = kept.data_key_id is not None
        opener = await self._secrets.lease_key(tenant_id, kept.data_key_id) if sealed else None
        return messages.message(kept.id, delivery.event_type, accepting.opened_body(kept, opener))

    async def _opened(
        self, tenant_id: UUID, way: WayOut
    ) -> tuple[tuple[Secret, ...], Resolved | None]:
        """The endpoint's secrets, the newest first, and its credential."""
        secrets: tuple[Secret, ...] = ()
        if way.secret is not None:
            found = await self._secrets.resolve(tenant_id, way.secret.name, way.secret.version)
            secrets = tuple(each["secret"] for each in (found.values, *found.previous) if each)
        if way.credential is None:
            return secrets, None
        wanted = way.credential
        return secrets, await self._secrets.resolve(tenant_id, wanted.name, wanted.version)

    def _recorded(
        self, claimed: Claimed, number: int, verdict: Verdict, took_s: float = 0.0
    ) -> Outcome:
        """What is recorded of a try, and what becomes of the delivery."""
        attempt = Attempt(
            number, timedelta(seconds=took_s), verdict.status, verdict.reason, verdict.head
        )
        where = (claimed.tenant_id, claimed.target_id)
        record = [store.tried(*where, attempt, STATES[verdict.kind])]
        if verdict.kind == "again":
            return Failed(record=record, worked=False, least_s=verdict.wait_s)
        if verdict.kind == "gone":
            record.append(_pausing(claimed))
        return Done(record=record, worked=True if verdict.kind == "taken" else None)

    def _ended(self, claimed: Claimed, state: str, reason: str) -> Done:
        ending = store.ending(claimed.tenant_id, claimed.target_id, state, reason)
        return Done(record=[ending])


def _hidden(outgoing: Outgoing) -> list[Secret]:
    """What an answer that repeats the request must not give away."""
    known = outgoing.credential
    values = known.values if known else {}
    hidden = [*outgoing.secrets, *values.values()]
    if known and known.type == "basic":
        pair = b":".join(values[part].reveal() for part in ("username", "password"))
        hidden.append(Secret(b64encode(pair)))
    return hidden


def _pausing(claimed: Claimed) -> Bound:
    """Begin nothing more for an endpoint that says it has gone, until operators resume its lane."""
    return Bound(
        SET_PAUSE, {"tenant_id": claimed.tenant_id, "lane_id": claimed.lane_id, "reason": GONE}
    )
