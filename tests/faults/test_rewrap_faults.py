"""Keys are rotated and replaced while others resolve, also where the leader is killed meanwhile."""

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest
from psycopg.rows import namedtuple_row
from tenon.registry.v1 import credential_service_pb2 as credentials
from tenon.registry.v1 import credential_service_pb2_grpc as credentials_grpc
from tenon.registry.v1 import vault_service_pb2 as pb2
from tenon.registry.v1 import vault_service_pb2_grpc as vault_grpc

from bench.filling import PART, Filling, fill, names, value_of
from services.chassis.channel import open_channel
from services.chassis.leader import lock_number
from services.chassis.secret import Secret
from services.chassis.settings import load
from services.registry import opening
from services.registry.credentials.sealing import Sealing
from services.registry.keys.rewrapping import LEADER
from services.registry.keys.vault import Vault
from services.registry.settings import PREFIX, Settings
from tests.family import Family, until
from tests.faults.points import ALL, points, thinned

pytestmark = pytest.mark.faults

# More than two batches of each.
MANY: Final = [Filling(f"t-{number}") for number in range(10_000 if ALL else 1_200)]
BIG: Final = Filling("big", credentials=100, versions=1_000 if ALL else 20)
CLIENTS: Final = 50
PAUSE_S: Final = 0.1
BEFORE_S: Final = 10.0 if ALL else 0.7
WITHIN_S: Final = 600.0 if ALL else 60.0

ROTATE, REPLACE = "rotate", "replace"
# By what the leader is killed, and at which hit; nobody kills it where it is empty.
HITS: Final = {point: 1 if "promotion" in point else 2 for point in points("rewrap")}
CASES: Final = [
    *((ROTATE, point) for point in sorted(HITS, reverse=True)),
    *((what, "") for what in (ROTATE, REPLACE)),
    *((REPLACE, point) for point in sorted(HITS, reverse=True) if HITS[point] > 1),
]

LEADS: Final = (
    "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND (classid::bigint << 32 | objid::bigint) = %s"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
OPENED: Final = (
    "SELECT t.slug, c.name, v.*, k.key_version, k.wrapped, k.state"
    " FROM registry.credential_versions v JOIN registry.data_keys k USING (tenant_id, data_key_id)"
    " JOIN registry.credentials c USING (tenant_id, credential_id)"
    " JOIN registry.tenants t USING (tenant_id)"
)


@pytest.fixture(scope="module", autouse=True)
def _filled(family: Family) -> None:
    """Many tenants with a credential each, and one with many."""
    with psycopg.connect(family.admin.reveal_text(), autocommit=True) as connection:
        fill(connection, asyncio.run(vault_of(family)), [*MANY, BIG])


async def vault_of(family: Family) -> Vault:
    """The deployment's keys, as a process has them that opens them now."""
    told = load(Settings, PREFIX, family.deployment.environment("registry"))
    async with (
        opening.open_database(told) as database,
        opening.open_vault(told, database) as (vault, _),
    ):
        return vault


@dataclass
class Clients:
    """Resolve one credential after the other; what failed, and seconds of each call."""

    channel: grpc.aio.Channel
    failed: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    async def call(self) -> None:
        """One of them, until it is cancelled."""
        stub: credentials_grpc.CredentialServiceAsyncStub = credentials_grpc.CredentialServiceStub(
            self.channel
        )
        while True:
            filling = random.choice([BIG, random.choice(MANY)])
            name = random.choice(names(filling))
            request = credentials.ResolveCredentialRequest(
                name=f"tenants/{filling.slug}/credentials/{name}"
            )
            begun = time.perf_counter()
            try:
                answer = await stub.ResolveCredential(request, timeout=20)
                assert answer.values[PART] == value_of(filling.slug, name, filling.versions)
            except Exception as error:
                self.failed.append(f"{filling.slug}/{name}: {error!r}")
            self.took.append(time.perf_counter() - begun)
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))

    def figures(self) -> dict[str, float]:
        """Median and 99th percentile in ms of the calls since the last time, and how many."""
        took, self.took = self.took, []
        cuts = statistics.quantiles(took, n=100)
        return {
            "calls": len(took),
            "p50_ms": round(cuts[49] * 1e3, 1),
            "p99_ms": round(cuts[98] * 1e3, 1),
        }


