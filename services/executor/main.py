"""The executor service: everything is wired here and nowhere else.

A process is one role, or all of them; or it supervises a process for each post (`roles`).
"""

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import grpc
from tenon.executor.v1 import (
    delivery_service_pb2,
    event_service_pb2,
    execution_service_pb2,
    lane_service_pb2,
    sync_service_pb2,
)

from services.chassis import budget, metrics
from services.chassis.budget import Share
from services.chassis.channel import ClientCertificate, TokenFile, open_channel
from services.chassis.database import Database, connections_of
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.evaluator import Evaluator
from services.chassis.interceptors import Gates
from services.chassis.leader import lead
from services.chassis.partitions import longest_kept
from services.chassis.process import background, ready_until_told, start
from services.chassis.proxies import parse_networks
from services.chassis.retention import Retention
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.settings import SettingsError
from services.chassis.telemetry import bind, remember
from services.chassis.tenants import TenantFinder
from services.chassis.usage import Counter, kept
from services.executor import draining
from services.executor.audit.shipping import LEADER as AUDIT_SHIPPING
from services.executor.audit.shipping import Shipping
from services.executor.calling import Calling
from services.executor.crew import supervise_crew
from services.executor.deliveries.again import Again
from services.executor.deliveries.broker_pool import Links
from services.executor.deliveries.brokers import brokers_of
from services.executor.deliveries.endpoints import Endpoints
from services.executor.deliveries.reading import DeliveryLog
from services.executor.deliveries.sending import Sending
from services.executor.deliveries.subjects import Subjects
from services.executor.deliveries.trials import Trials
from services.executor.deliveries.webhooks import webhooks
from services.executor.draining import Draining
from services.executor.engine import doctor, lanes
from services.executor.engine.doctor import Doctor
from services.executor.engine.recorder import Recorder
from services.executor.engine.switchboard import Switchboard
from services.executor.engine.worker import Worker, WorkerLimits
from services.executor.events.arrivals import Arrivals
from services.executor.events.consuming import Consumers
from services.executor.events.log import EventLog
from services.executor.events.publishing import Publishing
from services.executor.events.replaying import Replaying
from services.executor.events.streaming import Stream
from services.executor.events.traces import EventTraces
from services.executor.executions import scheduler
from services.executor.executions.activity import Activities
from services.executor.executions.dry_runs import DryRuns
from services.executor.executions.running import Running
from services.executor.executions.runs import Executions
from services.executor.executions.scheduler import Scheduler
from services.executor.executions.watching import Changes, Watches
from services.executor.ingress import server
from services.executor.ingress.inbound import Inbound
from services.executor.ingress.streams import Counts, Streams
from services.executor.metrics import Metrics
from services.executor.registry import invalidations, projection
from services.executor.registry.client import Registry
from services.executor.registry.connecting import RegistryConnecting
from services.executor.registry.projection import Projection
from services.executor.registry.uses import Uses
from services.executor.servicers.delivery import DeliveryServicer
from services.executor.servicers.event import EventServicer
from services.executor.servicers.execution import ExecutionServicer
from services.executor.servicers.lane import LaneServicer
from services.executor.servicers.sync import SyncServicer
from services.executor.settings import ALL_ROLES, PREFIX, Settings
from services.executor.store import cursor, retention, tenants
from services.executor.syncs.reading import Records
from services.executor.syncs.runs import Syncs
from services.executor.syncs.syncing import Syncing
from services.providers.catalog import Catalog
from services.providers.client import ProviderClient

log = logging.getLogger(__name__)

Ports = dict[str, int]

EXECUTIONS: Final = execution_service_pb2.DESCRIPTOR.services_by_name["ExecutionService"]
DELIVERIES: Final = delivery_service_pb2.DESCRIPTOR.services_by_name["DeliveryService"]
EVENTS: Final = event_service_pb2.DESCRIPTOR.services_by_name["EventService"]
SYNCS: Final = sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"]
LANES: Final = lane_service_pb2.DESCRIPTOR.services_by_name["LaneService"]

