"""What a page that did not come means for its transfer. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.chassis.egress import ConnectFailed, EgressError, ResponseLost
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.executor.executions.masking import sentence
from services.providers.failures import Failure

LONGEST_WAIT_S: Final = 3600.0
PATIENT_S: Final = 60.0
"""What is waited for a provider that asks to come back later, and does not say when."""
ADDRESS_ENDED: Final = frozenset({"not_found", "invalid"})
"""Kinds of failure by which a provider may say that it knows a page's address no more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a page did not come; `wait_s` seconds until it may, None: it never will.

    `patient`: the provider asks to come back later, which is no failure. `address_ended`: where
    that was a page's own address, the provider may just know it no more.
    """

    reason: str
    message: str
    wait_s: float | None = None
    patient: bool = False
    address_ended: bool = False


def refused(failure: Failure, secrets: Sequence[Secret]) -> Fault:
    """Of an answer that is a refusal."""
    said = f": {failure.message}" if failure.message else ""
    message = sentence(f"the provider answered {failure.status}{said}", secrets)
    patient = failure.kind == "rate_limited"
    asked_s = failure.retry_after_s
    if asked_s is None:
        asked_s = PATIENT_S if patient else 0.0
    return Fault(
        failure.kind.upper(),
        message,
        min(asked_s, LONGEST_WAIT_S) if failure.retryable else None,
        patient=patient,
        address_ended=failure.kind in ADDRESS_ENDED,
    )


def unanswered(error: EgressError) -> Fault:
    """Of a call that brought no whole answer: to read a page twice does no harm."""
    may_pass = isinstance(error, ConnectFailed | ResponseLost)
    return Fault(error.code, error.message, 0.0 if may_pass else None)


def unusable(error: TenonError, secrets: Sequence[Secret]) -> Fault:
    """Of a page that cannot be asked for, or that is none."""
    return Fault(error.code, sentence(error.message, secrets))
