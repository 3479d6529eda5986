"""One call of the registry, in our errors."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import grpc

from services.chassis import errors
from services.chassis.guesses import TOO_MANY
from services.chassis.status import from_rpc_error

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CALL_S: Final = 5.0
# The feed gives a sign of life every 10 s; a connection without one for this long is dead.
SILENCE_S: Final = 30.0

CALLER_UNKNOWN: Final = "CALLER_UNKNOWN"
"""The registry's reason where it is the caller, not we, whom it does not know."""
CALLER_GUESSES: Final = "CALLER_GUESSES"
"""The same, after too many wrong ones of the caller's address."""

NO_ANSWER: Final = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Internal,
    # Of our own key: nobody who calls us did anything wrong.
    errors.Unauthenticated,
    errors.PermissionDenied,
)
"""What says nothing of the thing asked for, so that what we know of it goes on to count."""


async def asked(call: Awaitable[Answer], *, of_caller: bool = False) -> Answer:
    """The answer of one call; `of_caller`: Unauthenticated speaks of a credential we ask about."""
    with our_errors(of_caller=of_caller):
        return await call


async def heard(answers: AsyncIterable[Answer]) -> AsyncIterator[Answer]:
    """The answers of a stream that gives signs of life."""
    waiting = aiter(answers)
    while True:
        with our_errors():
            async with asyncio.timeout(SILENCE_S):
                answer = await anext(waiting, None)
        if answer is None:
            return
        yield answer


@contextmanager
def our_errors(*, of_caller: bool = False) -> Iterator[None]:
    """Turn what gRPC raises in the block into our errors; Unavailable for NO_ANSWER."""
    try:
        yield
    except grpc.RpcError as error:
        ours = from_rpc_error(error)
        if of_caller and ours.code == CALLER_UNKNOWN:
            raise errors.Unauthenticated(ours.message) from None
        if of_caller and ours.code == CALLER_GUESSES:
            # It was looked up and is wrong: what we remember of it must not go on to count.
            raise errors.Unauthenticated(
                ours.message, reason=TOO_MANY, retry_after_s=ours.retry_after_s
            ) from None
        if isinstance(ours, NO_ANSWER):
            log.warning("the registry did not answer: %s: %s", ours.code, ours.message)
            raise errors.Unavailable("the registry does not answer") from None
        raise ours from None
    except TimeoutError:
        raise errors.Unavailable("the registry fell silent") from None