# The longest a step may be told to wait; each step's own timeout is shorter or this.
STEP_LIMITS: Final = Limits(total_s=300)
# A page of a list has a hundred things, and each may be long.
PAGE_LIMITS: Final = Limits(total_s=60, response_bytes=8 * 2**20)


@dataclass(frozen=True, slots=True)
class Wired:
    """What the parts of one process stand on."""

    settings: Settings
    database: Database
    registry: Registry
    connecting: RegistryConnecting
    uses: Uses
    tenants: TenantFinder
    catalog: Catalog
    changes: Changes
    arrivals: Arrivals
    evaluator: Evaluator
    worker: Worker
    scheduler: Scheduler
    doctor: Doctor
    shipping: Shipping
    app_items: Counts


@dataclass(frozen=True, slots=True)
class Part:
    """What a role does as long as it runs; `running` yields the ports it listens on.

    `sessions` are the database connections it keeps beside the pools.
    """

    running: Callable[[Wired], AbstractAsyncContextManager[Ports]]
    sessions: int = 0


def job(make: Callable[[Wired], Coroutine[Any, Any, None]], sessions: int) -> Part:
    """A part that is a task."""

    @asynccontextmanager
    async def running(wired: Wired) -> AsyncIterator[Ports]:
        async with background(make(wired)):
            yield {}

    return Part(running, sessions)


def leading(name: str, loop: Callable[[Wired], Callable[[], Awaitable[None]]]) -> Part:
    """A part that runs a loop of which the deployment has one."""
    return job(lambda wired: lead(wired.settings.system_database_url, name, loop(wired)), 1)


def _ageing(wired: Wired) -> Callable[[], Awaitable[None]]:
    kept = timedelta(days=wired.settings.retention_days)
    forget = partial(retention.forget, unused=kept)
    return Retention(wired.database, retention.TIME_TABLES, kept, forget).follow


@asynccontextmanager
async def _calls(wired: Wired) -> AsyncIterator[Ports]:
    """The gRPC services."""
    settings, database = wired.settings, wired.database
    proxies = parse_networks(f"{PREFIX}_TRUSTED_PROXIES", settings.trusted_proxies)
    counter = Counter()
    gates = Gates(wired.registry, wired.tenants, proxies=proxies, observe=counter.observe)
    listen = Listen(
        settings.listen,
        settings.certificate,
        settings.private_key,
        settings.client_ca,
        settings.reuse_port,
    )
    switchboard = Switchboard(database, wired.catalog, wired.worker.meters)
    services = [
        Service(EXECUTIONS, _executions(wired)),
        Service(EVENTS, _events(wired)),
        Service(DELIVERIES, _deliveries(database, switchboard)),
        Service(SYNCS, SyncServicer(Syncs(database), Records(database, wired.registry))),
        Service(LANES, LaneServicer(switchboard)),
    ]
    async with (
        kept(counter, wired.registry.report_usage),
        serving(services, [*gates.in_order(), counter.follow], listen) as port,
    ):
        yield {"grpc": port}
        # Consumers and streams would otherwise hold up the drain for the whole of its grace.
        wired.arrivals.close()


def _executions(wired: Wired) -> ExecutionServicer:
    database = wired.database
    return ExecutionServicer(
        Executions(database, wired.registry, wired.changes, wired.worker),
        Watches(database, wired.changes),
        DryRuns(database, wired.catalog, wired.evaluator),
        Activities(database),
    )


def _deliveries(database: Database, switchboard: Switchboard) -> DeliveryServicer:
    return DeliveryServicer(
        DeliveryLog(database), Again(database), Endpoints(database, switchboard)
    )


def _events(wired: Wired) -> EventServicer:
    database, registry, evaluator = wired.database, wired.registry, wired.evaluator
    seal, log = wired.settings.seal_payloads, EventLog(database, registry)
    publishing = Publishing(database, registry, evaluator, seal=seal)
    return EventServicer(
        publishing,
        log,
        EventTraces(database, log, evaluator),
        Trials(database, registry, seal=seal),
        Stream(publishing, wired.arrivals),
        Consumers(database, registry, evaluator, wired.arrivals),
        Replaying(database, registry, evaluator),
    )


