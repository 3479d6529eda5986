"""The platform's staff."""

from typing import Any, Final
from uuid import UUID

from sqlalchemy import Text, bindparam, cast, delete, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.dialects.postgresql import insert as upsert

from services.chassis.database import Bound, Statement, Transaction
from services.chassis.errors import FailedPrecondition
from services.registry import tables as t
from services.registry.store.api_keys import LIVING

OWNER: Final = "owner"

_S, _P, _K = t.staff.c, t.principals.c, t.api_keys.c

_ROWS = select(t.staff, _P.display_name).select_from(
    t.staff.join(t.principals, _P.principal_id == _S.principal_id)
)
FIND = Statement(_ROWS.where(_S.principal_id == bindparam("principal_id")))
PAGE = Statement(
    _ROWS.where(_S.principal_id > bindparam("after", type_=_S.principal_id.type))
    .order_by(_S.principal_id)
    .limit(bindparam("size"))
)
_SET = upsert(t.staff).values(
    {
        name: bindparam(name, type_=_S[name].type)
        for name in ("principal_id", "role", "permissions", "created_by")
    }
)
SET = Statement(
    _SET.on_conflict_do_update(
        index_elements=["principal_id"],
        set_={
            "role": _SET.excluded.role,
            "permissions": _SET.excluded.permissions,
            "updated_at": func.now(),
        },
    )
)
REMOVE = Statement(delete(t.staff).where(_S.principal_id == bindparam("principal_id")))
LOCK_OWNERS = Statement(
    select(_S.principal_id).where(_S.role == OWNER).order_by(_S.principal_id).with_for_update()
)
OWNERS = Statement(
    select(_S.principal_id)
    .select_from(t.staff.join(t.principals, _P.principal_id == _S.principal_id))
    .where(_S.role == OWNER, _P.disabled_at.is_(None))
)
# Who has an issuer signs in with it; who has none, by a key that lets an owner be one.
_KEY_IN = (
    select(_K.key_id)
    .where(
        _K.principal_id == _P.principal_id,
        _K.key_id != bindparam("but_key_id"),
        _K.scopes.overlap(cast(array(["*", "staff.manage"]), ARRAY(Text))),
        LIVING,
    )
    .exists()
)
COMING_IN = Statement(
    select(_S.principal_id)
    .select_from(t.staff.join(t.principals, _P.principal_id == _S.principal_id))
    .where(_S.role == OWNER, _P.disabled_at.is_(None), or_(_P.issuer != "", _KEY_IN))
)
BE_THE_FIRST = Statement(
    select(func.pg_advisory_xact_lock(func.hashtextextended("registry.staff", 0)))
)


async def owners(transaction: Transaction) -> set[UUID]:
    """The owners who may call, none of whom can be lost until the transaction ends."""
    # In a statement of its own, which sees what those did whom the lock waited for.
    _, rows = await transaction.pipeline([Bound(LOCK_OWNERS), Bound(OWNERS)])
    return {row.principal_id for row in rows}


async def keep_an_owner(transaction: Transaction, leaving: Any) -> None:
    """Refuse to lose the last owner. Raises FailedPrecondition."""
    if await owners(transaction) == {leaving}:
        raise FailedPrecondition(
            "this is the last owner; make another one first", reason="LAST_OWNER"
        )


async def keep_a_way_in(transaction: Transaction, leaving: str) -> None:
    """Refuse to lose the last key by which an owner comes in. Raises FailedPrecondition.

    The owners are held already.
    """
    if await transaction.one(COMING_IN, but_key_id=leaving) is None:
        raise FailedPrecondition(
            "no owner could come in without this key; make another one first", reason="LAST_OWNER"
        )
