"""Versions of the key-encryption key: begun, listed, disabled, enabled again, given up for good.

    PENDING ──▶ ACTIVE ──▶ DECRYPT_ONLY ◀──▶ DISABLED ──▶ DESTROYED

A version wraps once every registry has it (`keys.rewrapping` sees to it), and then all that older
versions wrap is wrapped anew. Sources: the key states of NIST SP 800-57 part 1, section 7.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Bound, Database, Transaction
from services.chassis.errors import Aborted, FailedPrecondition, NotFound
from services.chassis.rules import Risk
from services.registry.access.changes import By, Changes, Done, event
from services.registry.audit.log import Event
from services.registry.keys.holding import Holding, version_row
from services.registry.keys.providers import Material
from services.registry.store import keys as store

KIND: Final = "KeyVersion"

Answer = Callable[[Any, int], bytes]
"""Makes a version's row, and how much it wraps, the answer to a call."""


@dataclass(frozen=True, slots=True)
class Listed:
    """All versions, the newest first; how much each wraps; the registries that run."""

    versions: Sequence[Any]
    wrapped: Counter[int]
    holders: Sequence[Any]


class _Unmade(Exception):
    """There is no material for this version yet."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


@dataclass(frozen=True, slots=True)
class Step:
    """One way from a state to another."""

    action: str
    start: str
    end: str
    risk: Risk


DISABLE: Final = Step("disable", "decrypt_only", "disabled", Risk.CRITICAL)
ENABLE: Final = Step("enable", "disabled", "decrypt_only", Risk.HIGH)
DESTROY: Final = Step("destroy", "disabled", "destroyed", Risk.CRITICAL)


class KeyVersions:
    """The use cases."""

    def __init__(self, database: Database, changes: Changes, holding: Holding) -> None:
        self._database = database
        self._changes = changes
        self._holding = holding

    async def listed(self) -> Listed:
        """How they stand."""
        counts = [Bound(each.by_version) for each in store.WRAPPED_BY_VERSION]
        holders = Bound(store.HOLDERS, {"gone": store.GONE})
        async with self._database.system() as transaction:
            versions, held, *counted = await transaction.pipeline(
                [Bound(store.VERSIONS), holders, *counts]
            )
        wrapped = Counter[int]()
        for row in (row for rows in counted for row in rows):
            wrapped[row.key_version] += row.count
        return Listed(versions, wrapped, held)

    async def create(self, by: By, answer: Answer) -> bytes:
        """Begin a new version. Raises FailedPrecondition while another one waits."""
        made: dict[int, Material] = {}

        async def act(transaction: Transaction) -> Done:
            locked = await transaction.all(store.LOCK_VERSIONS)
            _check_none_waits(locked)
            version = locked[0].version + 1
            if version not in made:
                raise _Unmade(version)
            found = await self._added(transaction, version, made[version])
            told = _telling("create", found, Risk.CRITICAL, {}, {"state": "pending"})
            return Done(answer(found, 0), told, [Bound(store.TELL)])

        while True:
            try:
                return await self._changes.make(by, act)
            except _Unmade as wanted:
                # Between two transactions, since a provider may be far away; and only once it is
                # clear that the request is no repeated one, and nothing else waits.
                made[wanted.version] = await self._holding.current.make(wanted.version)

    async def _added(self, transaction: Transaction, version: int, made: Material) -> Any:
        name = self._holding.current.name
        row = version_row(version, made.key, "pending", name, made.reference, made.wrapped)
        if await transaction.one(store.ADD_VERSION, **row) is None:
            raise Aborted("another version was begun meanwhile; look again")
        return (await transaction.all(store.VERSIONS))[0]

    async def take(self, by: By, step: Step, version: int, answer: Answer) -> bytes:
        """Bring a version to another state. Raises FailedPrecondition where that cannot be."""

        async def act(transaction: Transaction) -> Done:
            rows = await transaction.all(store.LOCK_VERSIONS)
            row = next((row for row in rows if row.version == version), None)
            if row is None:
                raise NotFound(f"there is no version {version} of the key-encryption key")
            if row.state != step.start:
                raise FailedPrecondition(
                    f"version {version} is {row.state}; only one that is {step.start} can be "
                    f"{step.end}",
                    reason="KEY_VERSION_STATE",
                )
            wrapped = await _count(transaction, version)
            _check_unused(version, wrapped, step)
            if step is DISABLE:
                await transaction.run(store.LEAVE_TO_ACTIVE, the_version=version)
            change = store.DESTROY if step is DESTROY else store.SET_STATE
            state = {} if step is DESTROY else {"state": step.end}
            await transaction.run(change, the_version=version, **state)
            found = next(r for r in await transaction.all(store.VERSIONS) if r.version == version)
            before, after = {"state": row.state}, {"state": found.state}
            told = _telling(step.action, found, step.risk, before, after)
            return Done(answer(found, wrapped), told, [Bound(store.TELL)])

        return await self._changes.make(by, act)


def _check_none_waits(rows: Sequence[Any]) -> None:
    waiting = next((row.version for row in rows if row.state == "pending"), None)
    if waiting is not None:
        raise FailedPrecondition(
            f"version {waiting} waits until every registry has it; `tenon keys status` says which "
            "has not",
            reason="KEY_VERSION_PENDING",
        )


def _check_unused(version: int, wrapped: int, step: Step) -> None:
    if step is DISABLE and wrapped:
        raise FailedPrecondition(
            f"version {version} still wraps {wrapped} keys and answers; `tenon keys rewrap` shows "
            "how far they are",
            reason="KEY_VERSION_IN_USE",
        )


async def _count(transaction: Transaction, version: int) -> int:
    counted = await transaction.pipeline(
        [Bound(each.by_version) for each in store.WRAPPED_BY_VERSION]
    )
    return sum(row.count for rows in counted for row in rows if row.key_version == version)


def _telling(
    action: str, row: Any, risk: Risk, before: dict[str, Any], after: dict[str, Any]
) -> Event:
    return event(action, KIND, f"version {row.version}", UUID(int=row.version), risk, before, after)
