"""Keys: the versions that wrap, who holds them, tenants' data keys, and pairs to seal to."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, Table
from sqlalchemy.dialects.postgresql import ARRAY

from services.registry.tables.columns import id_, metadata, moment, text

key_versions = Table(
    "key_versions",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("proof", LargeBinary, nullable=False),
    moment("created_at"),
    *map(text, ("state", "provider", "reference")),
    Column("wrapped", LargeBinary, nullable=False),
    Column("wraps", BigInteger, nullable=False),
    moment("changed_at"),
    Column("usable", Boolean, nullable=False),
)


def wrapped_by_version() -> tuple[Column[int], Column[bool]]:
    """By which version something is wrapped; the other column ties it to one that is usable."""
    return Column("key_version", Integer, nullable=False), Column(
        "key_usable", Boolean, nullable=False
    )


key_holders = Table(
    "key_holders",
    metadata,
    id_("holder_id", key=True),
    text("host"),
    Column("versions", ARRAY(Integer), nullable=False),
    moment("seen_at"),
)

sealing_keys = Table(
    "sealing_keys",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    *wrapped_by_version(),
    Column("wrapped", LargeBinary, nullable=False),
    moment("created_at"),
)

data_keys = Table(
    "data_keys",
    metadata,
    id_("tenant_id", key=True),
    id_("data_key_id", key=True),
    *wrapped_by_version(),
    Column("wrapped", LargeBinary),
    moment("created_at"),
    text("state"),
    Column("wraps", BigInteger, nullable=False),
    moment("retired_at", nullable=True),
)
