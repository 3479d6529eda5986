"""The registry service: everything is wired here and nowhere else."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    principal_service_pb2,
    staff_service_pb2,
    tenant_service_pb2,
    vault_service_pb2,
)

from services.chassis.database import Database
from services.chassis.egress import Egress, Limits, parse_allow
from services.chassis.endpoint_limits import parse_only
from services.chassis.interceptors import Gates
from services.chassis.leader import lead
from services.chassis.process import background, ready_until_told, start
from services.chassis.proxies import parse_networks
from services.chassis.retention import Retention
from services.chassis.server import Listen, Service, serving
from services.chassis.settings import SettingsError
from services.chassis.usage import Counter, kept
from services.providers.catalog import Catalog
from services.registry.access.api_keys import ApiKeys
from services.registry.access.changes import Changes
from services.registry.access.control import AccessControl
from services.registry.access.grants import Grants
from services.registry.access.key_text import ENVIRONMENT
from services.registry.access.principals import Principals
from services.registry.access.staff import Staff
from services.registry.access.usage import Usage
from services.registry.answers import Once
from services.registry.audit.anchors import LEADER as ANCHORS
from services.registry.audit.anchors import Anchors
from services.registry.audit.log import Log
from services.registry.audit.reading import Audit
from services.registry.audit.recording import Recording
from services.registry.audit.reviews import EventReviews
from services.registry.audit.verification import Verification
from services.registry.connections import Connections
from services.registry.credentials.attention import LEADER as ATTENTION
from services.registry.credentials.attention import REFRESHER, Attention, Refresher
from services.registry.credentials.changing import Changing
from services.registry.credentials.putting import Putting
from services.registry.credentials.reading import Reading
from services.registry.credentials.resolving import Resolving
from services.registry.credentials.sealing import Sealing
from services.registry.credentials.tampering import Tampering
from services.registry.credentials.uses import Uses
from services.registry.feed import Feed
from services.registry.integrations import Integrations
from services.registry.keys.holding import Holding
from services.registry.keys.replacing import Replacing
from services.registry.keys.rewrapping import LEADER as KEYS
from services.registry.keys.rewrapping import Rewrapping
from services.registry.keys.sealing_keys import SealingKeys
from services.registry.keys.vault import Vault
from services.registry.keys.versions import KeyVersions
from services.registry.messages.config import SCHEMAS
from services.registry.oauth.exchange import Exchange
from services.registry.oauth.flows import Flows
from services.registry.oauth.links import Links
from services.registry.oauth.refreshing import Refreshing
from services.registry.oauth.relaying import Relaying
from services.registry.oauth.revoking import Revoking
from services.registry.oauth.wishes import Addresses
from services.registry.opening import open_access, open_database, open_log, open_vault
from services.registry.reviews.approvals import Approvals
from services.registry.reviews.endings import Endings
from services.registry.reviews.expiry import LEADER as EXPIRY
from services.registry.reviews.expiry import Expiry
from services.registry.reviews.staging import Staging
from services.registry.servicers.access import AccessServicer
from services.registry.servicers.audit import AuditServicer
from services.registry.servicers.config import ConfigServicer
from services.registry.servicers.connection import ConnectionServicer
from services.registry.servicers.credential import CredentialServicer
from services.registry.servicers.integration import IntegrationServicer
from services.registry.servicers.key import KeyServicer
from services.registry.servicers.principal import PrincipalServicer
from services.registry.servicers.staff import StaffServicer
from services.registry.servicers.tenant import TenantServicer
from services.registry.servicers.vault import VaultServicer
from services.registry.settings import PREFIX, Settings
from services.registry.store import retention
from services.registry.store.roles import BuiltInRoles
from services.registry.store.tenants import Tenants
from services.registry.tenants.deletion import Deletion
from services.registry.tenants.purge import LEADER as PURGE
from services.registry.tenants.purge import Purge
from services.registry.wanted.apply import Config
from services.registry.wanted.drafts import Drafts
from services.registry.wanted.snapshots import Snapshots
from services.registry.wanted.writing import Writer

# What is read of an issuer's keys and of a token endpoint; each call has its own, shorter time.
EGRESS_LIMITS: Final = Limits(total_s=60, response_bytes=2**18)


@dataclass(frozen=True, slots=True)
class Wired:
    """The registry's contracts with what keeps them, and the loops a deployment runs once.

    Both end inside the block of `finishing`, which lets go on what must not be broken off.
    """

    services: Sequence[Service]
    loops: Mapping[str, Callable[[], Awaitable[None]]]
    finishing: Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Base:
    """What the parts of the registry stand on."""

    database: Database
    vault: Vault
    holding: Holding
    access: AccessControl
    tenants: Tenants
    feed: Feed
    egress: Egress


def wire(base: Base, settings: Settings) -> Wired:
    """Every contract of the registry with what keeps it, and its loops."""
    database, vault, access = base.database, base.vault, base.access
    access.invalidations.reach(base.tenants.forget)
    catalog, once = Catalog.load(), Once(vault)
    log = open_log(vault, catalog)
    changes, sealing = Changes(database, once, log), Sealing(vault)
    sealing_keys = SealingKeys(database, vault)
    writing = _writing(base, catalog, once, log, sealing, sealing_keys)
    secrets = _secrets(base, settings, catalog, log, changes, sealing)
    retired_for = timedelta(days=settings.retired_key_days)
    tampering = Tampering(database, log)
    rewrapping = Rewrapping(database, vault, base.holding, log, tampering, retired_for)
    keepers = (
        *_of_wanted(base, writing, once, log),
        *_of_credentials(base, settings, secrets, writing.config, sealing, sealing_keys, log),
        (
            vault_service_pb2,
            "VaultService",
            VaultServicer(
                KeyVersions(database, changes, base.holding), rewrapping, secrets.replacing
            ),
        ),
        *_of_access(database, access, changes, settings.environment),
        (audit_service_pb2, "AuditService", _audit(database, vault, log, settings.anchor_file)),
    )
    services = [
        Service(module.DESCRIPTOR.services_by_name[name], keeper)
        for module, name, keeper in keepers
    ]
    loops = {
        KEYS: rewrapping.follow,
        ATTENTION: Attention(database, secrets.changing, log).follow,
        REFRESHER: Refresher(database, secrets.refreshing).follow,
    }
    return Wired(services, loops, secrets.refreshing.finishing)


Keepers = Sequence[tuple[Any, str, object]]
"""A contract's module, its service there, and who keeps it."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """The one write path, and the approvals that it may wait for."""

    config: Config
    approvals: Approvals


