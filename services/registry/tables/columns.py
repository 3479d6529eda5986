"""What columns and tables of the registry have in common."""

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData(schema="registry")


def moment(name: str, *, nullable: bool = False) -> Column[Any]:
    """A time with its zone."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def text(name: str) -> Column[Any]:
    """A text that is always there, empty where nothing is said."""
    return Column(name, Text, nullable=False)


def id_(name: str, *, key: bool = False, nullable: bool = False) -> Column[Any]:
    """A uuid."""
    return Column(name, UUID(as_uuid=True), primary_key=key, nullable=nullable)


def wanted(name: str, id_column: str, *columns: Column[Any]) -> Table:
    """A table of wanted objects: what all kinds have, then the kind's own."""
    return Table(
        name,
        metadata,
        id_("tenant_id", key=True),
        id_(id_column, key=True),
        text("name"),
        Column("labels", JSONB, nullable=False),
        Column("annotations", JSONB, nullable=False),
        Column("revision", BigInteger, nullable=False),
        moment("created_at"),
        moment("updated_at"),
        *columns,
    )
