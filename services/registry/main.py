"""The registry service: everything is wired here and nowhere else."""

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    principal_service_pb2,
    staff_service_pb2,
    tenant_service_pb2,
)

from services.chassis.database import Constraints, Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.errors import AlreadyExists, FailedPrecondition
from services.chassis.interceptors import Gates
from services.chassis.leader import lead
from services.chassis.process import background, ready_until_told, start
from services.chassis.proxies import parse_networks
from services.chassis.retention import Retention
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.settings import SettingsError
from services.chassis.usage import Counter, kept
from services.providers.catalog import Catalog
from services.registry.access.api_keys import ApiKeys
from services.registry.access.changes import Changes
from services.registry.access.control import AccessControl
from services.registry.access.grants import Grants
from services.registry.access.issuers import read_issuers
from services.registry.access.jwks import Keys, fetching
from services.registry.access.key_text import ENVIRONMENT, LOCAL
from services.registry.access.principals import Principals
from services.registry.access.staff import Staff
from services.registry.access.tokens import Tokens
from services.registry.access.usage import Usage
from services.registry.answers import Once
from services.registry.audit.anchors import LEADER as ANCHORS
from services.registry.audit.anchors import Anchors
from services.registry.audit.log import Log
from services.registry.audit.masks import Masks
from services.registry.audit.reading import Audit
from services.registry.audit.recording import Recording
from services.registry.audit.reviews import EventReviews
from services.registry.audit.verification import Verification
from services.registry.credentials import Credentials
from services.registry.feed import Feed
from services.registry.integrations import Integrations
from services.registry.messages.config import SCHEMAS
from services.registry.reviews.approvals import Approvals
from services.registry.reviews.endings import Endings
from services.registry.reviews.expiry import LEADER as EXPIRY
from services.registry.reviews.expiry import Expiry
from services.registry.reviews.staging import Staging
from services.registry.servicers.access import AccessServicer
from services.registry.servicers.audit import AuditServicer
from services.registry.servicers.config import ConfigServicer
from services.registry.servicers.credential import CredentialServicer
from services.registry.servicers.integration import IntegrationServicer
from services.registry.servicers.key import KeyServicer
from services.registry.servicers.principal import PrincipalServicer
from services.registry.servicers.staff import StaffServicer
from services.registry.servicers.tenant import TenantServicer
from services.registry.settings import PREFIX, Settings
from services.registry.store import retention
from services.registry.store.roles import BuiltInRoles
from services.registry.store.tenants import Tenants
from services.registry.tenants.deletion import Deletion
from services.registry.tenants.purge import LEADER as PURGE
from services.registry.tenants.purge import Purge
from services.registry.vault import Vault
from services.registry.wanted.apply import Config
from services.registry.wanted.drafts import Drafts
from services.registry.wanted.snapshots import Snapshots
from services.registry.wanted.writing import Writer

