"""Works out what expressions and templates come to, without holding up anybody else.

What is sure to end soon is worked out at once, in this process: no comprehension, and little to go
through. All else goes to a process that is killed when it takes too much (`evaluation_pool`).
"""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self

from services.chassis.errors import Unavailable
from services.chassis.evaluation import KINDS, Question
from services.chassis.evaluation_pool import Pool, TooMuch
from services.chassis.expression_paths import Path, narrowed
from services.chassis.expressions import Expression, ExpressionError, Json, Scope
from services.chassis.templates import expressions

LIGHT: Final = 64 * 1024
"""What is worked out at once weighs no more: about 2 ms."""
LIGHT_BODY: Final = 16 * 1024
"""Bytes of JSON to extract from at once: about 3 ms for the worst path."""
LARGEST: Final = 4 * 2**20
"""Bytes of values as JSON."""
DEEPEST: Final = 256
"""Values inside values."""
_EACH: Final = 16
_SHOWN: Final = 80
_CACHED: Final = 2048


class Evaluator:
    """Answers by expressions; whoever asks belongs to an owner, and owners take turns."""

    def __init__(self, pool: Pool | None = None) -> None:
        self._pool = pool or Pool()

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._pool.__aexit__(kind, error, at)

    def seeing(self, values: Mapping[str, Any], owner: Hashable = None) -> "View":
        """What can be asked of these values: variables by name, as JSON has them."""
        return View(self._pool, values, owner)

    async def extract(
        self, paths: Mapping[str, str], body: bytes, owner: Hashable = None
    ) -> dict[str, Json]:
        """What each JSONPath takes out of JSON, by name. Raises JsonPathError, NotJson, TooMuch."""
        question = Question("extract", dict(paths))
        found = None
        if len(body) > LIGHT_BODY:
            # A path ends by itself. What was got by a call must not be lost because others wait.
            with suppress(Unavailable):
                async with self._pool.worker(owner) as worker:
                    found = await worker.ask(question, body)
        if found is None:
            kind = KINDS[question.kind]
            found = kind.answer(question.asked, kind.read(body))
        assert isinstance(found, dict)  # noqa: S101 - as the kind has it
        return found


@dataclass(frozen=True, slots=True)
class View:
    """Values that expressions see.

    Every method raises ExpressionError for what has no result or takes too much, and Unavailable
    where it should be tried again.
    """

    pool: Pool = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    owner: Hashable

    async def holds(self, text: str) -> bool:
        """Whether a condition is true."""
        return bool(await self._answer(Question("holds", text), _asked((text,))))

    async def which_hold(self, texts: Sequence[str]) -> list[bool | ExpressionError]:
        """Whether each of some conditions is true, or why it has no answer.

        What ends soon is asked of one scope together: most of what a short one costs is the scope.
        """
        if not texts:
            return []
        with suppress(ExpressionError):
            asked = _asked(tuple(texts))
            taken = narrowed(self.values, asked.paths)
            if asked.is_light(taken):
                scope = Scope(taken)
                return [_held(one, scope) for one in asked.expressions]
        return [await self._held(text) for text in texts]

    async def evaluate(self, text: str) -> Json:
        """The result of an expression."""
        return await self._answer(Question("evaluate", text), _asked((text,)))

    async def render(self, template: Json) -> Json:
        """A value with every text in it rendered."""
        return await self._answer(Question("render", template), _together(expressions(template)))

    async def _held(self, text: str) -> bool | ExpressionError:
        try:
            return await self.holds(text)
        except ExpressionError as error:
            return error

    async def _answer(self, question: Question, asked: "_Asked") -> Json:
        taken = narrowed(self.values, asked.paths)
        if asked.is_light(taken):
            return KINDS[question.kind].answer(question.asked, Scope(taken))
        try:
            async with self.pool.worker(self.owner) as worker:
                return await worker.ask(question, _bytes(taken))
        except TooMuch as error:
            raise TooMuch(f"{asked.named()}: {error.message}") from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Expressions that are asked together, and what all of them take.

    `looks`: how often they look at it, once more than all together; None where nothing bounds that.
    """

    expressions: tuple[Expression, ...]
    paths: frozenset[Path]
    looks: int | None

    def is_light(self, taken: Mapping[str, Any]) -> bool:
        """Whether they are sure to end soon: how much there is, by how often they look at it."""
        return self.looks is not None and weighs_at_most(taken, LIGHT // self.looks)

    def named(self) -> str:
        """Which of them it was that took too much, as far as that is known."""
        unbounded = [one for one in self.expressions if one.looks is None]
        suspects = unbounded or self.expressions
        text = suspects[0].text
        shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
        return shown if len(suspects) == 1 else f"{shown} (or one of {len(suspects) - 1} more here)"


@lru_cache(maxsize=_CACHED)
def _asked(texts: tuple[str, ...]) -> _Asked:
    """The same of the same texts: the filters of an endpoint are asked together of each event."""
    return _together(map(Expression.parse, texts))


def _together(asked: Iterable[Expression]) -> _Asked:
    expressions = tuple(asked)
    bounds = [one.looks for one in expressions if one.looks is not None]
    return _Asked(
        expressions,
        frozenset[Path]().union(*(one.paths for one in expressions)),
        1 + sum(bounds) if len(bounds) == len(expressions) else None,
    )


def _held(condition: Expression, scope: Scope) -> bool | ExpressionError:
    try:
        return condition.holds(scope)
    except ExpressionError as error:
        return error


def weighs_at_most(value: Any, most: int) -> bool:
    """Whether a value is small and flat enough, found without going through a large one.

    Each value in it weighs 16 and each character 1.
    """
    weight, level = 0, [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                weight += len(each)
            elif isinstance(each, list | dict):
                weight += _EACH * len(each)
                if weight > most:
                    return False
                below.extend(each.values() if isinstance(each, dict) else each)
                weight += sum(map(len, each)) if isinstance(each, dict) else 0
        if weight > most or not below:
            return weight <= most
        level = below
    return False


def _bytes(values: Mapping[str, Any]) -> bytes:
    try:
        written = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ExpressionError("a value is nested too deep") from None
    except ValueError:
        raise ExpressionError("a value holds a number that JSON has not") from None
    if len(written) > LARGEST:
        raise ExpressionError(f"the values are longer than {LARGEST} bytes")
    return written
