"""What every program of the registry opens by its settings: pools, keys, callers, audit logs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.database import Database
from services.chassis.database_errors import Constraints
from services.chassis.egress import Egress
from services.chassis.errors import Aborted, AlreadyExists, FailedPrecondition
from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.providers.catalog import Catalog
from services.registry.access.control import AccessControl
from services.registry.access.issuers import read_issuers
from services.registry.access.jwks import Keys, fetching
from services.registry.access.tokens import Tokens
from services.registry.audit.log import Log
from services.registry.audit.masks import Masks
from services.registry.keys.choosing import current, providers_of
from services.registry.keys.holding import Holding
from services.registry.keys.vault import Vault
from services.registry.messages.config import SCHEMAS
from services.registry.settings import PREFIX, Settings

# What a broken constraint means to the caller.
CONSTRAINTS: Constraints = {
    "integrations_primary_key": lambda _: FailedPrecondition(
        "another integration of this provider and environment is primary", reason="PRIMARY_TAKEN"
    ),
    "connections_account_key": lambda _: AlreadyExists(
        "another connection is of this account already", reason="ACCOUNT_CONNECTED"
    ),
    "webhook_endpoints_app_key": lambda _: AlreadyExists(
        "another endpoint owns the stream of this app already", reason="APP_OWNED"
    ),
    # Its version moved meanwhile: somebody refreshed it, or rotated it.
    "credential_versions_pkey": lambda _: Aborted("the credential has a newer version; try again"),
    **{
        f"{table}_key_version_fkey": lambda _: Aborted(
            "the key-encryption key was rotated meanwhile; try again", reason="KEY_VERSION_MOVED"
        )
        for table in ("data_keys", "request_answers", "platform_answers", "sealing_keys")
    },
    "principals_identity_key": lambda _: AlreadyExists(
        "a principal of this kind, issuer and subject exists"
    ),
    "tenants_slug_key": lambda _: AlreadyExists(
        "a tenant of this slug exists, or was deleted: a slug is never used again"
    ),
}


def open_database(settings: Settings) -> Database:
    """The registry's two pools."""
    return Database(
        settings.database_url,
        settings.system_database_url,
        pool_size=settings.pool_size,
        constraints=CONSTRAINTS,
    )


def fingerprint_key(settings: Settings) -> Secret:
    """What tells changes, chains the audit log and signs links. Raises SettingsError."""
    return _key("FINGERPRINT_KEY", settings.fingerprint_key)


@asynccontextmanager
async def open_vault(
    settings: Settings, database: Database
) -> AsyncIterator[tuple[Vault, Holding]]:
    """The deployment's keys, opened; without one the registry does not start."""
    vault = Vault(fingerprint_key(settings))
    name = current(settings)
    holding = Holding(database, vault, providers_of(settings), name)
    await holding.start()
    yield vault, holding


def open_keys(settings: Settings, database: Database) -> AccessControl:
    """Keys alone, for who makes the first callers."""
    return AccessControl(database, _key("PEPPER", settings.pepper))


def open_access(settings: Settings, database: Database, egress: Egress) -> AccessControl:
    """Authentication against the registry's own tables, and by the issuers it trusts."""
    issuers = read_issuers(settings.issuers_file) if settings.issuers_file else ()
    tokens = Tokens([(each, Keys(each.issuer, fetching(each.jwks, egress))) for each in issuers])
    return AccessControl(database, _key("PEPPER", settings.pepper), tokens=tokens)


def open_log(vault: Vault, catalog: Catalog | None = None) -> Log:
    """The audit logs, chained by the deployment's key and masked by contract and catalog."""
    return Log(vault.chain, Masks(SCHEMAS, catalog or Catalog.load()))


def _key(name: str, text: Secret) -> Secret:
    try:
        key = bytes.fromhex(text.reveal_text())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise SettingsError(f"{PREFIX}_{name} must be 64 hexadecimal digits")
    return Secret(key)
