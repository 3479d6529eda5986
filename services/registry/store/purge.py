"""What the registry deletes of a tenant that goes: all but its slug and the proof."""

from typing import Final

from services.chassis.purge import TenantRows
from services.registry import tables as t

KEPT: Final = frozenset(
    {
        *("tenants", "tenant_tombstones", "config_revisions"),
        # A tenant's principals must not become the platform's.
        "tenant_principals",
        *("audit_events", "audit_heads", "audit_anchors", "audit_reviews"),
    }
)
"""What stays of a purged tenant. Source: migrations/tenancy.py:KEPT."""

ROWS: Final = TenantRows(
    [table for table in reversed(t.IN_ORDER) if "tenant_id" in table.c and table.name not in KEPT]
)
