"""One deployment's directory: keys, logins, where it runs, and the first callers' keys.

state/
  keys/          0600 each: the registry's keys, the logins' passwords and connection strings
  owner.key      the first owner's API key
  executor.key   the executor service's own
  run.json       where it listens, while it runs
  log            what its processes say
  postgres/      the embedded server, unless TENON_DATABASE_URL names another
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from migrations import runner
from migrations.roles import Roles
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition
from services.chassis.secret import Secret
from services.chassis.settings import load
from services.registry import opening
from services.registry.access.bootstrap import Bootstrap, Identity
from services.registry.access.key_text import key_id_of
from services.registry.settings import PREFIX, Settings
from services.registry.store.access import FIND_KEY

DATABASE: Final = "tenon"
REGISTRY_KEYS: Final = ("key_encryption_key", "fingerprint_key", "pepper")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A state directory and what is kept in it."""

    state: Path
    roles: Roles = field(default_factory=Roles)

    @property
    def owner_key(self) -> Path:
        """The first owner's API key."""
        return self.state / "owner.key"

    @property
    def executor_key(self) -> Path:
        """The executor service's own API key."""
        return self.state / "executor.key"

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.state / "log"

    def prepare(self, admin: Secret) -> None:
        """Make keys, database, roles, schemas and first callers where they are absent."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys.mkdir(mode=0o700, exist_ok=True)
        for name in REGISTRY_KEYS:
            _kept(self._keys / name, secrets.token_hex(32))
        passwords = {
            login: _kept(self._keys / f"{login}.password", secrets.token_urlsafe(24))
            for login in self.roles.logins()
        }
        runner.upgrade(admin.reveal_text(), self.roles, passwords)
        for login, password in passwords.items():
            conninfo = make_conninfo(admin.reveal_text(), user=login, password=password)
            write_private(self._keys / f"{login}.conninfo", conninfo)
        asyncio.run(self._introduce())

    def environment(self, service: str) -> dict[str, str]:
        """The settings of one service; every secret by the file that holds it."""
        prefix = f"TENON_{service.upper()}"
        files = {
            "DATABASE_URL": self._keys / f"{self.roles.app(service)}.conninfo",
            "SYSTEM_DATABASE_URL": self._keys / f"{self.roles.system(service)}.conninfo",
        }
        if service == "registry":
            files |= {name.upper(): self._keys / name for name in REGISTRY_KEYS}
        else:
            files["SERVICE_KEY"] = self.executor_key
        return {f"{prefix}_{name}_FILE": str(path) for name, path in files.items()}

    def say_running(self, where: Mapping[str, Any]) -> None:
        """Tell other commands where it listens."""
        write_private(self.state / "run.json", json.dumps(where))

    def running(self) -> dict[str, Any] | None:
        """Where it listens, if it has said so."""
        try:
            found: dict[str, Any] = json.loads((self.state / "run.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def say_stopped(self) -> None:
        """Take back where it listened."""
        (self.state / "run.json").unlink(missing_ok=True)

    @property
    def _keys(self) -> Path:
        return self.state / "keys"

    async def _introduce(self) -> None:
        """Give the owner and the executor a principal and a key, unless their keys still open."""
        async with bootstrapping(self.environment("registry")) as (database, bootstrap):
            if not await _opens(database, self.owner_key):
                # Whoever lost the key of an owner is not made another one on the way.
                with suppress(FailedPrecondition):
                    await bootstrap.owner(Identity(), keeping(self.owner_key))
            if not await _opens(database, self.executor_key):
                await bootstrap.service("executor", Identity(), keeping(self.executor_key))


@asynccontextmanager
async def bootstrapping(
    environment: Mapping[str, str],
) -> AsyncIterator[tuple[Database, Bootstrap]]:
    """What makes the first callers of a registry, by its settings."""
    settings = load(Settings, PREFIX, {**environment, **os.environ})
    async with (
        opening.open_database(settings) as database,
        opening.open_vault(settings, database) as (vault, _),
    ):
        access = opening.open_keys(settings, database)
        log = opening.open_log(vault)
        yield database, Bootstrap(database, access, log, settings.environment)


async def _opens(database: Database, path: Path) -> bool:
    held = _key_id(path)
    async with database.system() as transaction:
        return bool(held) and await transaction.one(FIND_KEY, key_id=held) is not None


def _key_id(path: Path) -> str | None:
    return key_id_of(path.read_text().strip()) if path.exists() else None


def keeping(path: Path) -> Callable[[Secret], None]:
    """Writes a key's text to a file that only its owner can read."""
    return lambda key: write_private(path, key.reveal_text())


def create_database(admin: Secret, name: str = DATABASE) -> None:
    """Make the deployment's database on an embedded server, unless it is there."""
    with psycopg.connect(admin.reveal_text(), autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if found.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def write_private(path: Path, text: str) -> None:
    """Replace a file by one only its owner can read; never half-written."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _kept(path: Path, fresh: str) -> str:
    """What the file holds; the fresh value, written, where there is none."""
    if not path.exists():
        write_private(path, fresh)
    return path.read_text()
