"""The tables of the schema `registry`, as statements see them; migrations make them."""

from typing import Final

from sqlalchemy import Table

from services.registry.tables import access as _access
from services.registry.tables import audit as _audit
from services.registry.tables import config as _config
from services.registry.tables import connections as _connections
from services.registry.tables import credentials as _credentials
from services.registry.tables import keys as _keys
from services.registry.tables import tenants as _tenants
from services.registry.tables import wanted as _wanted
from services.registry.tables.access import (
    api_key_usage,
    api_keys,
    permissions,
    platform_grants,
    principals,
    role_bindings,
    role_permissions,
    roles,
    staff,
    tenant_principals,
    tenant_roles,
    tenant_switches,
)
from services.registry.tables.audit import (
    audit_anchors,
    audit_events,
    audit_heads,
    audit_reviews,
    platform_audit_anchors,
    platform_audit_events,
    platform_audit_head,
    platform_audit_reviews,
)
from services.registry.tables.columns import metadata
from services.registry.tables.config import (
    config_ownership,
    config_revisions,
    feed,
    pending_approvals,
    pending_revisions,
    platform_answers,
    request_answers,
)
from services.registry.tables.connections import (
    connect_links,
    connections,
    oauth_flows,
)
from services.registry.tables.credentials import (
    credential_status,
    credential_uses,
    credential_versions,
    credentials,
    venues,
)
from services.registry.tables.keys import (
    data_keys,
    key_holders,
    key_versions,
    sealing_keys,
)
from services.registry.tables.tenants import (
    deployment,
    tenant_status,
    tenant_tombstones,
    tenants,
)
from services.registry.tables.wanted import (
    connectors,
    event_types,
    integrations,
    review_policies,
    subscriptions,
    webhook_endpoints,
)

__all__ = [
    "IN_ORDER",
    "api_key_usage",
    "api_keys",
    "audit_anchors",
    "audit_events",
    "audit_heads",
    "audit_reviews",
    "config_ownership",
    "config_revisions",
    "connect_links",
    "connections",
    "connectors",
    "credential_status",
    "credential_uses",
    "credential_versions",
    "credentials",
    "data_keys",
    "deployment",
    "event_types",
    "feed",
    "integrations",
    "key_holders",
    "key_versions",
    "metadata",
    "oauth_flows",
    "pending_approvals",
    "pending_revisions",
    "permissions",
    "platform_answers",
    "platform_audit_anchors",
    "platform_audit_events",
    "platform_audit_head",
    "platform_audit_reviews",
    "platform_grants",
    "principals",
    "request_answers",
    "review_policies",
    "role_bindings",
    "role_permissions",
    "roles",
    "sealing_keys",
    "staff",
    "subscriptions",
    "tenant_principals",
    "tenant_roles",
    "tenant_status",
    "tenant_switches",
    "tenant_tombstones",
    "tenants",
    "venues",
    "webhook_endpoints",
]

IN_ORDER: Final[tuple[Table, ...]] = tuple(
    table
    for module in (_tenants, _access, _keys, _credentials, _wanted, _connections, _config, _audit)
    for table in vars(module).values()
    if isinstance(table, Table)
)
"""All of them, what is referred to before what refers to it."""
