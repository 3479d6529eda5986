"""Roles in tenants for the principals of tests, without a change of configuration."""

from uuid import UUID, uuid4

from sqlalchemy import insert

from services.chassis.database import Database, Statement
from services.registry import tables as t


async def grant(database: Database, tenant_id: UUID, kind: str, subject: UUID, role: str) -> None:
    """Bind a principal that is known only by its id to a role in one tenant."""
    row = {
        "tenant_id": tenant_id,
        "binding_id": uuid4(),
        "name": f"test-{uuid4().hex[:12]}",
        "labels": {},
        "annotations": {},
        "revision": 0,
        "role": role,
        "principal_kind": kind,
        "issuer": "",
        "subject": str(subject),
        "kinds": [],
        "sources": ["*"],
    }
    async with database.tenant(tenant_id) as transaction:
        await transaction.run(Statement(insert(t.role_bindings).values(row)))
