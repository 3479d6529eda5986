"""What credentials cost: resolved, sealed, opened, and wrapped anew: `make bench-credentials`.

`resolve` is the executor's call of a registry that has the values in memory, beside a bare echo.
`seal` and `open` are credential versions in one process, beside bare AES-256-GCM of the same bytes.
`rewrap` is a rotation's data keys on PostgreSQL, beside the same statements without cryptography.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from operator import truediv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc as credentials_grpc

from bench.beside_echo import Call, measured
from bench.filling import Filling, fill
from services import embedded
from services.chassis import envelope
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.chassis.settings import load
from services.deployment import DATABASE, Deployment, create_database
from services.registry import opening
from services.registry.credentials.sealing import Sealing, Version
from services.registry.credentials.tampering import Tampering
from services.registry.keys.holding import Holding, version_row
from services.registry.keys.rewrapping import BATCH, Rewrapping
from services.registry.keys.ring import Ring
from services.registry.keys.vault import Vault
from services.registry.settings import PREFIX, Settings
from services.registry.store import keys as store
from services.stage import Stage

NAME: Final = "tenants/bench/credentials/token"
TOKEN: Final = "a-bearer-token-of-some-forty-characters-"
SEALS: Final = 2_000
ROUNDS: Final = 5
KEYS: Final = 10_000

WANTED: Final = """\
apiVersion: tenon/v1
kind: Tenant
metadata: {name: bench}
spec: {display_name: Bench}
---
apiVersion: tenon/v1
kind: Credential
metadata: {name: token, tenant: bench}
spec: {type: bearer, values: {token: {file: token}}}
"""


def main() -> None:
    """Measure, and print one line of JSON a figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["TENON_HOME"] = str(folder / "home")
        _measure_resolve(folder)
        _measure_sealing()
        _measure_rewrap(folder)


def _print(figure: str, found: list[float], bare: list[float], baseline: str) -> None:
    ratio = statistics.median(map(truediv, found, bare))
    value = round(statistics.median(found))
    line = {"bench": "credentials", "figure": figure, "value": value, "unit": "1/s"}
    print(json.dumps({**line, "baseline": baseline, "ratio": round(ratio, 3)}))


def _measure_resolve(folder: Path) -> None:
    (folder / "token").write_text(TOKEN)
    (folder / "bench.yaml").write_text(WANTED)
    with Stage(folder) as stage:
        stage.run("apply", str(folder / "bench.yaml"), shown=False)
        (line,) = asyncio.run(_resolved(stage))
    print(json.dumps(line))


async def _resolved(stage: Stage) -> Sequence[Mapping[str, Any]]:
    key = Deployment(stage.owner_key.parent).executor_key.read_text().strip()
    metadata = (("authorization", f"Bearer {key}"),)
    async with open_channel(stage.where["registry"]) as channel:
        stub = credentials_grpc.CredentialServiceStub(channel)
        asked = pb2.ResolveCredentialRequest(name=NAME)
        calls: dict[str, Call] = {
            "resolve": lambda: stub.ResolveCredential(asked, metadata=metadata)
        }
        return await measured("credentials", calls, NAME, metadata)


