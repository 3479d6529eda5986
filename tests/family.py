"""Real processes of ours for a test: services and sandbox on a database of their own.

Every member is started as `services.standalone` starts it, with its own environment, so that a
failpoint is armed in one of them alone. What they say goes to files of the family's folder.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp
import psycopg
from psycopg import sql

from migrations.roles import Roles
from services.chassis.child import bound
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.deployment import Deployment
from services.embedded import Embedded
from services.registry.access.control import AccessControl, add_principal
from services.sandbox.sender import send_webhook
from tests.grants import grant

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "config" / "examples" / "acme"
EXAMPLE_SANDBOX: Final = "127.0.0.1:50990"
MODULES: Final = {
    "registry": "services.registry.main",
    "executor": "services.executor.main",
    "sandbox": "services.sandbox",
}
LEASE_S: Final = 2.0
"""A dead worker's claims are free again this soon, so that recovery is not waited for long."""
GLANCE_S: Final = 0.02


NOTED: Final = {
    *("api_keys", "api_key_usage", "tenant_switches"),
    *("audit_anchors", "platform_audit_anchors", "key_holders", "key_versions"),
}
"""Tables of the registry in which it notes what no call has asked for."""


def until(holds: Callable[[], Any], within_s: float = 30.0, what: str = "the condition") -> Any:
    """What `holds` gives once that is true; fails when it does not come."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come within {within_s:.0f} s"
        time.sleep(GLANCE_S)
    return found


def plain_environment() -> dict[str, str]:
    """Ours without any setting of Tenon's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}


@dataclass(slots=True)
class Member:
    """One process, and the line in which it said where it listens."""

    process: "subprocess.Popen[bytes]"
    ready: dict[str, Any]


