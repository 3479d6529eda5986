"""Takes one webhook in: finds its endpoint, verifies raw bytes, keeps the event before answering.

Whatever is wrong with tenant, endpoint or signature is one refusal, after comparable work.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.chassis import errors, failpoints, strict_json
from services.chassis.database import Database
from services.chassis.evaluator import Evaluator
from services.chassis.ids import SLUG
from services.chassis.secret import Secret
from services.executor import events
from services.executor.credentials import Resolved
from services.executor.events import Arrived, Event
from services.executor.registry import Registry
from services.executor.store import projected, tenants
from services.executor.store.projected import ProjectedObject
from services.executor.uses import Uses
from services.providers.catalog import Catalog
from services.providers.manifest import SignatureScheme, Webhook
from services.providers.signatures import SignatureRefused, verify

BEFORE_COMMIT: Final = failpoints.declare("ingress.before_commit", "nothing of the event is there")
AFTER_COMMIT: Final = failpoints.declare("ingress.after_commit", "the event is there and runs once")

PARTS: Final = ("WebhookEndpoint", "Integration", "Credential")
SECRET: Final = "secret"  # noqa: S105 - the name of a part
UNKNOWN_TYPE: Final = "unknown"
NOWHERE: Final = UUID(int=0)
STRANGERS_SCHEME: Final[SignatureScheme] = "github_sha256"
_PLAIN: Final = re.compile(r"[\x21-\x7e]{1,200}")


class NotLetIn(errors.NotFound):
    """No such endpoint, or not for this sender; `detail` is for operators alone."""

    def __init__(self, detail: str) -> None:
        super().__init__("not found")
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook as it came over the wire; header names are lower-case."""

    tenant: str
    endpoint: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Door:
    """An active endpoint; it lets in what is signed with one of its secrets, the newest first."""

    tenant_id: UUID
    endpoint: ProjectedObject
    webhook: Webhook
    credential: Resolved
    secrets: Sequence[Secret]


class Inbound:
    """The way in for webhooks."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        catalog: Catalog,
        evaluator: Evaluator,
        uses: Uses,
        *,
        seal: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._registry = registry
        self._catalog = catalog
        self._evaluator = evaluator
        self._uses = uses
        self._seal = seal
        self._now = now
        self._nobodys = Secret(secrets.token_bytes(32))

    async def receive(self, delivery: Delivery) -> UUID:
        """Take a delivery in; answers with its event's id.

        Raises NotLetIn for whatever is refused, Unavailable for what should be sent again.
        """
        door = await self._door(delivery)
        self._verify(door, delivery)
        if door is None:
            raise NotLetIn("no such endpoint, or it is not active")
        # Strangers can send what is refused: that says nothing of the secret.
        self._uses.note(door.tenant_id, door.credential, "let in")
        key = await self._registry.lease_key(door.tenant_id)
        event = event_of(door, delivery)
        taking = await events.taken_by(self._database, event, self._evaluator)
        async with self._database.tenant(door.tenant_id) as tx:
            (accepted,) = await events.accept(tx, [Arrived(event, taking)], key, seal=self._seal)
            BEFORE_COMMIT.hit()
        AFTER_COMMIT.hit()
        return accepted

    async def _door(self, delivery: Delivery) -> Door | None:
        if not (SLUG.fullmatch(delivery.tenant) and SLUG.fullmatch(delivery.endpoint)):
            return None
        found = await tenants.find(self._database, delivery.tenant)
        # An unknown tenant costs the same look, inside no tenant.
        tenant_id = found.tenant_id if found is not None and found.enabled else NOWHERE
        parts = await projected.way_in(self._database, tenant_id, delivery.endpoint)
        try:
            return await self._opened(tenant_id, parts)
        except (errors.NotFound, errors.FailedPrecondition):
            # Its provider or its credential is gone or not usable.
            return None

    async def _opened(self, tenant_id: UUID, parts: Mapping[str, ProjectedObject]) -> Door | None:
        if len(parts) < len(PARTS):
            return None
        endpoint, integration, credential = (parts[kind] for kind in PARTS)
        webhook = self._catalog.get(integration.spec["provider"]).webhook
        active = endpoint.spec["is_active"] and integration.spec["is_active"]
        if not active or webhook is None:
            return None
        resolved = await self._registry.resolve(tenant_id, credential.name, credential.version)
        known = [each[SECRET] for each in (resolved.values, *resolved.previous) if SECRET in each]
        return Door(tenant_id, endpoint, webhook, resolved, known) if known else None

    def _verify(self, door: Door | None, delivery: Delivery) -> None:
        """Verify also where there is no door: the time an answer takes must not tell that."""
        scheme = door.webhook.signature.scheme if door else STRANGERS_SCHEME
        known = door.secrets if door else [self._nobodys]
        try:
            verify(scheme, known, delivery.headers, delivery.body, self._now())
        except SignatureRefused as error:
            raise NotLetIn(error.detail) from None


def event_of(door: Door, delivery: Delivery) -> Event:
    """What a verified delivery says: its type, the key its redeliveries share, its payload."""
    try:
        payload = strict_json.parse(delivery.body)
    except ValueError:
        payload = None
    return Event(
        tenant_id=door.tenant_id,
        endpoint=door.endpoint,
        type=_type(door.webhook, delivery.headers, payload),
        delivery_key=_delivery_key(door.webhook, delivery),
        headers=kept_headers(door.webhook, delivery.headers),
        payload=payload,
        body=delivery.body,
    )


def kept_headers(webhook: Webhook, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that say what a delivery is: never a credential, a cookie or a signature."""
    names = ("content-type", "user-agent", webhook.delivery_id_header, webhook.event_type.header)
    known = {name.lower() for name in names if name}
    # A header may hold bytes that are no text.
    return {n: v.encode(errors="replace").decode() for n, v in headers.items() if n in known}


def _type(webhook: Webhook, headers: Mapping[str, str], payload: object) -> str:
    said = webhook.event_type.read(headers, payload) or ""
    return said if _PLAIN.fullmatch(said) else UNKNOWN_TYPE


def _delivery_key(webhook: Webhook, delivery: Delivery) -> str:
    """The delivery's own id; without a usable one, what its body is."""
    given = delivery.headers.get(webhook.delivery_id_header.lower(), "")
    if _PLAIN.fullmatch(given):
        return given
    return f"sha256:{hashlib.sha256(delivery.body).hexdigest()}"
