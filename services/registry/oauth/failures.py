"""What a refresh that failed comes to: an end, doubt, or a while in which nobody tries again."""

from datetime import timedelta
from random import Random
from typing import Final

from services.chassis.database import Bound
from services.chassis.egress import (
    ConnectFailed,
    EgressError,
    EgressRefused,
    NotPermitted,
    ResponseTooLarge,
    Unsendable,
)
from services.chassis.errors import TenonError
from services.providers.oauth2 import AnswerUnclear, NotOAuth, TokensRefused
from services.registry.credentials.resolving import Expired
from services.registry.oauth.leases import Lease
from services.registry.oauth.redeeming import CODE, grant_of
from services.registry.store import oauth as store

COOL_S: Final = 30.0
LONGEST_COOL_S: Final = 3600.0
JITTER: Final = 0.2


class Cooling:
    """How long nobody tries again: `cool_s` after a first failure; `lease_s` at least where no word
    came back.
    """

    def __init__(self, cool_s: float, lease_s: float, rng: Random | None = None) -> None:
        self._cool_s = cool_s
        self._lease_s = lease_s
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing

    def noting(self, lease: Lease, error: Exception) -> Bound:
        """What notes a failure that may pass; each further one waits twice as long.

        An app that has expired fails at nobody's door, and may be renewed at any moment.
        """
        times = 0 if isinstance(error, Expired) else lease.failures + 1
        known = _is_known(error)
        longest = min(self._cool_s * 2 ** max(0, min(times - 1, 12)), LONGEST_COOL_S)
        cool_s = longest * self._rng.uniform(1 - JITTER, 1 + JITTER)
        if _is_unanswered(error):
            # It may be under way still.
            cool_s = max(cool_s, self._lease_s)
        return Bound(
            store.FAILED,
            {
                **lease.place,
                "held_fence": lease.fence,
                "new_status": _status_after(error),
                "why": words(error),
                "times": times,
                "cool": timedelta(seconds=cool_s),
                # An intent stands until somebody knows what became of it.
                "intent": None if known and not lease.again else lease.credential.version,
            },
        )


def is_final(lease: Lease, error: Exception) -> bool:
    """Whether there is no token ever again; an app that comes by tokens itself can be put right."""
    return isinstance(error, TokensRefused) and error.is_final and grant_of(lease) == CODE


def words(error: Exception) -> str:
    """What people are told of it."""
    if isinstance(error, TenonError):
        return error.message
    return "the provider took too long" if isinstance(error, TimeoutError) else "a fault of ours"


def _is_unanswered(error: Exception) -> bool:
    """Whether the provider may have the request still: it was sent, and no word has come back."""
    return not _is_known(error) and not isinstance(error, AnswerUnclear | ResponseTooLarge)


def _is_known(error: Exception) -> bool:
    """Whether it is known that nothing was redeemed: not sent, or refused in so many words."""
    return isinstance(
        error,
        ConnectFailed | EgressRefused | NotPermitted | Unsendable | TokensRefused | NotOAuth,
    ) or (isinstance(error, TenonError) and not isinstance(error, EgressError | AnswerUnclear))


def _status_after(error: Exception) -> str | None:
    """How the credential stands after a failure; None: as before, since it says nothing of it."""
    if isinstance(error, TokensRefused):
        return "invalid"
    # Whether the token is redeemed nobody knows until it is tried again.
    return None if _is_known(error) else "uncertain"
