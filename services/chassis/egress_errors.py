"""Why a request brought no usable answer, and whether it may have reached the other side.

EgressError
├── Unsendable        not sent: the request itself is wrong; the same request never works
├── BadIdentity       not sent: its client certificate is none, or not of its private key
├── NotPermitted      not sent: its credential may not be used there
├── EgressRefused     not sent: the address is internal; permanent until a setting changes
├── ConnectFailed     not sent: no connection; trying again is safe
├── ResponseLost      perhaps done: sent, but the answer is missing, cut or late
└── ResponseTooLarge  done: answered, but with more than we read
"""

from collections.abc import Sequence
from typing import Final, Literal

from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TenonError,
    Unavailable,
)

ALLOW_SETTING: Final = "EGRESS_ALLOW"
"""Of each service that dials, behind its own prefix."""

Fault = Literal[
    "unsendable",
    "certificate",
    "not_permitted",
    "refused",
    "dns",
    "connect",
    "tls",
    "timeout",
    "lost",
    "too_large",
]
"""What went wrong, in one stable word for logs of deliveries."""


class EgressError(TenonError):
    """A request that brought no usable answer. Messages name the host, never path or address."""

    fault: Fault = "lost"


class Unsendable(EgressError, InvalidArgument):
    """The request itself is wrong."""

    reason = "UNSENDABLE"
    fault = "unsendable"


class BadIdentity(EgressError, FailedPrecondition):
    """The client certificate that it is to show cannot be shown, until there is another."""

    reason = "BAD_CERTIFICATE"
    fault = "certificate"


class NotPermitted(EgressError, FailedPrecondition):
    """Outside the endpoints or the networks that the request is limited to."""

    reason = "ENDPOINT_NOT_ALLOWED"
    fault = "not_permitted"


class EgressRefused(EgressError, FailedPrecondition):
    """The host leads to internal addresses only. `addresses` is for the operators' eyes only."""

    reason = "EGRESS_REFUSED"
    fault = "refused"

    def __init__(self, place: str, addresses: Sequence[str]) -> None:
        super().__init__(
            f"{place} is not a public address; an operator can permit it "
            f"with the setting {ALLOW_SETTING} of the service that calls"
        )
        self.addresses = tuple(addresses)


class ConnectFailed(EgressError, Unavailable):
    """No connection; nothing was sent. `fault` is dns, connect, tls or timeout."""

    reason = "CONNECT_FAILED"

    def __init__(self, message: str, fault: Fault = "connect") -> None:
        super().__init__(message)
        self.fault = fault


class ResponseLost(EgressError):
    """Sent, with no whole answer: the other side may have acted. `status` if it still came.

    `late`: because it took too long, not because the connection broke.
    """

    reason = "RESPONSE_LOST"

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.late = late
        self.fault = "timeout" if late else "lost"


class ResponseTooLarge(EgressError, ResourceExhausted):
    """Answered with `status` and a body longer than the limit."""

    reason = "RESPONSE_TOO_LARGE"
    fault = "too_large"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
