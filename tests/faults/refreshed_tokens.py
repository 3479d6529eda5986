"""Tokens of a stand-in provider, the processes that refresh them, and what became of both."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis import envelope
from services.chassis.child import bound
from services.chassis.database import Bound
from services.chassis.interceptors import Gates
from services.chassis.secret import Secret
from services.chassis.server import Listen, serving
from services.chassis.status import from_rpc_error
from services.registry import opening
from services.registry.access.control import AccessControl
from services.registry.credentials.sealing import Sealing
from services.registry.feed import Feed
from services.registry.settings import PREFIX, Settings
from services.registry.store import oauth as store
from services.registry.store.tenants import Tenants
from services.sandbox.grants import Family
from services.sandbox.server import Box
from tests.family import ROOT, plain_environment
from tests.integration.registry.apps import app, token
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.documents import tenant
from tests.wiring import wired

TENANT: Final = "acme"
CLOCKS_S: Final = (0.0, 300.0, -300.0, 150.0)
"""By how much the clocks of processes are wrong, in turn."""
APPLIED_AT_ONCE: Final = 25
FOUND: Final = """
    SELECT c.name, c.version, s.status, s.reason,
        s.lease_until > clock_timestamp() OR s.intent_version = c.version
    FROM registry.credentials c JOIN registry.credential_status s USING (tenant_id, credential_id)
    WHERE c.type = 'oauth2' ORDER BY c.name
"""
TOLD: Final = """
    SELECT object FROM registry.audit_events e WHERE action = 'reconnect' AND EXISTS
        (SELECT FROM registry.feed WHERE kind = 'notice' AND subject = 'auditEvents/' || e.id)
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a credential stands; `is_held`: somebody is at it, or nobody knows of an end yet."""

    name: str
    version: int
    status: str
    reason: str
    is_held: bool

    @property
    def is_settled(self) -> bool:
        """Whether it is fresh, or lost for good."""
        ended = self.status == "reconnect" or (self.status == "valid" and self.version > 1)
        return ended and not self.is_held


@dataclass
class Tokens:
    """A tenant's tokens, and a number of processes that resolve them."""

    box: Box
    registry: Registry
    settings: Settings
    folder: Path
    owner: Caller
    executor: Caller
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    async def bring(self, count: int) -> list[str]:
        """So many accounts' tokens; their names."""
        names = [f"token-{number:03}" for number in range(count)]
        await self.owner.apply(TENANT, [tenant(TENANT), app(self.box)])
        for at in range(0, count, APPLIED_AT_ONCE):
            some = names[at : at + APPLIED_AT_ONCE]
            await self.owner.apply(TENANT, [token(self.box, name, account=name) for name in some])
        return names

    def expire(self) -> None:
        """Let half of them have ended, and the others end soon."""
        self.rows(
            "UPDATE registry.credential_versions v SET expires_at = now() + interval '8 s'"
            " * (get_byte(uuid_send(version_id), 15) % 2) FROM registry.credentials c"
            " WHERE c.credential_id = v.credential_id AND c.type = 'oauth2'"
        )
        self.rows(
            "UPDATE registry.credential_status s SET refresh_at = now() FROM registry.credentials c"
            " WHERE c.credential_id = s.credential_id AND c.type = 'oauth2'"
        )

    def start(self, go: str, points: str = "") -> "subprocess.Popen[bytes]":
        """Start one more, which waits for the file of that name; its clock is wrong."""
        number = len(self.workers)
        environment = plain_environment() | _environment(self.settings)
        environment["TENON_FAILPOINTS"] = points
        clock = str(CLOCKS_S[number % len(CLOCKS_S)])
        module = ["tests.faults.with_clock", clock, "tests.faults.refresh_worker"]
        with (self.folder / f"worker{number}.err").open("ab") as words:
            worker = subprocess.Popen(
                bound(
                    [sys.executable, "-m", *module, str(self.folder / go), str(self._told(number))]
                ),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
            )
        self.workers.append(worker)
        return worker

    def await_ready(self) -> None:
        """Wait until all that were started wait for their files."""
        for number, worker in enumerate(self.workers):
            assert worker.stdout is not None
            assert worker.stdout.readline(), (self.folder / f"worker{number}.err").read_text()

    async def go(self, go: str, names: Sequence[str]) -> None:
        """Let those begin that wait for the file."""
        tenant_id = str(await self.registry.tenant_id(TENANT))
        new = self.folder / f"{go}.new"
        new.write_text(json.dumps({"tenant_id": tenant_id, "names": list(names)}))
        new.rename(self.folder / go)

    def told(self, number: int) -> dict[str, str]:
        """What a process found each credential to have come to."""
        told = self._told(number)
        lines = told.read_text().splitlines() if told.exists() else []
        return dict(line.split() for line in lines)

    def said(self, number: int) -> str:
        """What a process has logged."""
        return (self.folder / f"worker{number}.err").read_text()

    def standings(self) -> list[Standing]:
        """How all stand."""
        return [Standing(*row) for row in self.rows(FOUND)]

    def announced(self) -> list[str]:
        """Whose loss stands in the audit log, and went out as a notice."""
        return sorted(name for (name,) in self.rows(TOLD))

    def family(self, name: str) -> Family:
        """What the provider knows of an account."""
        (found,) = [one for one in self.box.identity.families if one.account == name]
        return found

    async def refresh_tokens(self) -> dict[str, str]:
        """The refresh token that we have of each account."""
        sealing, tenant_id = Sealing(self.registry.vault), await self.registry.tenant_id(TENANT)
        names = [one.name for one in self.standings()]
        asked = [Bound(store.NAMED, {"tenant_id": tenant_id, "name": name}) for name in names]
        found = await self.registry.database.read_all(tenant_id, asked)
        return {row.name: sealing.opened(row)["refresh_token"].reveal_text() for (row,) in found}

    async def resolve(self, name: str) -> str:
        """The access token that the executor gets, or why it gets none."""
        request = pb2.ResolveCredentialRequest(name=f"tenants/{TENANT}/credentials/{name}")
        try:
            answer = await self.executor.credentials.ResolveCredential(request, timeout=20)
        except grpc.RpcError as error:
            return from_rpc_error(error).code
        return answer.values["token"].decode()

    async def refresh(self, name: str) -> pb2.Credential:
        """Ask this process's registry for newer tokens than the first."""
        request = pb2.RefreshCredentialRequest(
            name=f"tenants/{TENANT}/credentials/{name}", version=1
        )
        return await self.executor.credentials.RefreshCredential(request, timeout=5)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows as the superuser sees them."""
        with psycopg.connect(self.registry.superuser.reveal_text(), autocommit=True) as connection:
            found = connection.execute(query.encode())
            return found.fetchall() if found.description else []

    def stop(self) -> list[int]:
        """Ask all that run to stop; how all have ended."""
        for worker in self.workers:
            worker.terminate()
        return [worker.wait(20) for worker in self.workers]

    def end(self) -> None:
        """Leave nobody behind, however the test ended."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()

    def _told(self, number: int) -> Path:
        return self.folder / f"worker{number}.told"


