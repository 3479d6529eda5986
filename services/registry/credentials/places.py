"""Where sealed things of a tenant stand: what their bytes, and the keys to them, are bound to."""

from typing import Final
from uuid import UUID

from services.chassis.envelope import KeyPlace, Place

TABLE: Final = "registry.credential_versions"
COLUMN: Final = "sealed"
TENANT_KEY: Final = "tenant-data-key"


def value_place(tenant_id: UUID, credential_id: UUID, version_id: UUID, key_id: UUID) -> Place:
    """Of a credential version's values; `key_id` is the version's own key."""
    return Place(tenant_id, TABLE, credential_id, COLUMN, version_id, key_id)


def key_place(tenant_id: UUID, sealed_id: UUID, number: int = 1) -> KeyPlace:
    """Of the key to something sealed, by its id; a credential version's is bound to its number too.

    Not to the tenant's data key that wraps it, which may be replaced.
    """
    return KeyPlace(tenant_id, sealed_id, TENANT_KEY, number)
