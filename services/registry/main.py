"""The registry service: everything is wired here and nowhere else."""

import sys
from collections.abc import Sequence
from datetime import timedelta

from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    tenant_service_pb2,
)

from services.chassis.database import Constraints, Database
from services.chassis.errors import AlreadyExists, FailedPrecondition
from services.chassis.interceptors import Gates
from services.chassis.leader import lead
from services.chassis.process import background, ready_until_told, start
from services.chassis.retention import Retention
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.settings import SettingsError
from services.providers.catalog import Catalog
from services.registry.access import AccessControl
from services.registry.apply import Config
from services.registry.audit import Audit, Log
from services.registry.credentials import Credentials
from services.registry.drafts import Drafts
from services.registry.feed import Feed
from services.registry.integrations import Integrations
from services.registry.messages import SCHEMAS
from services.registry.servicers.access import AccessServicer
from services.registry.servicers.audit import AuditServicer
from services.registry.servicers.config import ConfigServicer
from services.registry.servicers.credential import CredentialServicer
from services.registry.servicers.integration import IntegrationServicer
from services.registry.servicers.tenant import TenantServicer
from services.registry.settings import PREFIX, Settings
from services.registry.snapshots import Snapshots
from services.registry.store import retention
from services.registry.store.tenants import Tenants
from services.registry.vault import Vault
from services.registry.writing import Writer

# What a broken constraint means to the caller.
CONSTRAINTS: Constraints = {
    "integrations_primary_key": lambda _: FailedPrecondition(
        "another integration of this provider and environment is primary", reason="PRIMARY_TAKEN"
    ),
    "tenants_slug_key": lambda _: AlreadyExists("a tenant of this slug exists or existed"),
}


def open_database(settings: Settings) -> Database:
    """The registry's two pools."""
    return Database(
        settings.database_url,
        settings.system_database_url,
        pool_size=settings.pool_size,
        constraints=CONSTRAINTS,
    )


def open_vault(settings: Settings) -> Vault:
    """The deployment's keys; without one the registry does not start."""
    return Vault(
        _key("KEY_ENCRYPTION_KEY", settings.key_encryption_key),
        _key("FINGERPRINT_KEY", settings.fingerprint_key),
    )


def open_access(settings: Settings, database: Database) -> AccessControl:
    """Authentication against the registry's own tables."""
    return AccessControl(database, _key("PEPPER", settings.pepper))


def services_of(
    database: Database, vault: Vault, access: AccessControl, tenants: Tenants, feed: Feed
) -> Sequence[Service]:
    """Every contract of the registry with what keeps it."""
    credentials = Credentials(database, vault)
    catalog = Catalog.load()
    drafts, writer = Drafts(catalog, SCHEMAS, vault), Writer(catalog, credentials)
    log = Log()
    config = Config(database, drafts, writer, vault, tenants, log)
    config_servicer = ConfigServicer(config, Snapshots(database), feed, tenants)
    keepers = (
        (tenant_service_pb2, "TenantService", TenantServicer(tenants)),
        (
            integration_service_pb2,
            "IntegrationService",
            IntegrationServicer(Integrations(database)),
        ),
        (config_service_pb2, "ConfigService", config_servicer),
        (credential_service_pb2, "CredentialService", CredentialServicer(credentials)),
        (access_service_pb2, "AccessService", AccessServicer(access)),
        (audit_service_pb2, "AuditService", AuditServicer(Audit(database))),
    )
    return [
        Service(module.DESCRIPTOR.services_by_name[name], keeper)
        for module, name, keeper in keepers
    ]


async def run(settings: Settings) -> None:
    """Serve until told to stop; says on standard output when it is ready."""
    async with open_database(settings) as database:
        vault, tenants, feed = open_vault(settings), Tenants(database), Feed(database)
        await vault.prove(database)
        access = open_access(settings, database)
        services = services_of(database, vault, access, tenants, feed)
        gates = Gates(access, tenants).in_order()
        listen = Listen(settings.listen, settings.certificate, settings.private_key)
        ageing = Retention(database, retention.TIME_TABLES, timedelta(days=settings.retention_days))
        async with (
            background(
                feed.listen(),
                lead(settings.system_database_url, retention.LEADER, ageing.follow),
            ),
            serving(services, gates, listen) as port,
        ):
            await ready_until_told(grpc=port)
            # Followers would otherwise hold up the drain for the whole of its grace.
            feed.close()


def main() -> int:
    """Start the registry by its settings."""
    return start("registry", Settings, PREFIX, run)


def _key(name: str, text: Secret) -> Secret:
    try:
        key = bytes.fromhex(text.reveal_text())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise SettingsError(f"{PREFIX}_{name} must be 64 hexadecimal digits")
    return Secret(key)


if __name__ == "__main__":
    sys.exit(main())
