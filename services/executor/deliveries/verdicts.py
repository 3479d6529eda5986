"""What a try of a delivery came to: pure.

A 2xx has taken it. What says that it is gone (410), and what could never be sent, ends it; all else
is tried again, redirects too, since nobody follows them. Sources: Standard Webhooks 1.0.0,
"Operational considerations"; RFC 9110, sections 10.2.3 and 15.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from services.chassis.egress import EgressError, EgressRefused, NotPermitted, Response, Unsendable
from services.chassis.errors import TenonError

HEAD_BYTES: Final = 1024
OVERHANG: Final = 16 * 1024
"""As long as a secret may be, in whatever spelling."""
LONGEST_WAIT_S: Final = 86_400.0

Kind = Literal["taken", "again", "refused", "gone"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a try went; `status` is 0 without an answer, `wait_s` what the endpoint asks for."""

    kind: Kind
    status: int = 0
    reason: str = ""
    head: str = ""
    wait_s: float = 0.0


class NotTaken(TenonError):
    """Raised where it is found out that a try has failed, with what it came to."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__("it was not taken", reason=verdict.reason)
        self.verdict = verdict


def answered(answer: Response, now: float) -> Verdict:
    """What an answer means, its body apart; `now` in seconds since the epoch."""
    status = answer.status
    if 200 <= status < 300:
        return Verdict("taken", status)
    if status == 410:
        return Verdict("gone", status, "HTTP_410")
    wait_s = retry_after(answer.headers, now) if status in {429, 503} else 0.0
    return Verdict("again", status, f"HTTP_{status}", wait_s=wait_s)


def head_of(body: bytes) -> str:
    """The beginning of an answer's body, as text, and a little more.

    Whoever keeps HEAD_BYTES of it hides secrets first: a half of one is not known as such.
    """
    return body[: HEAD_BYTES + OVERHANG].decode(errors="replace")


def with_head(verdict: Verdict, head: str) -> Verdict:
    """The same, with the answer's beginning as it may be kept."""
    return replace(verdict, head=head)


def unanswered(error: EgressError) -> Verdict:
    """What the lack of an answer means; the log names no address."""
    final = isinstance(error, EgressRefused | NotPermitted | Unsendable)
    status = getattr(error, "status", None) or 0
    return Verdict("refused" if final else "again", status, error.fault.upper())


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """The wait that an answer asks for, in seconds, clamped to a day; 0 where it asks for none."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_WAIT_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    left = (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
    return min(max(left, 0.0), LONGEST_WAIT_S)
