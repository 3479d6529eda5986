"""Takes one webhook in: finds its endpoint, has it prove itself, keeps the event before answering.

Whatever is wrong with tenant, endpoint or proof is one refusal, after comparable work.
"""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from services.chassis import errors, strict_json
from services.chassis.database import Database
from services.chassis.evaluator import Evaluator
from services.chassis.ids import SLUG
from services.chassis.secret import Secret
from services.executor.events import accepting
from services.executor.events.accepting import OF_BODY, Event
from services.executor.events.routing import Subscribed
from services.executor.ingress.doors import Doors, Place
from services.executor.ingress.intake import Intake
from services.executor.ingress.proofs import (
    SIGNATURE,
    WAYS,
    Delivery,
    NotLetIn,
    Proof,
    asks_rightly,
    auth_of,
    proof_of,
    prove,
)
from services.executor.registry.credentials import Resolved, Secrets
from services.executor.registry.uses import Uses
from services.executor.store.events import Stale
from services.executor.store.projected import ProjectedObject
from services.providers.catalog import Catalog
from services.providers.manifest import Webhook

log = logging.getLogger(__name__)

PARTS: Final = ("WebhookEndpoint", "Integration", "Credential")
INBOUND: Final = "INBOUND"
UNKNOWN_TYPE: Final = "unknown"
_PLAIN: Final = re.compile(r"[\x21-\x7e]{1,200}")


class Door(NamedTuple):
    """An active endpoint that lets in whoever shows its proof."""

    tenant_id: UUID
    endpoint: ProjectedObject
    subscribed: Subscribed
    webhook: Webhook
    credential: Resolved
    proof: Proof


@dataclass(frozen=True, slots=True)
class Echo:
    """What a provider hears that asked whether an url is ours: its own words."""

    text: str


