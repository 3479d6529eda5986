"""What a provider's refusal means, how long to wait, and when to try again."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

from services.providers.manifest import FailureKind, FailureRule, Manifest, RetryAfterSource

MAX_RETRY_AFTER_S: Final = 3600.0
_MAX_MESSAGE: Final = 300
_DIGITS: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,6})?")

_BY_STATUS: Final[Mapping[int, FailureKind]] = {
    401: "auth",
    403: "auth",
    404: "not_found",
    407: "auth",
    408: "transient",
    410: "not_found",
    425: "transient",
    429: "rate_limited",
    500: "transient",
    502: "transient",
    503: "transient",
    504: "transient",
}
_RETRYABLE: Final = frozenset[FailureKind]({"rate_limited", "transient"})
_REFUSED: Final = frozenset[FailureKind]({"rate_limited", "auth", "not_found", "invalid"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a provider did not do what was asked.

    `retryable`: the same request may succeed later, after `retry_after_s` seconds if given.
    `refused`: the provider says it did nothing, so that trying again repeats no effect.
    `message` is the provider's own, shortened; it is None when it gave none.
    """

    kind: FailureKind
    status: int
    message: str | None = None
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in _RETRYABLE

    @property
    def refused(self) -> bool:
        """Whether the provider surely did nothing."""
        return self.kind in _REFUSED


def classify(
    manifest: Manifest, status: int, headers: Mapping[str, str], now: float, body: bytes = b""
) -> Failure | None:
    """The failure in an answer, or None for 2xx and 304; header names are lower-case.

    The manifest's first matching rule decides, else the status alone. `now` is in seconds since
    the epoch. Some providers refuse with a good status: that is a failure by a rule of its body.
    """
    good = 200 <= status < 300 or status == 304
    rules = [rule for rule in manifest.failures.rules if rule.field or not good]
    if good and not rules:
        return None
    said = _fields(body)
    message = _message(said, manifest.failures.message)
    rule = _first_match(rules, status, headers, said, message)
    if good and rule is None:
        return None
    kind = rule.kind if rule else _kind_of(status)
    wait = retry_after(headers, now, manifest.failures.retry_after)
    if wait is None and rule is not None:
        wait = rule.wait_s
    return Failure(kind, status, message, wait if kind in _RETRYABLE else None)


def retry_after(
    headers: Mapping[str, str],
    now: float,
    sources: tuple[RetryAfterSource, ...] = ("retry-after", "x-ratelimit-reset"),
) -> float | None:
    """Seconds to wait as the first of `sources` that speaks has it, from 0 to one hour, or None."""
    waits = (_SOURCES[source](headers, now) for source in sources)
    wait = next((wait for wait in waits if wait is not None), None)
    return None if wait is None else min(max(wait, 0.0), MAX_RETRY_AFTER_S)


def backoff(attempt: int, *, base_s: float, cap_s: float, rng: Random) -> float:
    """Seconds to wait before try `attempt` + 1 (attempts count from 1), with equal jitter.

    Half of min(cap_s, base_s * 2 ** (attempt - 1)) is kept, so that nobody hammers, and half is
    random, so that many do not return together.
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(max(attempt - 1, 0), 60))
    return ceiling / 2 + rng.uniform(0, ceiling / 2)


def _kind_of(status: int) -> FailureKind:
    default: FailureKind = "invalid" if 400 <= status < 500 else "provider_error"
    return _BY_STATUS.get(status, default)


def _first_match(
    rules: Sequence[FailureRule],
    status: int,
    headers: Mapping[str, str],
    said: Mapping[str, object],
    message: str | None,
) -> FailureRule | None:
    return next((rule for rule in rules if _matches(rule, status, headers, said, message)), None)


def _matches(
    rule: FailureRule,
    status: int,
    headers: Mapping[str, str],
    said: Mapping[str, object],
    message: str | None,
) -> bool:
    name, value = rule.header or ("", "")
    field, sign = rule.field or ("", None)
    return (
        (not rule.status or status in rule.status)
        and (not name or headers.get(name.lower()) == value)
        and (not rule.header_present or rule.header_present.lower() in headers)
        and (not field or _same(said.get(field), sign))
        and (not rule.message or bool(re.search(rule.message, message or "", re.IGNORECASE)))
    )


def _same(said: object, sign: object) -> bool:
    # JSON's true is not its 1, which Python would call equal.
    return type(said) is type(sign) and said == sign


def _fields(body: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(said: Mapping[str, object], names: Sequence[str]) -> str | None:
    message = next(filter(None, (_sentence(said.get(name)) for name in names)), "")
    return "".join(c if c.isprintable() else " " for c in message[:_MAX_MESSAGE]) or None


def _sentence(value: object) -> str:
    """A text, or those in a list or a mapping, a mapping's with their names."""
    if isinstance(value, dict):
        value = [f"{key}: {text}" for key, text in value.items() if isinstance(text, str)]
    if isinstance(value, list):
        return "; ".join(text for text in value if isinstance(text, str))
    return value if isinstance(value, str) else ""


def _from_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds, or an HTTP-date."""
    value = headers.get("retry-after", "").strip()
    if _DIGITS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.timestamp() - now
    except (ValueError, OverflowError):
        return None


def _from_ratelimit_reset(headers: Mapping[str, str], now: float) -> float | None:
    """GitHub's primary limit: once nothing remains, wait until this time (epoch seconds)."""
    value = headers.get("x-ratelimit-reset", "").strip()
    if headers.get("x-ratelimit-remaining") != "0" or not _DIGITS.fullmatch(value):
        return None
    return float(value) - now


_SOURCES: Final[Mapping[RetryAfterSource, Callable[[Mapping[str, str], float], float | None]]] = {
    "retry-after": _from_retry_after,
    "x-ratelimit-reset": _from_ratelimit_reset,
}
