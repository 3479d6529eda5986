"""What can go wrong, in words that know no transport.

    TenonError
    ├── InvalidArgument      the caller's words are wrong; says which, all at once
    ├── Unauthenticated      nobody we know
    ├── PermissionDenied     known, but not allowed here
    ├── NotFound             absent, or not for the caller to know
    ├── AlreadyExists
    ├── FailedPrecondition   right words, wrong moment; try again after a change
    ├── Aborted              somebody was faster; read again and retry
    ├── OutOfRange           past what is kept
    ├── ResourceExhausted    over a limit; says which and until when
    ├── DeadlineExceeded     took longer than the caller would wait
    ├── Unavailable          try again soon
    └── Internal             our fault; the caller sees only that

`services.chassis.status` alone turns these into gRPC, the ingress alone into HTTP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: a dotted path into the request and a sentence without its value."""

    field: str
    description: str


class TenonError(Exception):
    """Any fault we name. `reason` is UPPER_SNAKE and stable; the message is for people."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class InvalidArgument(TenonError):
    """The caller's words are wrong."""

    reason = "INVALID_ARGUMENT"


class Unauthenticated(TenonError):
    """Nobody we know; unknown, wrong, expired and revoked are not told apart."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(TenonError):
    """Known, but not allowed here."""

    reason = "PERMISSION_DENIED"


class NotFound(TenonError):
    """Absent, or not for the caller to know."""

    reason = "NOT_FOUND"


class AlreadyExists(TenonError):
    """There is one of that name."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(TenonError):
    """Right words at the wrong moment."""

    reason = "FAILED_PRECONDITION"


class Aborted(TenonError):
    """Somebody was faster."""

    reason = "ABORTED"


class OutOfRange(TenonError):
    """Past what is kept."""

    reason = "OUT_OF_RANGE"


class ResourceExhausted(TenonError):
    """Over a limit."""

    reason = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(TenonError):
    """Took longer than the caller would wait."""

    reason = "DEADLINE_EXCEEDED"


class Unavailable(TenonError):
    """Try again soon."""

    reason = "UNAVAILABLE"


class Internal(TenonError):
    """Our fault."""

    reason = "INTERNAL"


def invalid(field: str, description: str) -> InvalidArgument:
    """The one-field case of InvalidArgument."""
    return InvalidArgument(f"{field}: {description}", violations=(Violation(field, description),))