@asynccontextmanager
async def refreshed_tokens(
    box: Box, settings: Settings, superuser: Secret, folder: Path
) -> AsyncIterator[Tokens]:
    """A registry in this process, whose loops do not run, and no process yet."""
    async with opening.open_database(settings) as database:
        access = AccessControl(database, envelope.new_key())
        tenants, feed = Tenants(database), Feed(database)
        async with (
            wired(database, access, tenants, feed, settings) as (base, wiring),
            serving(
                wiring.services, Gates(access, tenants).in_order(), Listen("127.0.0.1:0"), grace_s=0.1
            ) as port,
        ):  # fmt: skip
            registry = Registry(
                f"127.0.0.1:{port}", database, access, tenants, feed, superuser, base.vault,
                base.holding, wiring,
            )  # fmt: skip
            owner = await registry.key("SUPER_ADMIN")
            executor = await registry.key("EXECUTOR", kind="service")
            async with (
                registry.caller(owner.reveal_text()) as by_owner,
                registry.caller(executor.reveal_text()) as by_executor,
            ):
                tokens = Tokens(box, registry, settings, folder, by_owner, by_executor)
                try:
                    yield tokens
                finally:
                    tokens.end()


def _environment(settings: Settings) -> dict[str, str]:
    """Settings as a process is told them."""
    found = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        f"{PREFIX}_{name}".upper(): value.reveal_text() if isinstance(value, Secret) else str(value)
        for name, value in found.items()
        if value is not None
    }
