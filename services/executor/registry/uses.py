"""How credentials are used, and how much is sealed with leased keys, counted in memory.

`chassis.usage` hands it on, tenant by tenant, and keeps what it cannot hand on. What was counted
since is lost when the process is killed, and counts twice where the answer to a report was lost:
it is for people to look at, and says in time when a key has sealed enough.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, NamedTuple
from uuid import UUID

from services.executor.registry.credentials import Resolved
from services.providers.client import ProviderResponse

HOUR_S: Final = 3600
RATE_LIMIT_HEADERS: Final = (
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
)
"""What providers say of how much may be asked: GitHub's names, the IETF's drafts', RFC 9110's."""
LONGEST_LIMIT: Final = 100
REFUSED: Final = frozenset({401, 403})

Outcome = Literal["let in", "refused", "failed"]
"""A call that failed for another reason says nothing of its credential."""

_Where = tuple[UUID, int]


class Use(NamedTuple):
    """How one credential was used within an hour; times are seconds since 1970.

    The last success and the last refusal are those of `version`, the newest that was used.
    """

    version: int
    uses: int
    errors: int
    last_use: float
    last_success: float | None = None
    last_refusal: float | None = None
    rate_limit: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Used:
    """What was counted of a tenant: by credential and hour, and seals by data key."""

    tenant_id: UUID
    uses: dict[_Where, Use] = field(default_factory=dict)
    seals: Counter[UUID] = field(default_factory=Counter)


class Uses:
    """Counts them."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._counted: dict[UUID, Used] = {}

    def note(
        self,
        tenant_id: UUID,
        credential: Resolved,
        outcome: Outcome,
        rate_limit: Mapping[str, str] | None = None,
    ) -> None:
        """Count one use of a credential, and what it came to."""
        now = self._now()
        use = Use(
            version=credential.version,
            uses=1,
            errors=int(outcome != "let in"),
            last_use=now,
            last_success=now if outcome == "let in" else None,
            last_refusal=now if outcome == "refused" else None,
            rate_limit=rate_limit or {},
        )
        self._add(tenant_id, (credential.credential_id, int(now) // HOUR_S * HOUR_S), use)

    def note_seal(self, tenant_id: UUID, data_key_id: UUID) -> None:
        """Count one message sealed with a key derived from a data key."""
        self._of(tenant_id).seals[data_key_id] += 1

    def drain(self) -> list[Used]:
        """All that was counted since the last time, a tenant each."""
        counted, self._counted = self._counted, {}
        return list(counted.values())

    def put_back(self, used: Used) -> None:
        """Keep what could not be handed on."""
        for where, use in used.uses.items():
            self._add(used.tenant_id, where, use)
        self._of(used.tenant_id).seals.update(used.seals)

    def _add(self, tenant_id: UUID, where: _Where, use: Use) -> None:
        of_tenant = self._of(tenant_id).uses
        known = of_tenant.get(where)
        of_tenant[where] = use if known is None else _together(known, use)

    def _of(self, tenant_id: UUID) -> Used:
        found = self._counted.get(tenant_id)
        if found is None:
            found = self._counted[tenant_id] = Used(tenant_id)
        return found


def outcome_of(response: ProviderResponse) -> Outcome:
    """What an answer says of the credential that its call was made with."""
    failure = response.failure
    if failure is None:
        return "let in"
    return "refused" if failure.kind == "auth" and failure.status in REFUSED else "failed"


def rate_limit_of(headers: Mapping[str, str]) -> dict[str, str]:
    """What a provider says of how much may be asked; header names are lower-case."""
    said = {name: headers[name] for name in RATE_LIMIT_HEADERS if name in headers}
    # A header may hold bytes that are no text.
    return {n: v[:LONGEST_LIMIT].encode(errors="replace").decode() for n, v in said.items()}


def _together(one: Use, other: Use) -> Use:
    in_order = (one.version, one.last_use) <= (other.version, other.last_use)
    older, newer = (one, other) if in_order else (other, one)
    # How an older version was answered says nothing of the one that is used now.
    same = older.version == newer.version
    return Use(
        version=newer.version,
        uses=one.uses + other.uses,
        errors=one.errors + other.errors,
        last_use=max(one.last_use, other.last_use),
        last_success=newer.last_success or (older.last_success if same else None),
        last_refusal=newer.last_refusal or (older.last_refusal if same else None),
        rate_limit=newer.rate_limit or older.rate_limit,
    )