def _writing(
    base: Base,
    catalog: Catalog,
    once: Once,
    log: Log,
    sealing: Sealing,
    sealing_keys: SealingKeys,
) -> _Writing:
    database = base.database
    drafts = Drafts(catalog, SCHEMAS, base.vault, BuiltInRoles(database), sealing_keys)
    endings = Endings(log)
    staging = Staging(sealing, endings, log)
    config = Config(database, drafts, Writer(catalog, sealing), once, base.tenants, log, staging)
    return _Writing(config, Approvals(database, config, staging, endings, base.access, once, log))


def _of_wanted(base: Base, writing: _Writing, once: Once, log: Log) -> Keepers:
    """What is wanted, each contract with its keeper."""
    database, tenants = base.database, base.tenants
    config = ConfigServicer(
        writing.config, writing.approvals, Snapshots(database), base.feed, tenants
    )
    deletion = Deletion(database, log, once)
    return (
        (tenant_service_pb2, "TenantService", TenantServicer(tenants, deletion)),
        (
            integration_service_pb2,
            "IntegrationService",
            IntegrationServicer(Integrations(database)),
        ),
        (config_service_pb2, "ConfigService", config),
    )


def _of_credentials(
    base: Base,
    settings: Settings,
    secrets: "_Secrets",
    config: Config,
    sealing: Sealing,
    sealing_keys: SealingKeys,
    log: Log,
) -> Keepers:
    """Credentials and connections, each contract with its keeper."""
    credential = CredentialServicer(
        Reading(base.database),
        Putting(config),
        secrets.changing,
        secrets.revoking,
        secrets.refreshing,
        secrets.resolving,
        Uses(base.database, secrets.replacing),
        sealing_keys,
        timedelta(days=settings.retired_key_days),
    )
    connection = _connections(base, settings, secrets, config, sealing, log)
    return (
        (credential_service_pb2, "CredentialService", credential),
        (connection_service_pb2, "ConnectionService", connection),
    )


