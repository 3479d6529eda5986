"""Several processes of one service on one host: spawned, replaced when they die, ended with us.

Who supervises does nothing else. Each post is filled by a new interpreter, never by a fork, which
gRPC and threads do not survive. Those that listen share a port: the kernel gives each connection to
one of them, and the supervisor keeps the port while nobody listens on it.
"""

import asyncio
import logging
import os
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from services.chassis.child import bound
from services.chassis.errors import Unavailable
from services.chassis.process import background, ready_until_told

log = logging.getLogger(__name__)

READY_S: Final = 60.0
# Longer than any drain, and each drain has a limit of its own.
STOP_S: Final = 45.0
DEATHS: Final = 3
WITHIN_S: Final = 60.0
FIRST_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Post:
    """What one process at a time is there for.

    Its program says in one line on standard output that it is ready, and drains at SIGTERM.
    `environment` comes on top of ours.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


async def supervise(posts: Sequence[Post], **ports: int) -> None:
    """Keep every post filled until told to stop, and end when all have drained.

    Says on standard output when all are ready. A process that dies is replaced, after a wait that
    doubles. Raises Unavailable, with all ended, where one does not become ready at first or a post
    loses DEATHS processes within WITHIN_S.
    """
    filled = [asyncio.Event() for _ in posts]
    async with background(*(_keep(post, ready) for post, ready in zip(posts, filled, strict=True))):
        for ready in filled:
            await ready.wait()
        await ready_until_told(**ports)


@contextmanager
def holding(host: str, port: int) -> Iterator[int]:
    """Keep a port for processes that listen with SO_REUSEPORT; yields it, chosen where it is 0.

    Raises Unavailable where others have it, whether they would share it or not.
    """
    with _occupying(host, port) as holder:
        # Only now: bound with it, we would join whoever shares the port by accident.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # And the next to try as we did must not get past us while nobody listens.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield int(holder.getsockname()[1])


def _occupying(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen: the kernel gives it no connection."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        holder = socket.socket(family, kind, protocol)
        try:
            # Else connections that have just ended would keep a restart away.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
        except OSError:
            holder.close()
            raise
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return holder


async def _keep(post: Post, ready: asyncio.Event) -> None:
    """Fill a post again and again; cancelled, see its process drain."""
    clock, deaths = asyncio.get_running_loop().time, list[float]()
    while True:
        end = await _fill(post, ready)
        if not ready.is_set():
            raise Unavailable(f"{post.name} did not start ({end}); it has said why")
        deaths = [each for each in deaths if clock() - each < WITHIN_S] + [clock()]
        if len(deaths) == DEATHS:
            raise Unavailable(
                f"{post.name} ended {DEATHS} times within {WITHIN_S:.0f} s, the last time by {end}:"
                " everything stops"
            )
        wait_s = FIRST_WAIT_S * 2 ** (len(deaths) - 1)
        log.warning("%s ended by itself (%s) and is replaced in %.1f s", post.name, end, wait_s)
        await asyncio.sleep(wait_s)


async def _fill(post: Post, ready: asyncio.Event) -> str:
    """Run one process to its end; answers what ended it."""
    async with _process(post) as process:
        if await _says_ready(process):
            log.info("%s is ready as process %d", post.name, process.pid)
            ready.set()
            await process.wait()
    status = process.returncode or 0
    return f"signal {-status}" if status < 0 else f"exit {status}"


@asynccontextmanager
async def _process(post: Post) -> AsyncIterator[Process]:
    """A process that has drained, or is killed, when the block ends."""
    process = await asyncio.create_subprocess_exec(
        *bound(post.command),
        env={**os.environ, **post.environment},
        stdout=PIPE,
        # Ctrl-C is for us: we tell each of ours to stop, once.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _send(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not drain in %.0f s and is killed", post.name, STOP_S)
            _send(process, signal.SIGKILL)
            await process.wait()


def _send(process: Process, number: signal.Signals) -> None:
    """Signal a process that has not ended.

    Not by the process's own methods: those may collect the exit status of one that has just ended,
    and asyncio would then report 255.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def _says_ready(process: Process) -> bool:
    said = process.stdout
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            return said is not None and await said.readline() != b""
    return False
