"""Processes that refresh the same tokens, and are killed at it: a refresh token is redeemed once.

The provider takes everything back from an account whose refresh token it sees a second time.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Final

import grpc
import pytest

from services.chassis.secret import Secret
from services.registry.oauth.refreshing import LOST
from services.sandbox.faults import Fault, FaultKind
from services.sandbox.server import Box, sandbox
from tests.faults.points import ALL, points, thinned
from tests.faults.refresh_worker import AT_ONCE, FRESH
from tests.faults.refreshed_tokens import Tokens, refreshed_tokens
from tests.integration.registry.apps import told, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

POINTS: Final = thinned(points("refresh"), keep=3)
TOKENS: Final = 200 if ALL else 48
PROCESSES: Final = 8
TIMEOUT_S: Final = 2.5 if ALL else 1.5
LOSING: Final[dict[FaultKind, float]] = {
    "slow": 3 * TIMEOUT_S,
    "hang": 0,
    "reset": 0,
    "truncate": 0,
    "late": 2 * TIMEOUT_S,
}
"""What loses an answer, and by how much that is late."""
REFUSING: Final[tuple[FaultKind, ...]] = ("status", "rate_limit")
TIMES: Final = 4 if ALL else 1
SETTLED_S: Final = 200.0


@pytest.fixture
def timeout_s() -> float:
    return TIMEOUT_S


@pytest.fixture
async def tokens(
    timeout_s: float, registry_conninfos: tuple[Secret, Secret], superuser: Secret, tmp_path: Path
) -> AsyncIterator[Tokens]:
    database, system = registry_conninfos
    async with sandbox("unused") as box:
        settings = told(
            box,
            database_url=database,
            system_database_url=system,
            refresh_timeout_s=timeout_s,
            refresh_cool_s=0.3,
            pool_size=4,
        )
        async with refreshed_tokens(box, settings, superuser, tmp_path) as tokens:
            yield tokens


def harm(box: Box, random: Random) -> None:
    """Answers that are lost, and some that say no, for the next that ask."""
    kinds = [kind for kind in (*LOSING, *REFUSING) for _ in range(TIMES)]
    random.shuffle(kinds)
    for kind in kinds:
        box.faults.add(Fault(path="/oauth/token", kind=kind, delay_s=LOSING.get(kind, 0)))


@pytest.mark.parametrize("seed", range(4 if ALL else 1))
async def test_no_token_is_redeemed_twice_and_what_was_lost_is_told(
    tokens: Tokens, seed: int
) -> None:
    for at in range(PROCESSES):
        armed = at < len(POINTS)
        tokens.start("armed" if armed else "others", f"{POINTS[at]}=kill@1" if armed else "")
    names = await tokens.bring(TOKENS)
    tokens.await_ready()
    tokens.expire()
    await tokens.go("armed", names)

    async def are_dead() -> bool:
        return all(worker.poll() is not None for worker in tokens.workers[: len(POINTS)])

    async def is_begun() -> bool:
        return await are_dead() or len(tokens.box.identity.requests) > len(POINTS)

    async def is_settled() -> bool:
        survivors = range(len(POINTS), PROCESSES)
        return (
            await are_dead()
            and all(len(tokens.told(at)) == TOKENS for at in survivors)
            and all(one.is_settled for one in tokens.standings())
        )

    await until(is_begun)
    harm(tokens.box, Random(seed))
    await tokens.go("others", names)
    try:
        await until(is_settled, SETTLED_S, every_s=0.2)
    except AssertionError:
        open_ones = [one for one in tokens.standings() if not one.is_settled]
        pytest.fail(f"dead: {await are_dead()}; not settled: {open_ones}")
    assert not tokens.box.faults.pending()
    await check(tokens, names)


async def check(tokens: Tokens, names: list[str]) -> None:
    """What must hold of every token once all is settled."""
    ours, lost = await tokens.refresh_tokens(), []
    given = dict(zip(names, await asyncio.gather(*map(tokens.resolve, names)), strict=True))
    for one in tokens.standings():
        family = tokens.family(one.name)
        first, *more = family.refresh_tokens
        assert (first.redeemed, len(more)) == (1, 1), one
        if family.revoked is None:
            assert (one.status, one.version, family.replays) == ("valid", 2, 0)
            assert (ours[one.name], more[0].redeemed) == (more[0].token, 0)
            assert tokens.box.identity.holder(given[one.name]) is family
            continue
        # Its answer has reached nobody, and it was asked about once more.
        lost.append(one.name)
        assert (family.revoked, first.replays, more[0].replays) == ("replay", 1, 0)
        assert (one.status, one.version, one.reason) == ("reconnect", 1, LOST)
        assert ours[one.name] == first.token
        assert given[one.name] == "CREDENTIAL_RECONNECT"
    assert tokens.announced() == lost
    assert len(lost) <= len(LOSING) * TIMES + len(POINTS) * 2 * AT_ONCE
    fates = {name: "CREDENTIAL_RECONNECT" if name in lost else FRESH for name in names}
    for at in range(len(POINTS), PROCESSES):
        assert tokens.told(at) == fates
    killed, others = len(POINTS), PROCESSES - len(POINTS)
    ended = tokens.stop()
    words = [tokens.said(at)[-2000:] for at, code in enumerate(ended) if code > 0]
    assert ended == [-signal.SIGKILL] * killed + [0] * others, words


SOON: Final = pytest.mark.parametrize("timeout_s", [0.5], ids=["soon"])


async def other_takes_over(tokens: Tokens, name: str) -> None:
    """Refresh it in this process, as soon as the other's lease is over."""

    async def is_over() -> bool:
        try:
            await tokens.refresh(name)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return True

    await until(is_over)


async def held_up(tokens: Tokens, point: str) -> str:
    """A token at whose refresh a process was held up until another had taken over."""
    stop = tokens.folder / "stop"
    tokens.start("go", f"{point}=pause@1:{stop}")
    (name,) = await tokens.bring(1)
    tokens.await_ready()
    tokens.expire()
    await tokens.go("go", [name])

    async def is_held_up() -> bool:
        return stop.with_name("stop.reached").exists()

    await until(is_held_up)
    await other_takes_over(tokens, name)
    stop.with_name("stop.go").touch()

    async def is_told() -> bool:
        return bool(tokens.told(0))

    await until(is_told)
    return name


@SOON
async def test_who_is_held_up_before_the_call_does_not_make_it(tokens: Tokens) -> None:
    name = await held_up(tokens, "refresh.after_intent")
    (one,) = tokens.standings()
    assert (one.status, one.version, tokens.told(0)) == ("valid", 2, {name: FRESH})
    family = tokens.family(name)
    assert (family.revoked, [each.redeemed for each in family.refresh_tokens]) == (None, [1, 0])
    assert tokens.stop() == [0]


@SOON
async def test_what_is_recorded_after_another_has_tried_does_not_go_for_valid(
    tokens: Tokens,
) -> None:
    name = await held_up(tokens, "refresh.after_call")
    assert tokens.family(name).revoked == "replay"

    async def is_found_out() -> bool:
        (one,) = tokens.standings()
        assert one.status != "valid"
        return one.status == "reconnect" and one.version == 2

    await until(is_found_out)
    assert tokens.stop() == [0]