# What is read of an issuer's keys.
KEYS_LIMITS: Final = Limits(total_s=5, response_bytes=2**18)
# What a broken constraint means to the caller.
CONSTRAINTS: Constraints = {
    "integrations_primary_key": lambda _: FailedPrecondition(
        "another integration of this provider and environment is primary", reason="PRIMARY_TAKEN"
    ),
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


def open_vault(settings: Settings) -> Vault:
    """The deployment's keys; without one the registry does not start."""
    return Vault(
        _key("KEY_ENCRYPTION_KEY", settings.key_encryption_key),
        _key("FINGERPRINT_KEY", settings.fingerprint_key),
    )


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


def services_of(
    database: Database,
    vault: Vault,
    access: AccessControl,
    tenants: Tenants,
    feed: Feed,
    environment: str = LOCAL,
    anchor_file: Path | None = None,
) -> Sequence[Service]:
    """Every contract of the registry with what keeps it."""
    access.invalidations.reach(tenants.forget)
    credentials = Credentials(database, vault)
    catalog = Catalog.load()
    drafts = Drafts(catalog, SCHEMAS, vault, BuiltInRoles(database))
    writer = Writer(catalog, credentials)
    log = open_log(vault, catalog)
    endings = Endings(log)
    staging = Staging(credentials, vault, endings, log)
    config = Config(database, drafts, writer, Once(vault), tenants, log, staging)
    approvals = Approvals(database, config, staging, endings, access, Once(vault), log)
    config_servicer = ConfigServicer(config, approvals, Snapshots(database), feed, tenants)
    deletion = Deletion(database, log, Once(vault))
    keepers = (
        (tenant_service_pb2, "TenantService", TenantServicer(tenants, deletion)),
        (
            integration_service_pb2,
            "IntegrationService",
            IntegrationServicer(Integrations(database)),
        ),
        (config_service_pb2, "ConfigService", config_servicer),
        (credential_service_pb2, "CredentialService", CredentialServicer(credentials)),
        *_of_access(database, access, Changes(database, Once(vault), log), environment),
        (audit_service_pb2, "AuditService", _audit(database, vault, log, anchor_file)),
    )
    return [
        Service(module.DESCRIPTOR.services_by_name[name], keeper)
        for module, name, keeper in keepers
    ]


def _of_access(
    database: Database, access: AccessControl, changes: Changes, environment: str
) -> Sequence[tuple[Any, str, object]]:
    """Who may call and do what, each contract with its keeper."""
    if not ENVIRONMENT.fullmatch(environment):
        raise SettingsError(f"{PREFIX}_ENVIRONMENT must be 1 to 16 lower-case letters and digits")
    usage = Usage(database)
    keys = ApiKeys(database, changes, access, environment)
    return (
        (
            access_service_pb2,
            "AccessService",
            AccessServicer(access, Grants(database, changes), usage),
        ),
        (
            principal_service_pb2,
            "PrincipalService",
            PrincipalServicer(Principals(database, changes)),
        ),
        (key_service_pb2, "KeyService", KeyServicer(keys, usage)),
        (staff_service_pb2, "StaffService", StaffServicer(Staff(database, changes))),
    )


def _audit(database: Database, vault: Vault, log: Log, anchor_file: Path | None) -> AuditServicer:
    reading = Audit(database)
    return AuditServicer(
        reading,
        EventReviews(database, reading, log),
        Verification(reading, Anchors(database, vault.chain, anchor_file), vault.chain),
        Recording(database, log),
    )


async def run(settings: Settings) -> None:
    """Serve until told to stop; says on standard output when it is ready."""
    async with (
        open_database(settings) as database,
        Egress(parse_allow(settings.egress_allow), KEYS_LIMITS) as egress,
    ):
        vault, tenants, feed = open_vault(settings), Tenants(database), Feed(database)
        await vault.prove(database)
        access = open_access(settings, database, egress)
        services = services_of(
            database, vault, access, tenants, feed, settings.environment, settings.anchor_file
        )
        counter = Counter()
        proxies = parse_networks(f"{PREFIX}_TRUSTED_PROXIES", settings.trusted_proxies)
        gates = [
            *Gates(access, tenants, proxies=proxies, observe=counter.observe).in_order(),
            counter.follow,
        ]
        listen = Listen(
            settings.listen, settings.certificate, settings.private_key, settings.client_ca
        )
        anchors = Anchors(database, vault.chain, settings.anchor_file)
        ageing = Retention(
            database,
            retention.TIME_TABLES,
            timedelta(days=settings.retention_days),
            retention.forget,
            closing=anchors.close,
        )
        expiry = Expiry(database, Endings(open_log(vault)))
        async with (
            background(
                feed.listen(),
                access.invalidations.listen(),
                lead(settings.system_database_url, retention.LEADER, ageing.follow),
                lead(settings.system_database_url, ANCHORS, anchors.follow),
                lead(settings.system_database_url, PURGE, Purge(database, open_log(vault)).follow),
                lead(settings.system_database_url, EXPIRY, expiry.follow),
            ),
            kept(counter, Usage(database).keep),
            serving(services, gates, listen) as port,
        ):
            await ready_until_told(grpc=port)
            # Followers would otherwise hold up the drain for the whole of its grace.
            feed.close()
            access.invalidations.close()


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
