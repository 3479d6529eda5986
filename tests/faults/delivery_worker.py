"""A process that sends deliveries, for the tests of faults: `python -m tests.faults.delivery_worker`."""

import asyncio
import os

from services.chassis import failpoints
from services.chassis.egress import Egress, parse_allow
from services.chassis.secret import Secret
from services.chassis.telemetry import configure_logging
from services.executor.deliveries.sending import Sending
from services.executor.deliveries.webhooks import webhooks
from tests.faults.fixed_keys import SEED, FixedKeys
from tests.faults.worker_process import recording, work


async def run() -> None:
    """Work until told to stop."""
    keys = FixedKeys(Secret(os.environ[SEED]))
    async with recording() as (database, recorder), Egress(parse_allow("127.0.0.1/32:*")) as egress:
        await work(database, recorder, Sending(database, keys, webhooks(egress), recorder))


if __name__ == "__main__":
    failpoints.check_armed()
    configure_logging("delivery_worker", "console", "WARNING")
    asyncio.run(run())