@dataclass(frozen=True, slots=True)
class _Secrets:
    """What opens, changes and refreshes credentials."""

    exchange: Exchange
    changing: Changing
    revoking: Revoking
    refreshing: Refreshing
    resolving: Resolving
    replacing: Replacing


def _secrets(
    base: Base,
    settings: Settings,
    catalog: Catalog,
    log: Log,
    changes: Changes,
    sealing: Sealing,
) -> _Secrets:
    database = base.database
    exchange = Exchange(base.egress, catalog, sealing, settings.refresh_timeout_s)
    changing = Changing(changes, sealing)
    refreshing = Refreshing(database, sealing, exchange, log, cool_s=settings.refresh_cool_s)
    resolving = Resolving(database, sealing, refreshing, Tampering(database, log))
    base.access.invalidations.reach(resolving.forget)
    return _Secrets(
        exchange,
        changing,
        Revoking(database, sealing, exchange, changing),
        refreshing,
        resolving,
        Replacing(database, changes, sealing, log),
    )


def _connections(
    base: Base,
    settings: Settings,
    secrets: _Secrets,
    config: Config,
    sealing: Sealing,
    log: Log,
) -> ConnectionServicer:
    patterns = [each.strip() for each in settings.return_urls.split(",") if each.strip()]
    addresses = Addresses(settings.public_url.rstrip("/"), parse_only(patterns), bool(patterns))
    flows = Flows(base.database, sealing, secrets.exchange, config, base.access, addresses, log)
    links = Links(base.database, base.vault, flows, addresses, log)
    return ConnectionServicer(
        Connections(base.database), flows, links, Relaying(flows), secrets.revoking
    )


def _of_access(
    database: Database, access: AccessControl, changes: Changes, environment: str
) -> Keepers:
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
        Egress(parse_allow(settings.egress_allow), EGRESS_LIMITS) as egress,
        open_vault(settings, database) as (vault, holding),
    ):
        tenants, feed = Tenants(database), Feed(database)
        access = open_access(settings, database, egress)
        base = Base(database, vault, holding, access, tenants, feed, egress)
        wired = wire(base, settings)
        counter = Counter()
        proxies = parse_networks(f"{PREFIX}_TRUSTED_PROXIES", settings.trusted_proxies)
        gates = [
            *Gates(access, tenants, proxies=proxies, observe=counter.observe).in_order(),
            counter.follow,
        ]
        listen = Listen(
            settings.listen, settings.certificate, settings.private_key, settings.client_ca
        )
        loops = {**_loops(settings, database, vault), **wired.loops}
        async with (
            holding.following(),
            wired.finishing(),
            background(
                feed.listen(),
                access.invalidations.listen(),
                *(lead(settings.system_database_url, name, loop) for name, loop in loops.items()),
            ),
            kept(counter, Usage(database).keep),
            serving(wired.services, gates, listen) as port,
        ):
            await ready_until_told(grpc=port)
            # Followers would otherwise hold up the drain for the whole of its grace.
            feed.close()
            access.invalidations.close()


def _loops(
    settings: Settings, database: Database, vault: Vault
) -> Mapping[str, Callable[[], Awaitable[None]]]:
    """What a deployment runs once, whatever is served."""
    log, anchors = open_log(vault), Anchors(database, vault.chain, settings.anchor_file)
    ageing = Retention(
        database,
        retention.TIME_TABLES,
        timedelta(days=settings.retention_days),
        retention.forget,
        closing=anchors.close,
    )
    return {
        retention.LEADER: ageing.follow,
        ANCHORS: anchors.follow,
        PURGE: Purge(database, log).follow,
        EXPIRY: Expiry(database, Endings(log)).follow,
    }


def main() -> int:
    """Start the registry by its settings."""
    return start("registry", Settings, PREFIX, run)


if __name__ == "__main__":
    sys.exit(main())