@asynccontextmanager
async def _webhooks(wired: Wired) -> AsyncIterator[Ports]:
    """The HTTP server."""
    settings = wired.settings
    inbound = Inbound(
        wired.database,
        wired.registry,
        wired.catalog,
        wired.evaluator,
        wired.uses,
        seal=settings.seal_payloads,
        public_url=settings.public_url.rstrip("/"),
    )
    async with server.serving(
        inbound,
        Streams(inbound, wired.database, wired.app_items),
        wired.connecting,
        settings.ingress_host,
        settings.ingress_port,
        reuse_port=settings.reuse_port,
    ) as port:
        yield {"ingress": port}


@asynccontextmanager
async def _uses(wired: Wired) -> AsyncIterator[Ports]:
    """What tells the registry how credentials and keys are used."""
    async with kept(wired.uses, wired.registry.report_credential_use):
        yield {}


@asynccontextmanager
async def _metrics(wired: Wired) -> AsyncIterator[Ports]:
    """The metrics of this process, unless they are switched off."""
    host, port = wired.settings.metrics_host, wired.settings.metrics_port
    if not port:
        yield {}
        return
    found = Metrics(
        wired.database,
        wired.worker.meters,
        wired.doctor,
        wired.scheduler,
        wired.shipping,
        wired.app_items,
    )
    async with metrics.serving(found, host, port) as bound:
        yield {"metrics": bound}


# The worker listens to two channels: work, and cancels.
TURNS: Final = job(lambda wired: wired.worker.run(), sessions=2)
# What callers wait for is run by the process that serves them.
WAITED_FOR: Final = job(lambda wired: wired.worker.run(takes_turns=False), sessions=2)
CHANGES: Final = job(lambda wired: wired.changes.follow(), sessions=1)
ARRIVALS: Final = job(lambda wired: wired.arrivals.follow(), sessions=0)
INVALIDATIONS: Final = job(
    lambda wired: invalidations.follow(wired.registry, wired.registry.forget, wired.tenants.forget),
    sessions=0,
)
LOOPS: Final = (
    leading(projection.LEADER, lambda wired: Projection(wired.database, wired.registry).follow),
    leading(retention.LEADER, _ageing),
    leading(
        draining.LEADER,
        lambda wired: Draining(wired.database, wired.registry, wired.settings.drain_s).follow,
    ),
    leading(AUDIT_SHIPPING, lambda wired: wired.shipping.follow),
    leading(scheduler.LEADER, lambda wired: wired.scheduler.follow),
    leading(doctor.LEADER, lambda wired: wired.doctor.follow),
)
METRICS: Final = Part(_metrics)
USES: Final = Part(_uses)
CALLS: Final = Part(_calls)
WEBHOOKS: Final = Part(_webhooks)

ROLES: Final[Mapping[str, tuple[Part, ...]]] = {
    # Each part outlives those after it, so that what the doors still let in has its worker.
    ALL_ROLES: (METRICS, USES, INVALIDATIONS, TURNS, CHANGES, ARRIVALS, *LOOPS, CALLS, WEBHOOKS),
    "rpc": (METRICS, USES, INVALIDATIONS, WAITED_FOR, CHANGES, ARRIVALS, CALLS),
    "ingress": (METRICS, USES, INVALIDATIONS, WEBHOOKS),
    "work": (METRICS, USES, INVALIDATIONS, TURNS, *LOOPS),
}


async def run(settings: Settings) -> None:
    """Serve until told to stop; says on standard output when it is ready."""
    if settings.role not in ROLES:
        raise SettingsError(f"{PREFIX}_ROLE must be one of {', '.join(ROLES)}")
    if settings.supervises:
        async with _database(settings) as database:
            await _check(database, settings, settings.processes)
        await supervise_crew(settings)
    elif settings.role == ALL_ROLES:
        await _serve(settings)
    else:
        with bind(role=settings.role):
            await _serve(settings)


