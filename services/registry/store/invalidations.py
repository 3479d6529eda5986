"""Telling every process, at commit, that something which it remembers no longer holds."""

import json
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select

from services.chassis.database import Bound, Statement
from services.chassis.invalidation import identity_of

CHANNEL: Final = "registry_access"
TELL: Final = Statement(select(func.pg_notify(bindparam("channel"), bindparam("told"))))


def telling(
    *,
    principal: UUID | None = None,
    key: str | None = None,
    tenant: UUID | None = None,
    identity: tuple[str, str, str] | None = None,
    credential: tuple[UUID, str] | None = None,
) -> Bound:
    """The statement that tells it; it belongs into the transaction of the change.

    Name exactly one: a `principal` (disabled, enabled, given or deprived of a role of the
    platform), a `key` by its id (revoked, rotated), a `tenant` (its state, its roles and bindings:
    whoever has access there, and what is cached of it), an `identity` (kind, issuer, subject:
    whom a binding names, who may not have had access there before), or a `credential` (its tenant
    and name: it has another version, or none).
    """
    told = {
        "principal": principal and str(principal),
        "key": key,
        "tenant": tenant and str(tenant),
        "identity": identity and identity_of(*identity),
        "credential": credential and "/".join(map(str, credential)),
    }
    named = {what: of for what, of in told.items() if of is not None}
    if len(named) != 1:
        raise ValueError("an invalidation names exactly one thing")
    return Bound(TELL, {"channel": CHANNEL, "told": json.dumps(named)})
