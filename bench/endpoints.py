"""How long operators wait to see how endpoints stand, with 100,000 deliveries of the last day.

Spread over many endpoints, and all of one: `make bench-endpoints`.
"""

import asyncio
import json
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from bench.deliveries import NEW_TENANT, ROLES, _endpoint
from migrations import runner
from services import embedded
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.deliveries.endpoints import Endpoints
from services.executor.deliveries.policies import KIND, policy_of
from services.executor.engine import lanes, steering
from services.executor.engine.switchboard import Switchboard
from services.executor.store import projected
from services.providers.catalog import Catalog

STORED: Final = 100_000
SPREADS: Final = (50, 1)
"""Endpoints of a tenant."""
LOOKS: Final = 21
AIM_MS: Final = 200
# Every twentieth failed once before it was taken, every hundredth is dead.
FILL: Final = (
    (
        "CREATE TEMPORARY TABLE made AS SELECT tenant_id, object_id, name, nth,"
        " (lpad(to_hex((extract(epoch FROM now() - nth * interval '0.8 s') * 1000)::bigint), 12,"
        " '0') || '70008' || lpad(to_hex(nth), 15, '0'))::uuid AS id FROM"
        " (SELECT *, row_number() OVER () - 1 AS place FROM executor.projected_objects"
        "  WHERE kind = 'WebhookEndpoint' AND tenant_id = '{tenant}') AS endpoint"
        " JOIN generate_series(0, {last}) AS nth ON nth % {endpoints} = place"
    ),
    (
        "INSERT INTO executor.deliveries (tenant_id, id, event_id, event_type, endpoint_id,"
        " endpoint, subscription, state, attempts, response_status, payload_hash, ended_at)"
        " SELECT tenant_id, id, id, 'invoice.paid', object_id, name, 'all',"
        " CASE WHEN nth % 100 = 0 THEN 'dead' ELSE 'success' END,"
        " CASE WHEN nth % 20 = 0 THEN 2 ELSE 1 END, 200, sha256(''), now()"
        " FROM made"
    ),
    (
        "INSERT INTO executor.delivery_attempts (tenant_id, delivery_id, number, started_at,"
        " duration_ms, response_status, failure_reason, response_head)"
        " SELECT tenant_id, id, number, now() - nth * interval '0.8 s', nth % 400, 200,"
        " CASE WHEN number = 1 AND nth % 20 = 0 THEN 'HTTP_500' ELSE '' END, 'thanks'"
        " FROM made JOIN generate_series(1, 2) AS number ON number = 1 OR nth % 20 = 0"
    ),
    "DROP TABLE made",
    "VACUUM ANALYZE executor.deliveries, executor.delivery_attempts, executor.lanes",
)


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        with embedded.start(folder / "state") as server:
            asyncio.run(_measure(server.conninfo().reveal_text()))


async def _measure(admin: str) -> None:
    passwords = {login: secrets.token_urlsafe(16) for login in ROLES.logins()}
    runner.upgrade(admin, ROLES, passwords)
    logins = (ROLES.app("executor"), ROLES.system("executor"))
    conninfos = [
        Secret(make_conninfo(admin, user=each, password=passwords[each])) for each in logins
    ]
    async with Database(*conninfos, constraints=lanes.CONSTRAINTS) as database:
        seen = Endpoints(database, Switchboard(database, Catalog({}), [KIND]))
        for count in SPREADS:
            tenant_id = await _stored(database, admin, count)
            took = []
            for _ in range(LOOKS):
                begun = time.perf_counter()
                found = await seen.page(tenant_id, count, "")
                took.append((time.perf_counter() - begun) * 1000)
                assert len(found.states) == count
            _print(f"endpoint_states_of_{count}", statistics.median(took))


async def _stored(database: Database, admin: str, count: int) -> UUID:
    """A tenant with so many endpoints, to which all was delivered."""
    tenant_id = uuid4()
    endpoints = [_endpoint("https://example.com/", at) for at in range(count)]
    policies = {each.object_id: policy_of(each.spec) for each in endpoints}
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(NEW_TENANT, [tenant_id, f"t{count}"])
        async with database.tenant(tenant_id) as tx:
            await projected.replace(tx, tenant_id, endpoints)
            await steering.shape(tx, tenant_id, KIND, policies)
        of: dict[str, Any] = {"tenant": tenant_id, "last": STORED - 1, "endpoints": count}
        for statement in FILL:
            connection.execute(statement.format(**of).encode())
    return tenant_id


def _print(figure: str, value: float) -> None:
    line = {"bench": "endpoints", "figure": figure, "value": round(value, 1), "unit": "ms"}
    told = f"aim {AIM_MS} ms; {STORED} deliveries of the last day"
    print(json.dumps({**line, "baseline": told, "ratio": round(value / AIM_MS, 3)}), flush=True)


if __name__ == "__main__":
    main()
