"""Wrong credentials cost the address they come from; right ones get through all the same."""

import asyncio
import time
from collections import Counter

import grpc
import pytest
from tenon.registry.v1 import access_service_pb2 as pb

from services.chassis.channel import open_channel
from services.chassis.errors import ResourceExhausted, TenonError, Unauthenticated
from services.chassis.guesses import Allowance, Guesses
from services.chassis.secret import Secret
from services.chassis.status import from_rpc_error
from services.registry.access import key_text as keys
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.conftest import Calls

BURST = 5


@pytest.fixture
def guesses() -> Guesses:
    return Guesses(Allowance(burst=BURST, again_per_s=0.01, queued_per_s=50, longest_wait_s=1))


async def outcome(registry: Registry, key: Secret) -> TenonError | None:
    """What a call by a key comes to, over a channel of its own."""
    async with open_channel(registry.target, key=key) as channel:
        try:
            await Caller(channel).access.WhoAmI(pb.WhoAmIRequest(), timeout=20)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    return None


def unknown() -> Secret:
    return keys.new_key("test", Secret(b"x" * 32)).text


def wrong(key: Secret) -> Secret:
    """A well-formed key of the same id with another secret."""
    prefix, environment, key_id, *_ = key.reveal_text().split("_")
    other = unknown().reveal_text().split("_")[3]
    body = f"{prefix}_{environment}_{key_id}_{other}"
    return Secret(f"{body}_{keys._crc(body)}")


async def test_wrong_and_unknown_ones_are_refused_alike_and_then_told_to_wait(
    registry: Registry,
) -> None:
    right = await registry.key("SUPER_ADMIN")
    told = [await outcome(registry, wrong(right)), await outcome(registry, unknown())]
    assert [type(each) for each in told] == [Unauthenticated] * 2
    assert len({(each.code, each.message) for each in told if each}) == 1
    for _ in range(BURST - 2):
        assert isinstance(await outcome(registry, wrong(right)), Unauthenticated)
    for guess in (wrong(right), unknown(), Secret("tnk_"), Secret("a.b.c")):
        error = await outcome(registry, guess)
        assert isinstance(error, ResourceExhausted)
        assert error.code == "TOO_MANY_WRONG_CREDENTIALS"
        assert error.retry_after_s


async def test_in_a_flood_of_wrong_ones_right_ones_get_through(registry: Registry) -> None:
    known, new = await registry.key("SUPER_ADMIN"), await registry.key("SUPER_ADMIN")
    assert await outcome(registry, known) is None
    flood = [asyncio.create_task(keep_guessing(registry)) for _ in range(20)]
    try:
        async with asyncio.timeout(20):
            while await outcome(registry, unknown()) is None or registry_is_calm(flood):
                await asyncio.sleep(0.01)
        begun = time.monotonic()
        assert await outcome(registry, known) is None
        of_known = time.monotonic() - begun
        assert await outcome(registry, new) is None
        of_new = time.monotonic() - begun - of_known
    finally:
        for each in flood:
            each.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    assert of_known < 1
    assert of_new < 3
    assert sum(COUNTS.values()) > BURST


COUNTS: Counter[str] = Counter()


def registry_is_calm(flood: list["asyncio.Task[None]"]) -> bool:
    return COUNTS["ResourceExhausted"] < len(flood)


async def keep_guessing(registry: Registry) -> None:
    async with open_channel(registry.target) as channel:
        caller = Caller(channel)
        while True:
            metadata = (("authorization", f"Bearer {unknown().reveal_text()}"),)
            try:
                await caller.access.WhoAmI(pb.WhoAmIRequest(), metadata=metadata, timeout=20)
            except grpc.aio.AioRpcError as error:
                COUNTS[type(from_rpc_error(error)).__name__] += 1


async def test_of_another_services_callers_each_address_pays_for_itself(
    registry: Registry, calling: Calls
) -> None:
    executor = await calling("EXECUTOR", kind="service")

    async def ask(address: str, key: Secret) -> str:
        request = pb.AuthenticateRequest(credential=key.reveal_text(), address=address)
        try:
            await executor.access.Authenticate(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).code
        return "OK"

    here = [await ask("192.0.2.1", unknown()) for _ in range(BURST + 2)]
    assert here == ["CALLER_UNKNOWN"] * BURST + ["CALLER_GUESSES"] * 2
    assert await ask("192.0.2.2", unknown()) == "CALLER_UNKNOWN"
    right = await registry.key("SUPER_ADMIN")
    assert await ask("192.0.2.1", right) == "OK"
    # Nor does the executor itself pay.
    assert isinstance(await outcome(registry, unknown()), Unauthenticated)
