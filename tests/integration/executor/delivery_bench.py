"""A tenant whose events go out: an endpoint that answers as it is told, and a worker that sends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from aiohttp import web

from services.chassis.database import Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.evaluator import Evaluator
from services.chassis.secret import Secret
from services.executor.deliveries.broker_pool import Links
from services.executor.deliveries.brokers import brokers_of
from services.executor.deliveries.sending import Sending
from services.executor.deliveries.subjects import Subjects
from services.executor.deliveries.webhooks import webhooks
from services.executor.engine.recorder import Recorder
from services.executor.engine.worker import Worker, WorkerLimits
from services.executor.events.publishing import NewEvent, Publishing
from services.executor.registry.credentials import Resolved, Secrets
from services.executor.store import delivery_pages, projected
from services.executor.store.projected import ProjectedObject
from tests.integration.executor.execution_bench import Vault

SECRET: Final = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OLDER: Final = Secret("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
QUICK: Final = ["0.05s", "0.05s", "0.05s"]


@dataclass
class Got:
    """A request that the receiver got."""

    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


@dataclass
class Receiver:
    """A customer's server: answers with what `answers` gives next, else 200."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answers: list[web.Response | float] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.got.append(Got({k.lower(): v for k, v in request.headers.items()}, body))
        told = self.answers.pop(0) if self.answers else web.Response(text="thanks")
        if isinstance(told, float):
            await asyncio.sleep(told)
            return web.Response()
        return told

    def answer(self, *statuses: int, **more: Any) -> None:
        """Answer the next requests so."""
        self.answers += [web.Response(status=status, **more) for status in statuses]


class Keys(Vault):
    """The endpoint's secrets, and a credential of any type."""

    def __init__(self) -> None:
        super().__init__()
        self.webhook: list[Secret] = [SECRET]
        self.shown = Resolved(uuid4(), "bearer", 1, {"token": Secret("shown-to-the-endpoint")})
        self.refreshed = 0

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        if self.fault is not None:
            raise self.fault
        if name == "shown":
            return self.shown
        newest, *older = [{"secret": each} for each in self.webhook]
        return Resolved(uuid4(), "webhook_secret", version, newest, tuple(older))

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        self.refreshed += 1


@dataclass
class DeliveryBench:
    """The tenant, and what can be done in it."""

    database: Database
    tenant_id: UUID
    receiver: Receiver
    keys: Keys
    sending: Sending
    recorder: Recorder
    publishing: Publishing
    endpoint: ProjectedObject

    async def want(self, *subscriptions: ProjectedObject, **spec: Any) -> None:
        """Let the endpoint be so, and these be subscribed; without any, one to everything."""
        delivery = {**self.endpoint.spec["delivery"], **spec.pop("delivery", {})}
        wanted = {**self.endpoint.spec, "delivery": delivery, **spec}
        self.endpoint = ProjectedObject(
            "WebhookEndpoint", self.endpoint.object_id, "out", 0, wanted
        )
        credentials = [
            ProjectedObject("Credential", uuid4(), name, 1, {"type": "any"})
            for name in ("signing", "shown")
        ]
        routed = subscriptions or (subscription("all"),)
        async with self.database.tenant(self.tenant_id) as tx:
            await projected.replace(tx, self.tenant_id, [self.endpoint, *credentials, *routed])

    async def publish(self, event_type: str = "invoice.paid", payload: Any = None) -> UUID:
        """One event."""
        new = NewEvent(event_type, {"total": 7} if payload is None else payload)
        (event_id,) = await self.publishing.publish(self.tenant_id, [new])
        return event_id

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker that sends."""
        limits = WorkerLimits(poll_s=0.05)
        kinds = {self.sending.name: self.sending}
        worker = Worker(self.database, kinds, self.recorder, limits)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def deliveries(self) -> list[Any]:
        """All of them, the oldest first."""
        newest = UUID(int=2**128 - 1)
        found = await delivery_pages.page(self.database, self.tenant_id, {}, newest, 500)
        return found[::-1]

    async def attempts(self, delivery_id: UUID) -> list[Any]:
        """Its tries."""
        found = await delivery_pages.get(self.database, self.tenant_id, delivery_id)
        return list(found.tries) if found else []

    async def until(self, holds: Callable[[list[Any]], bool], within_s: float = 20.0) -> list[Any]:
        """The deliveries, once they are so."""
        deadline = time.monotonic() + within_s
        while not holds(found := await self.deliveries()):
            assert time.monotonic() < deadline, [(d.state, d.failure_reason) for d in found]
            await asyncio.sleep(0.02)
        return found


def subscription(name: str, **spec: Any) -> ProjectedObject:
    """To what services publish, delivered to the endpoint."""
    base: dict[str, Any] = {
        "endpoint": None,
        "event_types": [],
        "filter": "",
        "connector": "",
        "is_active": True,
    }
    return ProjectedObject(
        "Subscription", uuid4(), name, 0, {**base, "deliver_to": "out", "transform": None, **spec}
    )


def endpoint(url: str) -> ProjectedObject:
    """The endpoint as the registry tells it, tried again soon."""
    delivery = {
        "timeout": "2s",
        "retries": QUICK,
        "concurrency": 16,
        "rate_per_minute": 0,
        "ordering": "none",
        "key": "",
    }
    spec = {
        "direction": "OUTBOUND",
        "integration": None,
        "secret": "signing",
        "is_active": True,
        "auth": "SIGNATURE",
        "credential": None,
        "auth_header": "",
        "url": url,
        "headers": {},
        "delivery": delivery,
        "subject": "",
    }
    return ProjectedObject("WebhookEndpoint", uuid4(), "out", 0, spec)


@asynccontextmanager
async def delivery_bench(
    database: Database,
    tenant_id: UUID,
    *ports: int,
    idle_s: float = 60.0,
    registry: Secrets | None = None,
) -> AsyncIterator[DeliveryBench]:
    """All of it; what listens at `ports` of this machine may be sent to, too.

    Its secrets are made up without a registry.
    """
    receiver, keys = Receiver(), Keys()
    opened = registry or keys
    runner = web.AppRunner(_application(receiver), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        receiver.url = f"http://127.0.0.1:{port}/hook"
        async with (
            Egress(parse_allow(_allowed(port, *ports)), Limits()) as egress,
            Links(idle_s=idle_s) as links,
            Evaluator() as evaluator,
        ):
            recorder = Recorder(database)
            subjects = Subjects(database, opened, evaluator)
            transports = {**webhooks(egress), **brokers_of(egress, subjects, links)}
            sending = Sending(database, opened, transports, recorder)
            publishing = Publishing(database, opened, evaluator)
            bench = DeliveryBench(
                database,
                tenant_id,
                receiver,
                keys,
                sending,
                recorder,
                publishing,
                endpoint(receiver.url),
            )
            await bench.want()
            yield bench
    finally:
        await runner.cleanup()


def _allowed(*ports: int) -> str:
    return ",".join(f"127.0.0.1/32:{port}" for port in ports)


def _application(receiver: Receiver) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    return application