def _measure_sealing() -> None:
    sealed = _Sealed()
    works: Mapping[str, Callable[[], object]] = {
        "seal": sealed.seal,
        "open": sealed.open,
        "bare seal": sealed.encrypt,
        "bare open": sealed.decrypt,
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            found[name].append(_rate(work))
    for figure in ("seal", "open"):
        _print(figure, found[figure], found[f"bare {figure}"], "bare AES-256-GCM of the same bytes")


def _rate(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    for _ in range(SEALS):
        work()
    return SEALS / (time.perf_counter() - begun)


class _Sealed:
    """A credential version, and its bytes as bare AES-GCM has them."""

    def __init__(self) -> None:
        vault = Vault(envelope.new_key(), Ring.of(envelope.new_key()))
        self._sealing = Sealing(vault)
        self._key, stored = vault.new_tenant_key(uuid4(), uuid4())
        self._version = Version(uuid4(), 1, {"token": Secret(TOKEN)}, {})
        row = self.seal()
        wrapped = {"key_version": stored.key_version, "wrapped": stored.wrapped}
        self._row = SimpleNamespace(**row, **wrapped)
        self._cipher, self._nonce = AESGCM(os.urandom(32)), os.urandom(12)
        # As long as what is sealed: without version, nonce, commitment and tag.
        self._bytes = bytes(len(row["sealed"]) - 61)
        self._encrypted = self.encrypt()

    def seal(self) -> Mapping[str, Any]:
        return self._sealing.sealing(self._key, self._version).parameters

    def open(self) -> object:
        return self._sealing.opened(self._row)

    def encrypt(self) -> bytes:
        return self._cipher.encrypt(self._nonce, self._bytes, None)

    def decrypt(self) -> bytes:
        return self._cipher.decrypt(self._nonce, self._encrypted, None)


def _measure_rewrap(folder: Path) -> None:
    deployment = Deployment(folder / "rewrapped")
    with embedded.start(folder / "server") as server:
        create_database(server.conninfo())
        admin = server.conninfo(DATABASE)
        deployment.prepare(admin)
        ours, bare = asyncio.run(_rewrapped(deployment, admin))
    _print("rewrap", ours, bare, f"the same statements without cryptography, {KEYS} data keys")


async def _rewrapped(deployment: Deployment, admin: Secret) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    bare: list[float] = []
    async with _opened(deployment) as rotating:
        with psycopg.connect(admin.reveal_text(), autocommit=True) as connection:
            fillings = [Filling(f"t-{number}", credentials=0) for number in range(KEYS)]
            fill(connection, rotating.vault, fillings)
            for version in range(2, 2 + ROUNDS):
                await rotating.begin(version)
                bare.append(KEYS / await rotating.moved(version))
                connection.execute("UPDATE registry.data_keys SET key_version = %s", [version - 1])
                connection.execute("VACUUM ANALYZE registry.data_keys")
                ours.append(KEYS / await rotating.rewrapped())
                connection.execute("VACUUM ANALYZE registry.data_keys")
    return ours, bare


@asynccontextmanager
async def _opened(deployment: Deployment) -> AsyncIterator["_Rotating"]:
    settings = load(Settings, PREFIX, deployment.environment("registry"))
    async with (
        opening.open_database(settings) as database,
        opening.open_vault(settings, database) as (vault, holding),
    ):
        yield _Rotating(database, vault, holding)


@dataclass(frozen=True, slots=True)
class _Rotating:
    """A registry whose key-encryption key is rotated."""

    database: Database
    vault: Vault
    holding: Holding

    async def begin(self, version: int) -> None:
        """Add a version that waits, and have it."""
        provider = self.holding.current
        made = await provider.make(version)
        row = version_row(version, made.key, "pending", provider.name, made.reference, made.wrapped)
        async with self.database.system() as transaction:
            await transaction.run(store.ADD_VERSION, **row)
        await self.holding.refresh()
        await self.holding.tell()

    async def rewrapped(self) -> float:
        """Seconds until the leader has wrapped all by the version that waits."""
        log = opening.open_log(self.vault)
        leader = Rewrapping(
            *(self.database, self.vault, self.holding, log),
            *(Tampering(self.database, log), timedelta(days=1)),
        )
        begun = time.perf_counter()
        await leader.round()
        return time.perf_counter() - begun

    async def moved(self, version: int) -> float:
        """Seconds for the same statements, where each key stays as it was wrapped."""
        begun = time.perf_counter()
        while await self._moved_batch(version):
            pass
        return time.perf_counter() - begun

    async def _moved_batch(self, version: int) -> int:
        of = store.DATA_KEYS
        async with self.database.system() as transaction:
            rows = await transaction.all(of.batch, version=version, size=BATCH, skip=0)
            columns = {
                "tenant_id": [row.tenant_id for row in rows],
                "data_key_id": [row.data_key_id for row in rows],
                "old_version": [row.key_version for row in rows],
                "new_version": [version] * len(rows),
                "fresh": [row.wrapped for row in rows],
            }
            return await transaction.run(of.put, **columns) if rows else 0


if __name__ == "__main__":
    main()
