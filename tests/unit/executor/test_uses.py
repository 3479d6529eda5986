"""How credentials are used is counted by credential and hour, and nothing that waits is lost."""

from uuid import UUID, uuid4

import pytest

from services.chassis.errors import Unavailable
from services.chassis.usage import flush
from services.executor.registry.credentials import Resolved
from services.executor.registry.uses import HOUR_S, Used, Uses, outcome_of, rate_limit_of
from services.providers.client import ProviderResponse
from services.providers.failures import Failure

ACME, GLOBEX = UUID(int=1), UUID(int=2)
KEY = UUID(int=3)
HOUR = 500_000 * HOUR_S


class Clock:
    """Time as a test says."""

    seconds = float(HOUR)

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uses(clock: Clock) -> Uses:
    return Uses(clock)


def resolved(version: int = 1, credential_id: UUID | None = None) -> Resolved:
    return Resolved(credential_id or uuid4(), "bearer", version, {})


def answer(status: int, kind: str = "") -> ProviderResponse:
    failure = Failure(kind, status) if kind else None  # type: ignore[arg-type]
    return ProviderResponse("", status, {}, b"", failure)


def test_a_row_counts_one_credential_in_one_hour(uses: Uses, clock: Clock) -> None:
    one, other = resolved(), resolved()
    uses.note(ACME, one, "let in")
    clock.seconds += HOUR_S - 1
    uses.note(ACME, one, "failed")
    uses.note(ACME, other, "let in")
    clock.seconds += 1
    uses.note(ACME, one, "let in")
    (used,) = uses.drain()
    assert {where: (use.uses, use.errors) for where, use in used.uses.items()} == {
        (one.credential_id, HOUR): (2, 1),
        (other.credential_id, HOUR): (1, 0),
        (one.credential_id, HOUR + HOUR_S): (1, 0),
    }
    first = used.uses[one.credential_id, HOUR]
    assert (first.last_use, first.last_success) == (HOUR + HOUR_S - 1, HOUR)
    assert uses.drain() == []


def test_how_an_older_version_is_answered_says_nothing_of_the_newer(
    uses: Uses, clock: Clock
) -> None:
    old = resolved(1)
    new = resolved(2, old.credential_id)
    uses.note(ACME, old, "let in")
    clock.seconds += 1
    uses.note(ACME, new, "let in")
    clock.seconds += 1
    uses.note(ACME, old, "refused")
    (used,) = uses.drain()
    (use,) = used.uses.values()
    assert (use.version, use.uses, use.errors) == (2, 3, 1)
    assert (use.last_success, use.last_refusal) == (HOUR + 1, None)


def test_the_last_word_of_a_provider_on_its_limits_is_kept(uses: Uses) -> None:
    credential = resolved()
    for left in ("9", "8"):
        uses.note(ACME, credential, "let in", {"x-ratelimit-remaining": left})
    uses.note(ACME, credential, "let in")
    (used,) = uses.drain()
    (use,) = used.uses.values()
    assert use.rate_limit == {"x-ratelimit-remaining": "8"}


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (answer(200), "let in"),
        (answer(401, "auth"), "refused"),
        (answer(403, "auth"), "refused"),
        # The manifest takes it for something else: a rate limit, say.
        (answer(403, "rate_limited"), "failed"),
        (answer(407, "auth"), "failed"),
        (answer(404, "not_found"), "failed"),
        (answer(503, "transient"), "failed"),
    ],
)
def test_only_what_speaks_of_the_credential_counts_for_it(
    response: ProviderResponse, outcome: str
) -> None:
    assert outcome_of(response) == outcome


def test_of_an_answers_headers_only_limits_are_kept_and_short() -> None:
    said = {
        "x-ratelimit-limit": "60",
        "ratelimit-policy": '"burst";q=100;w=60' + " " * 200,
        "retry-after": "caf\udce9",
        "set-cookie": "session=canary",
    }
    assert rate_limit_of(said) == {
        "x-ratelimit-limit": "60",
        "ratelimit-policy": ('"burst";q=100;w=60' + " " * 200)[:100],
        "retry-after": "caf?",
    }


async def test_what_one_tenants_report_holds_up_waits_and_holds_up_no_other_for_long(
    uses: Uses, clock: Clock
) -> None:
    taken: list[Used] = []

    async def takes(used: Used) -> None:
        if used.tenant_id == ACME:
            raise Unavailable("not this one")
        taken.append(used)

    credential = resolved()
    uses.note(ACME, credential, "let in")
    uses.note_seal(ACME, KEY)
    uses.note_seal(GLOBEX, KEY)
    for _ in range(2):
        await flush(uses, takes)
    assert [(used.tenant_id, used.seals) for used in taken] == [(GLOBEX, {KEY: 1})]

    clock.seconds += 1
    uses.note(ACME, credential, "failed")
    uses.note_seal(ACME, KEY)
    (used,) = uses.drain()
    (use,) = used.uses.values()
    assert (use.uses, use.errors, use.last_success) == (2, 1, HOUR)
    assert used.seals == {KEY: 2}