@dataclass(slots=True)
class Family:
    """A deployment and those of its processes that run."""

    folder: Path
    deployment: Deployment
    admin: Secret
    webhook_secret: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(24)))
    notify_key: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(24)))
    members: dict[str, Member] = field(default_factory=dict)
    ports: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def registry(self) -> str:
        """host:port of the registry, also while it is down."""
        return f"127.0.0.1:{self.ports['registry']['grpc']}"

    @property
    def executor(self) -> str:
        """host:port of the executor, also while it is down."""
        return f"127.0.0.1:{self.ports['executor']['grpc']}"

    @property
    def ingress(self) -> str:
        """The URL before /v1, also while it is down."""
        return f"http://127.0.0.1:{self.ports['executor']['ingress']}"

    @property
    def sandbox(self) -> str:
        """The sandbox's URL."""
        return str(self.ports["sandbox"]["url"])

    def start(self, service: str, failpoints: str = "", **settings: str) -> Member:
        """Start one member, where it listened before if it did, and wait until it is ready."""
        environment = plain_environment() | self._settings(service) | settings
        if failpoints:
            environment["TENON_FAILPOINTS"] = failpoints
        out, err = (self.folder / f"{service}.{kind}" for kind in ("out", "err"))
        begun = out.stat().st_size if out.exists() else 0
        with out.open("ab") as answers, err.open("ab") as words:
            process = subprocess.Popen(
                bound([sys.executable, "-m", *self._program(service)]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=answers,
                stderr=words,
            )
        member = self.members[service] = Member(process, {})
        until(
            lambda: b"\n" in out.read_bytes()[begun:] or process.poll() is not None,
            what=f"{service}'s ready line",
        )
        assert process.poll() is None, f"{service} ended: {self.said(service)[-2000:]}"
        member.ready = json.loads(out.read_bytes()[begun:].splitlines()[0])
        self.ports[service] = member.ready
        return member

    def restart(self, service: str, failpoints: str = "") -> None:
        """Kill a member that may live still, and start it anew."""
        self.kill(service)
        self.start(service, failpoints)

    def kill(self, service: str) -> None:
        """SIGKILL, if it runs."""
        if member := self.members.pop(service, None):
            member.process.kill()
            member.process.wait()

    def await_killed(self, service: str, within_s: float = 30.0) -> None:
        """Wait until a failpoint has killed a member."""
        member = self.members.pop(service)
        try:
            status = member.process.wait(within_s)
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
            raise AssertionError(f"nothing killed the {service} within {within_s:.0f} s") from None
        assert status == -signal.SIGKILL

    def alive(self, service: str) -> bool:
        """Whether a member runs."""
        return service in self.members and self.members[service].process.poll() is None

    def said(self, service: str) -> str:
        """All that a member has said on standard error."""
        return (self.folder / f"{service}.err").read_text()

    def stop_all(self) -> None:
        """Ask every member to stop, and see that it does."""
        for member in self.members.values():
            member.process.terminate()
        for service, member in self.members.items():
            try:
                member.process.wait(20)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
                raise AssertionError(f"the {service} did not stop by SIGTERM") from None
        self.members.clear()

    def example(self, tenant: str = "acme") -> Path:
        """The example's folder, made for this family's sandbox and for a tenant of that name."""
        folder = self.folder / "examples" / tenant
        if not folder.exists():
            shutil.copytree(EXAMPLE, folder)
            address = self.sandbox.removeprefix("http://")
            for path in folder.glob("*.yaml"):
                text = path.read_text().replace(EXAMPLE_SANDBOX, address)
                text = text.replace("tenant: acme", f"tenant: {tenant}")
                path.write_text(text.replace("name: acme\n", f"name: {tenant}\n"))
        return folder

    def secrets_of_example(self) -> dict[str, str]:
        """The environment variables that the example's secrets come from."""
        return {
            "ACME_GITHUB_TOKEN": Path(self.ports["sandbox"]["token_file"]).read_text().strip(),
            "ACME_GITHUB_WEBHOOK_SECRET": self.webhook_secret.reveal_text(),
            "ACME_NOTIFY_KEY": self.notify_key.reveal_text(),
        }

    def tenon(
        self, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run one `tenon` command as the owner."""
        ours = plain_environment() | {
            "TENON_REGISTRY": self.registry,
            "TENON_KEY_FILE": str(self.deployment.owner_key),
            "TENON_REASON": "a test",
        }
        if "executor" in self.ports:
            ours["TENON_EXECUTOR"] = self.executor
        return tenon(arguments, ours | self.secrets_of_example() | dict(environment or {}))

    def apply_example(self, tenant: str = "acme", **secrets_of_its_own: str) -> None:
        """Apply the example and wait until the executor works by it."""
        done = self.tenon("apply", "--wait", self.example(tenant), environment=secrets_of_its_own)
        assert done.returncode == 0, done.stdout + done.stderr

    def webhook(
        self,
        body: bytes,
        *,
        delivery_id: str | None = None,
        tenant: str = "acme",
        secret: Secret | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a signed `issues` webhook; status 0 where no answer came."""
        url = f"{self.ingress}/v1/{tenant}/github-events"
        signed = secret or self.webhook_secret
        try:
            status, answer = asyncio.run(send_webhook(url, "issues", body, signed, delivery_id))
        except (OSError, aiohttp.ClientError):
            return 0, {}
        return status, json.loads(answer)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows as the superuser sees them, beyond row-level security."""
        with psycopg.connect(self.admin.reveal_text(), autocommit=True) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    async def new_key(self, role: str, tenant: UUID | None = None) -> Secret:
        """The key of a new person, who has a role in one tenant, or in the platform."""
        settings = self.deployment.environment("registry")
        pepper, tenants, system = (
            Path(settings[f"TENON_REGISTRY_{name}_FILE"]).read_text()
            for name in ("PEPPER", "DATABASE_URL", "SYSTEM_DATABASE_URL")
        )
        async with Database(Secret(tenants), Secret(system), pool_size=2) as database:
            access = AccessControl(database, Secret(bytes.fromhex(pepper)))
            async with database.system() as transaction:
                platform = role if tenant is None else None
                principal = await add_principal(transaction, "user", "somebody", platform)
                key = await access.issue(transaction, "test", principal, "test", ["*"])
            if tenant is not None:
                await grant(database, tenant, "user", principal, role)
            return key

    def tenant_id(self, slug: str) -> UUID:
        """A tenant's id inside."""
        ((found,),) = self.rows("SELECT tenant_id FROM registry.tenants WHERE slug = %s", slug)
        return UUID(str(found))

    def state_of(self, schema: str) -> dict[str, list[str]]:
        """Every row of every table of a schema, as text by table."""
        with psycopg.connect(self.admin.reveal_text()) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            tables = connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace "
                "AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1",
                [schema],
            ).fetchall()
            return {name: _texts(connection, schema, name) for (name,) in tables}

    def changed_by_calls(self) -> dict[str, list[str]]:
        """The registry's rows, but for what it notes by itself: who called, and anchors."""
        found = self.state_of("registry")
        return {table: rows for table, rows in found.items() if table not in NOTED}

    def _settings(self, service: str) -> dict[str, str]:
        if service == "sandbox":
            return {}
        settings = self.deployment.environment(service)
        prefix, known = f"TENON_{service.upper()}", self.ports.get(service, {})
        settings[f"{prefix}_LISTEN"] = f"127.0.0.1:{known.get('grpc', 0)}"
        settings[f"{prefix}_LOG_LEVEL"] = "DEBUG"
        if service == "executor":
            settings |= {
                f"{prefix}_REGISTRY": self.registry,
                f"{prefix}_INGRESS_PORT": str(known.get("ingress", 0)),
                f"{prefix}_METRICS_PORT": "0",
                f"{prefix}_LEASE_S": str(LEASE_S),
            }
            if "sandbox" in self.ports:
                port = self.sandbox.rpartition(":")[2]
                settings[f"{prefix}_EGRESS_ALLOW"] = f"127.0.0.1/32:{port}"
        return settings

    def _program(self, service: str) -> list[str]:
        arguments = ["--state", str(self.folder / "sandbox")] if service == "sandbox" else []
        return [MODULES[service], *arguments]


def tenon(
    arguments: Sequence[object], environment: Mapping[str, str], within_s: float = 60.0
) -> "subprocess.CompletedProcess[str]":
    """Run one `tenon` command in exactly this environment."""
    return subprocess.run(
        [sys.executable, "-m", "services.command", *map(str, arguments)],
        env=dict(environment),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=within_s,
    )


@contextlib.contextmanager
def family_on(server: Embedded, folder: Path) -> Iterator[Family]:
    """A prepared deployment on a database of its own, nobody started yet."""
    name = f"family_{secrets.token_hex(6)}"
    with psycopg.connect(server.conninfo().reveal_text(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    deployment = Deployment(folder / "state", Roles(name))
    deployment.prepare(server.conninfo(name))
    family = Family(folder, deployment, server.conninfo(name))
    try:
        yield family
    finally:
        family.stop_all()


def _texts(connection: psycopg.Connection[Any], schema: str, table: str) -> list[str]:
    named = sql.Identifier(schema, table)
    query = sql.SQL("SELECT row_to_json(one)::text FROM {} AS one").format(named)
    return sorted(text for (text,) in connection.execute(query))
