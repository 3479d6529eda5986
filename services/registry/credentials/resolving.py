"""Opens credentials for the executor, and remembers what it opened until told otherwise."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol
from uuid import UUID

from services.chassis.cache import Cache, Keeping
from services.chassis.database import Bound, Database
from services.chassis.errors import FailedPrecondition, NotFound, TenonError
from services.chassis.invalidation import Invalidation
from services.chassis.secret import Secret
from services.registry.credentials.sealing import Sealing, check_newest
from services.registry.credentials.tampering import Tampering
from services.registry.store import credentials as store
from services.registry.store import keys

RESOLVE_TTL_S: Final = 900.0
LEASE_TTL_S: Final = 900
SOON_S: Final = 60.0
"""A token that ends within it is not given out any more, if another can be had."""
MARGIN_S: Final = 30.0
KEEPING: Final = Keeping(fresh_s=30, stale_s=30)
MOST_REMEMBERED: Final = 100_000

OAUTH2: Final = "oauth2"
APPS: Final = frozenset({"oauth2_client", "jwt_key"})
"""What apps show to token endpoints, and nobody else."""
ACCESS_TOKEN: Final = "access_token"  # noqa: S105 - the name of a part
TOKEN: Final = "token"  # noqa: S105 - likewise


class Unresolvable(FailedPrecondition):
    """A credential that cannot be used as it stands; `reason` says what somebody must do."""


class Expired(Unresolvable):
    """A credential that has ended."""

    reason = "CREDENTIAL_EXPIRED"

    def __init__(self, name: str) -> None:
        super().__init__(f"credential {name} has expired")


@dataclass(frozen=True, slots=True)
class Resolved:
    """An opened credential, for memory only; `left_s` is how long it may stay there."""

    credential_id: UUID
    type: str
    version: int
    values: Mapping[str, Secret] = field(repr=False)
    left_s: float
    previous: Sequence[tuple[int, Mapping[str, Secret]]] = field(default=(), repr=False)
    allowed_endpoints: Sequence[str] = ()
    allowed_ranges: Sequence[str] = ()


class Refreshing(Protocol):
    """Where new tokens come from."""

    async def newer(self, tenant_id: UUID, name: str, version: int) -> None:
        """See that there is a newer version than that one; raises where there can be none."""
        ...


class Resolving:
    """The use case, and the tenant's key for the executor's own sealing."""

    def __init__(
        self, database: Database, sealing: Sealing, refreshing: Refreshing, tampering: Tampering
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._refreshing = refreshing
        self._tampering = tampering
        self._known: Cache[tuple[UUID, str], Resolved] = Cache(KEEPING)
        # The newest version that was opened here, with its credential's id: an older one is not the
        # current one again.
        self._newest: OrderedDict[tuple[UUID, str], tuple[UUID, int]] = OrderedDict()

    async def resolve(self, tenant_id: UUID, name: str, newer_than: int = 0) -> Resolved:
        """The current values of a credential. Raises NotFound, Unresolvable or Unavailable.

        `newer_than` is a version that is known to be past: word of that may not have come here yet.
        """
        place, load = (tenant_id, name), partial(self._load, tenant_id, name)
        found = await self._known.get(place, load)
        if found.version <= newer_than:
            self._known.drop(lambda key, _: key == place)
            found = await self._known.get(place, load)
        return found

    def forget(self, told: Invalidation) -> None:
        """Drop what no longer holds."""
        concerned = told.secrets()
        self._known.drop(lambda key, _: concerned(*key))

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None) -> tuple[UUID, Secret]:
        """The id of a data key of the tenant, and the key derived from it for the executor.

        The current one, unless another is named; NotFound where it is not there any more.
        """
        place = {"tenant_id": tenant_id, "data_key_id": data_key_id}
        which = keys.DATA_KEY if data_key_id is None else keys.DATA_KEY_OF
        rows = await self._database.read(tenant_id, which, **place)
        if not rows and data_key_id is not None:
            raise NotFound("the tenant has no such data key")
        if not rows:
            raise FailedPrecondition("the tenant has no data key", reason="NO_DATA_KEY")
        async with self._tampering.telling(tenant_id, "DataKey", str(rows[0].data_key_id)):
            return rows[0].data_key_id, self._sealing.tenant_key(rows[0]).lease()

    async def _load(self, tenant_id: UUID, name: str) -> tuple[Resolved, float]:
        row, older = await self._read(tenant_id, name)
        if row.type == OAUTH2 and _ends_soon(row):
            row, older = await self._refreshed(tenant_id, name, row, older)
        _check(row, name)
        async with self._tampering.telling(tenant_id, "Credential", name, row.credential_id):
            found = self._opened(row, older)
        self._remember(row)
        return found, min(found.left_s, KEEPING.fresh_s)

    async def _refreshed(
        self, tenant_id: UUID, name: str, row: Any, older: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        """The rows with newer tokens; the old ones while they still hold and no others come."""
        try:
            await self._refreshing.newer(tenant_id, name, row.version)
        except TenonError:
            if not row.has_token or _is_over(row):
                raise
            return row, older
        return await self._read(tenant_id, name)

    async def _read(self, tenant_id: UUID, name: str) -> tuple[Any, Sequence[Any]]:
        asked = {"tenant_id": tenant_id, "name": name}
        # Taken before it is read: what another call opens meanwhile is no proof against this one.
        known = self._newest.get((tenant_id, name))
        rows, older = await self._database.read_all(
            tenant_id, [Bound(store.RESOLVE, asked), Bound(store.OVERLAPPING, asked)]
        )
        if not rows:
            raise NotFound(f"there is no credential {name}")
        async with self._tampering.telling(tenant_id, "Credential", name, rows[0].credential_id):
            seen = known[1] if known is not None and known[0] == rows[0].credential_id else 0
            check_newest(rows[0], seen)
        return rows[0], older

    def _remember(self, row: Any) -> None:
        place = (row.tenant_id, row.name)
        self._newest[place] = (row.credential_id, row.version)
        self._newest.move_to_end(place)
        while len(self._newest) > MOST_REMEMBERED:
            self._newest.popitem(last=False)

    def _opened(self, row: Any, older: Sequence[Any]) -> Resolved:
        ends = [row.left_s, row.ends_in_s, *(each.left_s for each in older)]
        left_s = min([RESOLVE_TTL_S, *(_usable_s(float(end)) for end in ends if end is not None)])
        return Resolved(
            row.credential_id,
            row.type,
            row.version,
            self._told(row.type, row),
            max(left_s, 0.0),
            [(each.version, self._told(row.type, each)) for each in older],
            row.allowed_endpoints,
            row.allowed_ranges,
        )

    def _told(self, credential_type: str, row: Any) -> Mapping[str, Secret]:
        """The values of a version that are the executor's business."""
        values = self._sealing.opened(row)
        if credential_type != OAUTH2:
            return values
        # What refreshes it, and who its owner is, is nothing to the executor.
        return {TOKEN: values[ACCESS_TOKEN]} if ACCESS_TOKEN in values else {}


