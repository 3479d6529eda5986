"""A few processes that answer questions, each replaced as soon as it has been killed.

They are new interpreters, never forks, start with the first question, and stay. One more is kept
than may work at a time, so that after a death the next question finds one ready.
"""

import asyncio
import json
import logging
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self

from services.chassis.errors import Unavailable
from services.chassis.evaluation import KINDS, REFUSALS, Question
from services.chassis.evaluation_worker import HEAD, LENGTH, MEMORY, READY, WALL_S
from services.chassis.expressions import ExpressionError, Json
from services.chassis.turns import Turns

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-sP", "-m", "services.chassis.evaluation_worker")
PLACES: Final = 2
SPARE: Final = 1
MOST_WAITING: Final = 64
"""Questions of one owner."""
READY_S: Final = 20.0
PATIENCE_S: Final = WALL_S + 1.0
"""A worker ends itself long before."""
RETRY_S: Final = 1.0


class TooMuch(ExpressionError):
    """What was worked out took more than it may."""

    reason = "EXPRESSION_TOO_MUCH"


class Interrupted(Unavailable):
    """A worker ended for no reason of the question's."""

    reason = "EVALUATION_INTERRUPTED"


# What the kernel ends a worker by says which limit it met.
ENDS: Final[Mapping[int, str]] = {
    signal.SIGPROF: "it takes longer than {limit_ms:.0f} ms",
    signal.SIGALRM: "it takes longer than {limit_ms:.0f} ms",
    signal.SIGABRT: "it takes more than {memory_mib} MiB",
    signal.SIGSEGV: "a value is nested too deep",
}


class Worker:
    """One process, and the one question it is at."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._done_with = False

    @property
    def fit(self) -> bool:
        """Whether it can be asked something."""
        return not (self._done_with or self._said.at_eof())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def ready(self) -> bool:
        """Whether it has started, as soon as that is known."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                return await self._said.read(len(READY)) == READY
        return False

    async def ask(self, question: Question, values: bytes) -> Json:
        """The answer. Raises TooMuch, Interrupted and the REFUSALS.

        A worker whose question did not end in an answer is dead or about to be.
        """
        kind, asked = question.kind.encode(), json.dumps(question.asked).encode()
        head = HEAD.pack(len(kind), len(asked), len(values))
        try:
            async with asyncio.timeout(PATIENCE_S):
                self._told.writelines([head, kind, asked, values])
                await self._told.drain()
                (length,) = LENGTH.unpack(await self._said.readexactly(LENGTH.size))
                answer = await self._said.readexactly(length)
        except (TimeoutError, OSError, EOFError):
            self._done_with = True
            raise await self._why(question.kind, len(values)) from None
        except BaseException:
            # Whoever asked is gone: an answer must not reach the next.
            self.kill()
            raise
        return _read(answer)

    def kill(self) -> None:
        """End it wherever it is."""
        self._done_with = True
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        """Return once it has ended, however that came."""
        await self._process.wait()

    async def _why(self, kind: str, size: int) -> Exception:
        """The error of a question that the worker did not survive."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._process.wait()
        self.kill()
        said = ENDS.get(-(self._process.returncode or 0))
        if said is None:
            return Interrupted("working out an expression was interrupted; try again")
        limit_ms = KINDS[kind].limit_s(size) * 1000
        return TooMuch(said.format(limit_ms=limit_ms, memory_mib=MEMORY >> 20))

    @property
    def _told(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        return self._process.stdin

    @property
    def _said(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        return self._process.stdout


def _read(answer: bytes) -> Json:
    found = json.loads(answer)
    if "is" in found:
        return found["is"]  # type: ignore[no-any-return]
    refused = found["refused"]
    error = REFUSALS[refused["reason"]](refused["message"])
    if isinstance(error, ExpressionError):
        error.position = refused["position"]
    raise error


class Pool:
    """Workers for `places` questions at a time; owners take turns."""

    def __init__(
        self, places: int = PLACES, spare: int = SPARE, most_waiting: int = MOST_WAITING
    ) -> None:
        self._size = places + spare
        self._turns = Turns(places, most_waiting)
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @asynccontextmanager
    async def worker(self, owner: Hashable) -> AsyncIterator[Worker]:
        """A worker to ask one thing. Raises Busy; Interrupted where none starts."""
        async with self._turns.turn(owner):
            if not self._keepers:
                self._keepers = [asyncio.create_task(self._keep()) for _ in range(self._size)]
            worker = await self._next()
            try:
                yield worker
            finally:
                if worker.fit:
                    self._idle.put_nowait(worker)

    async def _next(self) -> Worker:
        try:
            async with asyncio.timeout(READY_S):
                while not (worker := await self._idle.get()).fit:
                    pass
        except TimeoutError:
            raise Interrupted("nothing that works out expressions has started; try again") from None
        return worker

    async def _keep(self) -> None:
        """Have one worker at all times."""
        while True:
            try:
                await self._one()
            except OSError as error:
                log.warning("an expression worker does not start: %s", error.strerror)
                await asyncio.sleep(RETRY_S)

    async def _one(self) -> None:
        """One worker, from its start to its end."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=PIPE,
            stdout=PIPE,
            # The library would print there, and an abort too.
            stderr=DEVNULL,
            # Ours holds secrets.
            env={},
            # Ctrl-C is for us: what we still answer, we may have to ask for.
            start_new_session=True,
        )
        worker = Worker(process)
        try:
            if not await worker.ready():
                raise OSError(0, "it ended or took too long")
            self._idle.put_nowait(worker)
            await worker.ended()
        finally:
            worker.kill()
            await worker.ended()
