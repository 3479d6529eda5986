"""Runs and transfers that a caller begins once a request id, however often they ask."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.chassis.database import Transaction
from services.chassis.errors import FailedPrecondition
from services.executor.store import run_requests


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, by which id; without one each time is a first time."""

    tenant_id: UUID
    principal_id: UUID
    request_id: UUID | None


async def first_of(tx: Transaction, request: Request, wanted: Any, new_id: UUID) -> UUID | None:
    """What an earlier request of the same id has begun; None where this is the first.

    Raises FailedPrecondition where that one wanted something else.
    """
    if request.request_id is None:
        return None
    asked = hashlib.sha256(canonical(wanted)).digest()
    first_hash, first = await run_requests.take(
        tx,
        tenant_id=request.tenant_id,
        principal_id=request.principal_id,
        request_id=request.request_id,
        request_hash=asked,
        execution_id=new_id,
    )
    if first_hash != asked:
        raise FailedPrecondition(
            "this request_id was used for another run", reason="REQUEST_ID_REUSED"
        )
    return None if first == new_id else first


def canonical(value: object) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
