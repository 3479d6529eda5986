"""A running ingress with what stands behind it, and what a tenant of it wants."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

import aiohttp
import psycopg

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.evaluator import Evaluator
from services.chassis.secret import Secret
from services.executor.events import accepting
from services.executor.ingress import server
from services.executor.ingress.inbound import Inbound
from services.executor.ingress.streams import Counts, Streams
from services.executor.registry.client import Registry
from services.executor.registry.connecting import RegistryConnecting
from services.executor.registry.projection import Projection
from services.executor.registry.uses import Uses
from services.executor.store import events as store
from services.executor.store.events import Kept
from services.providers.catalog import Catalog
from services.sandbox.sender import send_webhook
from tests.integration.executor.running_registry import Document, RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]
SECRET = Secret("It's a Secret to Everybody")
BODY = b'{"action":"opened","issue":{"number":7}}'


def secret_document(secret: Secret, **spec: object) -> Document:
    values = {"secret": {"plain": b64encode(secret.reveal()).decode()}}
    return document("Credential", "hook-secret", type="webhook_secret", values=values, **spec)


def wanted() -> list[Document]:
    return [
        document("Tenant", "acme", display_name="Acme"),
        secret_document(SECRET),
        document(
            "Credential", "token", type="bearer", values={"token": {"plain": "c2VjcmV0"}}
        ),
        document("Integration", "github", provider="github", credential="token"),
        document(
            "Integration", "asleep", provider="github", credential="token", is_active=False
        ),
        document("Integration", "web", provider="http", base_url="https://example.com"),
        document("WebhookEndpoint", "hook", integration="github", secret="hook-secret"),
        document(
            "WebhookEndpoint", "off", integration="github", secret="hook-secret", is_active=False
        ),
        document("WebhookEndpoint", "sleepy", integration="asleep", secret="hook-secret"),
        document("WebhookEndpoint", "mute", integration="web", secret="hook-secret"),
        connector("triage"),
        connector("idle", is_active=False),
        document("Subscription", "opened", endpoint="hook", connector="triage",
                 event_types=["issues.opened"]),
        document("Subscription", "numbered", endpoint="hook", connector="triage",
                 filter="event.payload.issue.number == 7"),
        document("Subscription", "to-idle", endpoint="hook", connector="idle"),
        document("Subscription", "elsewhere", endpoint="sleepy", connector="triage"),
    ]  # fmt: skip


def connector(name: str, **spec: object) -> Document:
    steps = [{"name": "who", "integration": "github", "operation": "get_authenticated_user"}]
    return document("Connector", name, steps=steps, **spec)


@dataclass
class House:
    """A running ingress and what stands behind it."""

    url: str
    tenant_id: UUID
    service: RunningRegistry
    registry: Registry
    projection: Projection
    inbound: Inbound
    uses: Uses
    database: Database
    admin: Admin
    session: aiohttp.ClientSession
    counts: Counts

    async def send(
        self, body: bytes = BODY, event: str = "issues", endpoint: str = "hook", **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """A delivery as GitHub would send it."""
        url = f"{self.url}/v1/acme/{endpoint}"
        secret = more.pop("secret", SECRET)
        status, answer = await send_webhook(
            url, event, body, secret, more.pop("delivery_id", None), self.session
        )
        return status, json.loads(answer)

    async def post(
        self, path: str, body: bytes | BytesIO | AsyncIterator[bytes], headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        async with self.session.post(self.url + path, data=body, headers=headers) as answer:
            kept = {k.lower(): v for k, v in answer.headers.items() if k.lower() != "date"}
            return answer.status, await answer.read(), kept

    async def rows(self, query: str) -> list[Any]:
        return await (await self.admin.execute(query)).fetchall()

    async def count(self, table: str) -> int:
        ((number,),) = await self.rows(f"SELECT count(*) FROM executor.{table}")
        return int(number)

    async def events(self) -> list[Kept]:
        """What was kept of every delivery, opened, in the order they came."""
        ids = await self.rows("SELECT id FROM executor.events ORDER BY id")
        return [await self.event(event_id) for (event_id,) in ids]

    async def event(self, event_id: UUID, tenant_id: UUID | None = None) -> Kept:
        tenant_id = tenant_id or self.tenant_id
        kept = await store.find(self.database, tenant_id, event_id)
        assert kept is not None
        key = await self.registry.lease_key(tenant_id, kept.data_key_id)
        return accepting.opened(kept, key)

    async def want(self, *documents: Document, tenant: str = "acme") -> UUID:
        await self.service.apply(tenant, *documents)
        tenant_id = await self.service.tenant_id(tenant)
        await self.projection.project(tenant_id)
        return tenant_id


@asynccontextmanager
async def ingress_house(
    registry_service: RunningRegistry,
    registry: Registry,
    database: Database,
    admin: Admin,
    public_url: str = "",
) -> AsyncIterator[House]:
    """The ingress of the tenant `acme`, who wants `wanted()`."""
    await registry_service.apply("acme", *wanted())
    tenant_id = await registry_service.tenant_id("acme")
    projection = Projection(database, registry)
    await projection.project(tenant_id)
    evaluator = Evaluator()
    uses = Uses()
    inbound = Inbound(database, registry, Catalog.load(), evaluator, uses, public_url=public_url)
    counts = Counts()
    streams = Streams(inbound, database, counts)
    async with (
        evaluator,
        open_channel(registry_service.target, key=registry_service.service_key) as channel,
        server.serving(inbound, streams, RegistryConnecting(channel), "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
    ):
        yield House(
            f"http://127.0.0.1:{port}", tenant_id, registry_service, registry, projection,
            inbound, uses, database, admin, session, counts,
        )  # fmt: skip
