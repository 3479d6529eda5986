"""The executor service: everything is wired here and nowhere else."""

import sys
from typing import Final

from tenon.executor.v1 import execution_service_pb2

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.interceptors import Gates
from services.chassis.leader import lead
from services.chassis.process import background, ready_until_told, start
from services.chassis.server import Listen, Service, serving
from services.chassis.telemetry import remember
from services.executor import ingress, projection
from services.executor.executions import Endings, Executions
from services.executor.inbound import Inbound
from services.executor.projection import Projection
from services.executor.registry import Registry
from services.executor.running import Running
from services.executor.servicers.execution import ExecutionServicer
from services.executor.settings import PREFIX, Settings
from services.executor.store import cursor
from services.executor.store.tenants import TenantFinder
from services.executor.worker import Worker, WorkerLimits
from services.providers.catalog import Catalog
from services.providers.client import ProviderClient

# The longest a step may be told to wait; each step's own timeout is shorter or this.
STEP_LIMITS: Final = Limits(total_s=300)


async def run(settings: Settings) -> None:
    """Serve until told to stop; says on standard output when it is ready."""
    async with (
        Database(
            settings.database_url, settings.system_database_url, pool_size=settings.pool_size
        ) as database,
        open_channel(
            settings.registry, key=remember(settings.service_key), ca_file=settings.registry_ca
        ) as channel,
        Egress(parse_allow(settings.egress_allow), STEP_LIMITS) as egress,
    ):
        # A start without its database fails here, in words, rather than at the first call.
        await cursor.read(database)
        await _serve(settings, database, Registry(channel), egress)


async def _serve(
    settings: Settings, database: Database, registry: Registry, egress: Egress
) -> None:
    catalog, endings = Catalog.load(), Endings(database)
    client = ProviderClient(egress, catalog)
    running = Running(database, registry, client, catalog, endings, lease_s=settings.lease_s)
    limits = WorkerLimits(items=settings.concurrency, lease_s=settings.lease_s)
    worker = Worker(database, {running.name: running}, limits)
    follower = Projection(database, registry)
    servicer = ExecutionServicer(Executions(database, registry, endings, worker))
    contract = execution_service_pb2.DESCRIPTOR.services_by_name["ExecutionService"]
    gates = Gates(registry, TenantFinder(database)).in_order()
    listen = Listen(settings.listen, settings.certificate, settings.private_key)
    inbound = Inbound(database, registry, catalog)
    async with (
        # Outermost, so that what the doors still let in has its workers.
        background(
            worker.run(),
            endings.follow(),
            lead(settings.system_database_url, projection.LEADER, follower.follow),
        ),
        serving([Service(contract, servicer)], gates, listen) as grpc_port,
        ingress.serving(inbound, settings.ingress_host, settings.ingress_port) as ingress_port,
    ):
        await ready_until_told(grpc=grpc_port, ingress=ingress_port)


def main() -> int:
    """Start the executor by its settings."""
    return start("executor", Settings, PREFIX, run)


if __name__ == "__main__":
    sys.exit(main())
