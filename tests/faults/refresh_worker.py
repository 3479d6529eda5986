"""A process that resolves credentials as a registry does: `python -m tests.faults.refresh_worker GO TOLD`.

When the file GO is there, it resolves all that GO names until each is fresh or must be connected
again, and writes what each came to as a line of the file TOLD. It stands by to lead the refresher,
as every registry does. Its settings are the registry's.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from services.chassis import failpoints
from services.chassis.egress import Egress, parse_allow
from services.chassis.errors import FailedPrecondition, TenonError
from services.chassis.leader import lead
from services.chassis.process import background, ready_until_told
from services.chassis.settings import load
from services.chassis.telemetry import configure_logging
from services.providers.catalog import Catalog
from services.registry import main, opening
from services.registry.access.invalidations import Invalidations
from services.registry.credentials import attention
from services.registry.credentials.attention import REFRESHER, Refresher
from services.registry.credentials.resolving import Resolving
from services.registry.credentials.sealing import Sealing
from services.registry.credentials.tampering import Tampering
from services.registry.oauth.exchange import Exchange
from services.registry.oauth.refreshing import Refreshing
from services.registry.settings import PREFIX, Settings

AT_ONCE: Final = 4
"""How many tokens of a process are under way at once, and so may be lost by its death."""
GLANCE_S: Final = 0.01
AGAIN_S: Final = 0.2
FRESH: Final = "fresh"


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Resolving, Refresher]]:
    """What of the registry resolves and refreshes, wired as its main wires it."""
    async with (
        opening.open_database(settings) as database,
        Egress(parse_allow(settings.egress_allow), main.EGRESS_LIMITS) as egress,
        opening.open_vault(settings, database) as (vault, holding),
    ):
        catalog, sealing = Catalog.load(), Sealing(vault)
        log = opening.open_log(vault, catalog)
        exchange = Exchange(egress, catalog, sealing, settings.refresh_timeout_s)
        refreshing = Refreshing(database, sealing, exchange, log, cool_s=settings.refresh_cool_s)
        resolving = Resolving(database, sealing, refreshing, Tampering(database, log))
        invalidations = Invalidations(database)
        invalidations.reach(resolving.forget)
        async with holding.following(), background(invalidations.listen()):
            yield resolving, Refresher(database, refreshing)


async def resolved(resolving: Resolving, tenant_id: UUID, name: str) -> str:
    """What becomes of a credential: `fresh`, or the reason why it never will be."""
    while True:
        try:
            if (await resolving.resolve(tenant_id, name)).version > 1:
                return FRESH
        except FailedPrecondition as error:
            return error.code
        except TenonError:
            pass
        await asyncio.sleep(AGAIN_S)


async def work(resolving: Resolving, go: Path, told: Path) -> None:
    """Resolve all of them, some at once, each process in an order of its own."""
    while not go.exists():
        await asyncio.sleep(GLANCE_S)
    asked: dict[str, Any] = json.loads(go.read_text())
    names, gate = list(asked["names"]), asyncio.Semaphore(AT_ONCE)
    random.shuffle(names)
    out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def one(name: str) -> None:
        async with gate:
            # One that must wait for another's lease shall not hold up the rest.
            first = asyncio.create_task(resolved(resolving, UUID(asked["tenant_id"]), name))
            await asyncio.wait([first], timeout=AGAIN_S)
        os.write(out, f"{name} {await first}\n".encode())

    await asyncio.gather(*map(one, names))
    # Whoever leads goes on; all others have nothing more to do.
    await asyncio.Event().wait()


async def run(settings: Settings, go: Path, told: Path) -> None:
    """Work until told to stop."""
    async with opened(settings) as (resolving, refresher):
        leading = lead(settings.system_database_url, REFRESHER, refresher.follow)
        async with background(work(resolving, go, told), leading):
            await ready_until_told(pid=os.getpid())


if __name__ == "__main__":
    failpoints.check_armed()
    configure_logging("refresh_worker", "console", "INFO")
    attention.AT_ONCE = AT_ONCE  # type: ignore[misc]
    asyncio.run(run(load(Settings, PREFIX), *map(Path, sys.argv[1:3])))
