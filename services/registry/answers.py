"""Answers kept for 24 h: a request repeated with its request_id is answered as the first time."""

import hmac
from dataclasses import dataclass
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.chassis.errors import InvalidArgument
from services.registry.store import answers as store


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it may come again; `digest` is a keyed hash of all its words."""

    tenant_id: UUID
    principal_id: UUID
    method: str
    request_id: UUID
    digest: bytes


async def kept(transaction: Transaction, asked: Asked) -> bytes | None:
    """The answer of the first time, if there was one. Raises InvalidArgument for other words."""
    row = await transaction.one(
        store.FIND,
        tenant_id=asked.tenant_id,
        principal_id=asked.principal_id,
        method=asked.method,
        request_id=asked.request_id,
    )
    if row is None:
        return None
    if not hmac.compare_digest(bytes(row.request_hash), asked.digest):
        raise InvalidArgument(
            "this request_id was used for another request; make a new one",
            reason="REQUEST_ID_REUSED",
        )
    return bytes(row.answer)


def keeping(asked: Asked, answer: bytes) -> list[Bound]:
    """What keeps an answer, and lets go of the tenant's old ones."""
    kept_as = {
        "tenant_id": asked.tenant_id,
        "principal_id": asked.principal_id,
        "method": asked.method,
        "request_id": asked.request_id,
        "request_hash": asked.digest,
        "answer": answer,
    }
    return [
        Bound(store.FORGET, {"tenant_id": asked.tenant_id}),
        Bound(store.KEEP, kept_as),
    ]