def _usable_s(left_s: float) -> float:
    """How long something may be used that ends: a call that begins with it must end before it."""
    return left_s - min(MARGIN_S, left_s / 2)


def _ends_soon(row: Any) -> bool:
    """Whether another token is wanted: there is none yet, or it ends soon."""
    if row.status in {"revoked", "reconnect"}:
        return False
    if row.version == 0:
        return row.grant in {"client_credentials", "jwt_bearer"}
    return not row.has_token or (row.left_s is not None and float(row.left_s) < SOON_S)


def _is_over(row: Any) -> bool:
    return row.left_s is not None and float(row.left_s) <= 0


def _check(row: Any, name: str) -> None:
    """Raise Unresolvable for a credential that nobody may use as it stands."""
    if row.type in APPS:
        raise Unresolvable(
            f"credential {name} is an app's: its secrets stay here", reason="CREDENTIAL_OF_APP"
        )
    if row.status == "revoked":
        raise Unresolvable(f"credential {name} was revoked", reason="CREDENTIAL_REVOKED")
    has_token = row.type != OAUTH2 or row.has_token
    if row.status == "reconnect" and (_is_over(row) or not has_token):
        raise Unresolvable(
            f"the account of credential {name} must be connected again",
            reason="CREDENTIAL_RECONNECT",
        )
    if row.version == 0:
        raise Unresolvable(
            f"credential {name} has no values yet; connect an account", reason="CREDENTIAL_EMPTY"
        )
    if row.shredded_at is not None:
        raise Unresolvable(f"credential {name} was destroyed", reason="CREDENTIAL_SHREDDED")
    if row.has_ended or _is_over(row):
        raise Expired(name)