@contextlib.asynccontextmanager
async def resolving(family: Family) -> AsyncIterator[Clients]:
    """Clients that go on until the block ends."""
    key = Secret(family.deployment.executor_key.read_text().strip())
    async with open_channel(family.registry, key=key) as channel:
        clients = Clients(channel)
        calling = [asyncio.create_task(clients.call()) for _ in range(CLIENTS)]
        try:
            yield clients
        finally:
            for each in calling:
                each.cancel()
            await asyncio.gather(*calling, return_exceptions=True)


@contextlib.contextmanager
def leader(family: Family, folder: Path, point: str) -> Iterator[Family]:
    """A registry that leads and is killed at a point, beside the one that others call."""
    family.kill("registry")
    # As if those that were killed had been gone for long.
    family.rows("UPDATE registry.key_holders SET seen_at = '-infinity' RETURNING 1")
    rival = Family(folder, family.deployment, family.admin)
    if point:
        rival.start("registry", f"{point}=kill@{HITS[point]}")
        until(lambda: family.rows(LEADS, lock_number(LEADER)), what="the leader")
    family.start("registry")
    try:
        yield rival
    finally:
        rival.kill("registry")


async def begin(vault: "vault_grpc.VaultServiceAsyncStub", what: str) -> str:
    """Rotate the key-encryption key, or replace the big tenant's; what its progress is called."""
    if what == ROTATE:
        await vault.CreateKeyVersion(pb2.CreateKeyVersionRequest(), timeout=20)
        return ""
    name = f"tenants/{BIG.slug}"
    await vault.ReplaceTenantKey(pb2.ReplaceTenantKeyRequest(name=name), timeout=20)
    return name


@pytest.mark.timeout(WITHIN_S * 2)
@pytest.mark.parametrize(("what", "point"), thinned(CASES, keep=2))
async def test_no_call_fails_while_keys_change_and_the_next_leader_goes_on(
    family: Family, tmp_path: Path, what: str, point: str
) -> None:
    owner = Secret(family.deployment.owner_key.read_text().strip())
    with leader(family, tmp_path, point) as rival:
        async with (
            resolving(family) as clients,
            open_channel(family.registry, key=owner, reason="a test") as channel,
        ):
            await asyncio.sleep(BEFORE_S)
            before = clients.figures()
            vault: vault_grpc.VaultServiceAsyncStub = vault_grpc.VaultServiceStub(channel)
            begun = time.perf_counter()
            name = await begin(vault, what)
            stream = vault.Rewrap(pb2.RewrapRequest(name=name), timeout=WITHIN_S)
            progress = [(each.done, each.total) async for each in stream]
            lasted = time.perf_counter() - begun
            during = clients.figures()
        if point:
            rival.await_killed("registry")
    assert clients.failed == []
    check(progress, len(MANY) if what == ROTATE else BIG.credentials * BIG.versions)
    await asyncio.to_thread(check_all_open, family, await vault_of(family), what)
    figures = {"what": what, "killed": point, "s": round(lasted, 1), "before": before}
    print(json.dumps({**figures, "during": during, "failed": len(clients.failed)}))


def check(progress: list[tuple[int, int]], least: int) -> None:
    """It begins with all that there is to do, never goes back, and ends when all is done."""
    done = [each for each, _ in progress]
    assert done == sorted(done) and done[0] == 0 and progress[0][1] >= least
    assert progress[-1][0] == progress[-1][1] and all(a <= b for a, b in progress)


def check_all_open(family: Family, vault: Vault, what: str) -> None:
    """Every version of every credential opens, by the newest keys alone."""
    sealing, seen = Sealing(vault), 0
    with (
        psycopg.connect(family.admin.reveal_text(), row_factory=namedtuple_row) as connection,
        connection.cursor("all") as cursor,
    ):
        row: Any
        for row in cursor.execute(OPENED):
            assert row.key_version == vault.ring.active and row.state == "active"
            opened = sealing.opened(row)
            assert opened == {PART: Secret(value_of(row.slug, row.name, row.version))}
            seen += 1
    assert seen == len(MANY) + BIG.credentials * BIG.versions