class Inbound:
    """The way in for webhooks."""

    def __init__(
        self,
        database: Database,
        registry: Secrets,
        catalog: Catalog,
        evaluator: Evaluator,
        uses: Uses,
        *,
        seal: bool = True,
        public_url: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._registry = registry
        self._catalog = catalog
        self._evaluator = evaluator
        self._uses = uses
        self._seal = seal
        self._public_url = public_url
        self._warned = False
        self._now = now
        self._doors = Doors(database)
        self._intake = Intake(database)
        self._nobodys = Proof(SIGNATURE, [Secret(secrets.token_bytes(32))])

    async def challenged(self, delivery: Delivery, query: Mapping[str, str]) -> Echo:
        """Answer a provider that asks whether an url is ours before it sends anything there.

        Raises NotLetIn where its manifest says nothing of that, or it asks for another url.
        """
        door = await self._door(delivery)
        challenge = door.webhook.challenge if door else None
        if door is None or challenge is None:
            raise NotLetIn("nobody is asked whether this is theirs")
        said = query.get(challenge.token, "") if challenge.token else None
        answer = door.webhook.answer("query", query)
        if answer is None or not asks_rightly(door.proof, delivery, said):
            raise NotLetIn("it is not asked as its provider asks")
        return Echo(answer)

    async def receive(self, delivery: Delivery) -> UUID | Echo:
        """Take a delivery in; answers with its event's id, or with what it asks to hear.

        Raises NotLetIn for whatever is refused, Unavailable for what should be sent again.
        """
        place = self._doors.remembered(delivery.tenant, delivery.endpoint)
        with suppress(NotLetIn, Stale):
            return await self._received(await self._remembered(place), delivery, place.projected_at)
        # Its secret may just have been rotated, or the endpoint made: nobody is refused by memory.
        return await self._received(await self._door(delivery), delivery)

    async def _received(
        self, door: Door | None, delivery: Delivery, as_of: datetime | None = None
    ) -> UUID | Echo:
        """What `receive` does at one door; as it was at `as_of`, if that is given.

        Raises Stale where an answer would be one by memory.
        """
        door = self.let_in(door, delivery)
        event = event_of(door, delivery)
        answer = door.webhook.answer("body", event.payload)
        if answer is not None:
            if as_of is not None:
                raise Stale("nothing that is kept would tell whether it still is")
            return Echo(answer)
        with self.room(door.tenant_id):
            return await self.keep(event, door.subscribed, as_of)

    def let_in(self, door: Door | None, delivery: Delivery) -> Door:
        """The door, if a delivery shows what it asks for. Raises NotLetIn.

        What is shown is looked at also where there is no door: the time an answer takes must not
        tell that.
        """
        prove(door.proof if door else self._nobodys, delivery, self._now())
        if door is None:
            raise NotLetIn("no such endpoint, or it is not active")
        # Strangers can send what is refused: that says nothing of the secret.
        self._uses.note(door.tenant_id, door.credential, "let in")
        return door

    def room(self, tenant_id: UUID) -> AbstractContextManager[None]:
        """Where what comes in for a tenant is worked on. Raises Busy where too much of it is."""
        return self._intake.room(tenant_id)

    async def keep(self, event: Event, to: Subscribed, as_of: datetime | None = None) -> UUID:
        """Keep a proven event and start what it starts; its id, or that of its first delivery.

        Raises NotFound where the tenant has just been disabled, Stale where it was last projected
        at another time than `as_of`, ResourceExhausted where its quota is used up, Unavailable.
        """
        key = await self._registry.lease_key(event.tenant_id)
        taking = await accepting.taken_by(event, to, self._evaluator)
        draft = accepting.draft(event, taking, key, seal=self._seal, as_of=as_of)
        return await self._intake.accept(draft)

    async def find(self, tenant: str, endpoint: str) -> Place:
        """What is wanted of an endpoint (`doors`)."""
        return await self._doors.find(tenant, endpoint)

    async def _remembered(self, place: Place) -> Door | None:
        try:
            return await self.opened(place)
        except errors.Unavailable:
            # A newer credential of the endpoint may be at hand where this one is not.
            return None

    async def _door(self, delivery: Delivery) -> Door | None:
        if not (SLUG.fullmatch(delivery.tenant) and SLUG.fullmatch(delivery.endpoint)):
            return None
        place = await self._doors.find(delivery.tenant, delivery.endpoint)
        return await self.opened(place)

    async def opened(self, place: Place, app: str = "") -> Door | None:
        """The door of a place, if it is one; with `app` to that app's stream, and to no other."""
        try:
            return await self._opened(place, app)
        except (errors.NotFound, errors.FailedPrecondition):
            # Its provider or its credential is gone or not usable.
            return None

    async def _opened(self, place: Place, app: str) -> Door | None:
        if len(place.parts) < len(PARTS):
            return None
        tenant_id = place.tenant_id
        endpoint, integration, credential = (place.parts[kind] for kind in PARTS)
        webhook = self._catalog.get(integration.spec["provider"]).webhook
        active = endpoint.spec["is_active"] and integration.spec["is_active"]
        # What was projected before there were two directions says none.
        inward = endpoint.spec.get("direction") in {None, INBOUND}
        ours = inward and endpoint.spec.get("app", "") == app
        if webhook is None or not (active and ours and auth_of(endpoint.spec) in WAYS):
            return None
        resolved = await self._registry.resolve(tenant_id, credential.name, credential.version)
        scheme = webhook.signature.scheme
        proof = proof_of(endpoint.spec, scheme, resolved, self._public_url)
        door = Door(tenant_id, endpoint, place.subscribed, webhook, resolved, proof)
        return door if proof.known and self._checkable(proof) else None

    def _checkable(self, proof: Proof) -> bool:
        """Whether we know all that a signature is of."""
        if not proof.of_url or self._public_url:
            return True
        if not self._warned:
            self._warned = True
            log.warning("%s signs our url, and TENON_EXECUTOR_PUBLIC_URL is not set", proof.scheme)
        return False


def payload_of(body: bytes) -> object:
    """What a body says in JSON; None where it is not JSON."""
    try:
        return strict_json.parse(body)
    except ValueError:
        return None


def event_of(door: Door, delivery: Delivery) -> Event:
    """What a verified delivery says: its type, the key its redeliveries share, its payload."""
    payload = payload_of(delivery.body)
    return Event(
        tenant_id=door.tenant_id,
        endpoint=door.endpoint,
        type=type_of(door.webhook, delivery.headers, payload),
        delivery_key=_delivery_key(door.webhook, delivery),
        headers=kept_headers(door.webhook, delivery.headers),
        payload=payload,
        body=delivery.body,
    )


def kept_headers(webhook: Webhook, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that say what a delivery is: never a credential, a cookie or a signature."""
    names = _telling(webhook.delivery_id_header, webhook.event_type.header)
    # A header may hold bytes that are no text.
    return {n: headers[n].encode(errors="replace").decode() for n in names if n in headers}


@lru_cache(maxsize=256)
def _telling(*of_provider: str | None) -> tuple[str, ...]:
    names = ("content-type", "user-agent", *of_provider)
    return tuple(dict.fromkeys(name.lower() for name in names if name))


def type_of(webhook: Webhook, headers: Mapping[str, str], payload: object) -> str:
    """The type of what a payload says, for people and subscriptions."""
    said = webhook.event_type.read(headers, payload) or ""
    return said if _PLAIN.fullmatch(said) else UNKNOWN_TYPE


def _delivery_key(webhook: Webhook, delivery: Delivery) -> str:
    """The delivery's own id; without a usable one, what its body is."""
    given = delivery.headers.get((webhook.delivery_id_header or "").lower(), "")
    return given if _PLAIN.fullmatch(given) else key_of(delivery.body)


def key_of(body: bytes) -> str:
    """The key of what has no id: what it is."""
    return f"{OF_BODY}{hashlib.sha256(body).hexdigest()}"
