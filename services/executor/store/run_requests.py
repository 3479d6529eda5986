"""The requests that started executions, so that a repeated one starts no second."""

from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Bound, Statement, Transaction
from services.executor.store.executions import bound
from services.executor.tables import RUN_REQUESTS

_KEY = ("tenant_id", "principal_id", "request_id")

TAKE_REQUEST = Statement(
    insert(RUN_REQUESTS)
    .values(bound(RUN_REQUESTS, *_KEY, "request_hash", "execution_id"))
    .on_conflict_do_nothing()
)
REQUEST = Statement(
    select(RUN_REQUESTS.c.request_hash, RUN_REQUESTS.c.execution_id).where(
        *(RUN_REQUESTS.c[name] == bindparam(name) for name in _KEY)
    )
)


async def take(
    tx: Transaction,
    *,
    tenant_id: UUID,
    principal_id: UUID,
    request_id: UUID,
    request_hash: bytes,
    execution_id: UUID,
) -> tuple[bytes, UUID]:
    """Take a request id; answers with its hash and execution: these, or the first one's.

    Of two at once the second waits for the first's transaction.
    """
    key = {"tenant_id": tenant_id, "principal_id": principal_id, "request_id": request_id}
    new = {"request_hash": request_hash, "execution_id": execution_id}
    _, rows = await tx.pipeline([Bound(TAKE_REQUEST, {**key, **new}), Bound(REQUEST, key)])
    return bytes(rows[0].request_hash), rows[0].execution_id