async def _serve(settings: Settings) -> None:
    async with (
        _database(settings) as database,
        _channel(settings) as channel,
        Egress(parse_allow(settings.egress_allow), STEP_LIMITS) as egress,
        Egress(parse_allow(settings.egress_allow), PAGE_LIMITS) as pages,
        Links() as links,
        Evaluator() as evaluator,
    ):
        # A start without its database fails here, in words, rather than at the first call.
        await cursor.read(database)
        await _check(database, settings, {settings.role: 1})
        wired = _wire(settings, database, channel, (egress, pages), links, evaluator)
        async with AsyncExitStack() as parts:
            ports: Ports = {}
            for part in ROLES[settings.role]:
                ports |= await parts.enter_async_context(part.running(wired))
            await ready_until_told(**ports)


def _channel(settings: Settings) -> grpc.aio.Channel:
    """The channel to the registry, with the one thing that says who we are."""
    key, certificate = _identity(settings)
    if certificate is not None and settings.registry_ca is None:
        raise SettingsError(f"{PREFIX}_CLIENT_CERTIFICATE needs {PREFIX}_REGISTRY_CA")
    return open_channel(
        settings.registry, key=key, ca_file=settings.registry_ca, certificate=certificate
    )


def _identity(settings: Settings) -> tuple[Secret | TokenFile | None, ClientCertificate | None]:
    ours: list[tuple[Secret | TokenFile | None, ClientCertificate | None]] = []
    if settings.service_key is not None:
        ours.append((remember(settings.service_key), None))
    if settings.service_token_file is not None:
        ours.append((TokenFile(settings.service_token_file), None))
    if settings.client_certificate is not None and settings.client_key is not None:
        ours.append((None, ClientCertificate(settings.client_certificate, settings.client_key)))
    if len(ours) != 1 or (settings.client_certificate is None) != (settings.client_key is None):
        raise SettingsError(
            f"set exactly one of {PREFIX}_SERVICE_KEY, {PREFIX}_SERVICE_TOKEN_FILE, and "
            f"{PREFIX}_CLIENT_CERTIFICATE with {PREFIX}_CLIENT_KEY"
        )
    return ours[0]


def _database(settings: Settings) -> Database:
    return Database(
        settings.database_url,
        settings.system_database_url,
        pool_size=settings.pool_size,
        constraints=lanes.CONSTRAINTS,
    )


def _wire(
    settings: Settings,
    database: Database,
    channel: grpc.aio.Channel,
    ways_out: tuple[Egress, Egress],
    links: Links,
    evaluator: Evaluator,
) -> Wired:
    egress, pages = ways_out
    uses = Uses()
    longest = longest_kept(timedelta(days=settings.retention_days))
    registry, connecting = Registry(channel, uses, kept=longest), RegistryConnecting(channel)
    catalog, changes = Catalog.load(), Changes(database)
    calling = Calling(registry, ProviderClient(egress, catalog), uses)
    recorder = Recorder(database, lease_s=settings.lease_s)
    running = Running(database, registry, calling, catalog, recorder, changes, evaluator)
    limits = WorkerLimits(items=settings.concurrency, lease_s=settings.lease_s)
    subjects = Subjects(database, registry, evaluator)
    transports = {**webhooks(egress), **brokers_of(egress, subjects, links)}
    sending = Sending(database, registry, transports, recorder)
    paging = Calling(registry, ProviderClient(pages, catalog), uses)
    syncing = Syncing(database, registry, paging, catalog, recorder)
    kinds = {kind.name: kind for kind in (running, sending, syncing)}
    worker = Worker(database, kinds, recorder, limits)
    return Wired(
        settings, database, registry, connecting, uses, tenants.finder(database), catalog, changes,
        Arrivals(database), evaluator, worker, Scheduler(database, registry), Doctor(database),
        Shipping(database, registry), Counts(),
    )  # fmt: skip


async def _check(database: Database, settings: Settings, processes: Mapping[str, int]) -> None:
    """Refuse to open more connections than the server has."""
    pools = connections_of(settings.pool_size)
    shares = [
        Share(role, count, pools + sum(part.sessions for part in ROLES[role]))
        for role, count in processes.items()
    ]
    capacity = await database.capacity()
    wanted = budget.check(shares, capacity)
    log.info("opens at most %d of the %d connections the database has", wanted, capacity)


def main() -> int:
    """Start the executor by its settings."""
    return start("executor", Settings, PREFIX, run)


if __name__ == "__main__":
    sys.exit(main())
