"""Ids in the order of time (UUIDv7) and the names of resources (AIP-122)."""

import re
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID

from services.chassis.errors import InvalidArgument
from services.chassis.randomness import Randomness

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LAST_MS: Final = 2**48 - 1

# RFC 9562 §5.7: 48 bits of milliseconds, version, 12 bits, variant, 62 bits.
_RAND_B_BITS: Final = 62
_TAIL_BITS: Final = 12 + _RAND_B_BITS
# The top bit stays free at the start of a millisecond, as room to count in.
_SEED_BITS: Final = _TAIL_BITS - 1
_STEP_BITS: Final = 32


def _assemble(ms: int, tail: int) -> UUID:
    if not 0 <= ms <= _LAST_MS:
        raise ValueError("the time does not fit a UUIDv7")
    rand_a, rand_b = tail >> _RAND_B_BITS, tail & (2**_RAND_B_BITS - 1)
    return UUID(int=ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


class OrderedIds:
    """UUIDv7s that only ever grow, also within a millisecond and when the clock steps back.

    Within one millisecond the random part grows by a random step (RFC 9562 §6.2, method 2).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._random = Randomness()
        self._ms = -1
        self._tail = 0

    def next(self, now_ms: int) -> UUID:
        """An id greater than every one given before; its time is `now_ms` or the last one's."""
        with self._lock:
            if now_ms > self._ms:
                self._ms, self._tail = now_ms, self._random.bits(_SEED_BITS)
            else:
                self._tail += 1 + self._random.bits(_STEP_BITS)
                if self._tail >> _TAIL_BITS:
                    self._ms, self._tail = self._ms + 1, self._random.bits(_SEED_BITS)
            return _assemble(self._ms, self._tail)


_ids_of_this_process: Final = OrderedIds()


def uuid7(now_ms: int | None = None) -> UUID:
    """A new id: of this moment and greater than the last, or of the Unix millisecond given.

    Ids of a given moment stand outside the process's order: two of one millisecond are unordered.
    """
    if now_ms is not None:
        return _assemble(now_ms, secrets.randbits(_TAIL_BITS))
    return _ids_of_this_process.next(time.time_ns() // 1_000_000)


def uuid7_floor(moment: datetime) -> UUID:
    """The lowest id of the millisecond in which `moment` lies; for bounds of partitions and times.

    Raises ValueError for a time without a zone or before 1970.
    """
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone")
    return _assemble((moment - _EPOCH) // _MILLISECOND, 0)


def uuid7_time(identifier: UUID) -> datetime:
    """When `identifier` was made, in UTC to the millisecond. Raises ValueError if not a UUIDv7."""
    if identifier.version != 7:
        raise ValueError("not a UUIDv7")
    return _EPOCH + (identifier.int >> 80) * _MILLISECOND


SLUG_RULE: Final = (
    "1 to 63 lower-case letters, digits and hyphens, beginning with a letter "
    "and not ending with a hyphen"
)
SLUG: Final = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""The last part of a resource name; source: AIP-122, resource id segments. Use `fullmatch`."""

DOTTED: Final = re.compile(r"[a-zA-Z0-9_-]+(?:\.[a-zA-Z0-9_-]+)*")
DOTTED_RULE: Final = "words of letters, digits, _ and - joined by dots"
"""How a type of event reads, such as `invoice.paid`. Use `fullmatch`."""

TENANT_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class BadName(InvalidArgument):
    """A name that breaks the rule for names. The message does not repeat the name."""

    reason = "BAD_NAME"


def check_slug(text: str) -> str:
    """`text` itself when it is a slug; else raises BadName with the rule."""
    if not SLUG.fullmatch(text):
        raise BadName(f"a name is {SLUG_RULE}")
    return text


def format_tenant(tenant: str) -> str:
    """`tenants/{tenant}`."""
    return f"tenants/{check_slug(tenant)}"


def parse_tenant(text: str) -> str:
    """The slug or the id in `tenants/{tenant}`. Raises BadName."""
    return _parts(text, "tenants/{tenant}")[0]


def format_name(tenant: str, collection: str, name: str) -> str:
    """`tenants/{tenant}/{collection}/{name}`, say `tenants/acme/integrations/github`."""
    return f"{format_tenant(tenant)}/{collection}/{check_slug(name)}"


def parse_name(text: str, collection: str) -> tuple[str, str]:
    """The tenant and the name in `tenants/{tenant}/{collection}/{name}`. Raises BadName.

    The tenant may be given by its id, too.
    """
    tenant, name = _parts(text, f"tenants/{{tenant}}/{collection}/{{name}}")
    return tenant, name


def collection_of(kind: str) -> str:
    """What names of objects of a kind have in the middle: `roleBindings` for `RoleBinding`."""
    word = kind[:1].lower() + kind[1:]
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


@lru_cache(maxsize=8192)
def _parts(text: str, pattern: str) -> tuple[str, ...]:
    wanted, given = pattern.split("/"), text.split("/")
    if len(wanted) != len(given):
        raise BadName(f"a name of the form {pattern} is needed")
    pairs = list(zip(wanted, given, strict=True))
    if any(want != part for want, part in pairs if not want.startswith("{")):
        raise BadName(f"a name of the form {pattern} is needed")
    return tuple(_checked(want, part) for want, part in pairs if want.startswith("{"))


def _checked(want: str, part: str) -> str:
    return part if want == "{tenant}" and TENANT_ID.fullmatch(part) else check_slug(part)
