"""The work of kind `execution`: carries a run on from wherever it stands, to its end or a wait.

Each try of a step has three moments: the intent is committed, the call is made, the outcome is
committed. A worker that dies leaves at most one call in flight, and the intent says which: it is
made again where that does no harm, else the run ends with OUTCOME_UNKNOWN. The last outcome, the
end of the run and that of its work are one transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

from services.chassis import failpoints
from services.chassis.database import Bound, Database
from services.chassis.egress import EgressError
from services.chassis.envelope import Unsealable
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from services.chassis.evaluator import Evaluator
from services.executor.calling import Calling, Order
from services.executor.engine.work import (
    RETRY_S,
    Claimed,
    ClaimLost,
    Done,
    Later,
    Notes,
    Outcome,
    Rows,
    Why,
)
from services.executor.executions import outputs, steps
from services.executor.executions.masking import sentence, without
from services.executor.executions.outputs import OutputInvalid
from services.executor.executions.progress import Progress, taken_up
from services.executor.executions.runs import CANCELLED, KIND
from services.executor.executions.standing import Stopped, callee, check_switch, running
from services.executor.executions.steps import Step, Verdict
from services.executor.executions.watching import Changes
from services.executor.registry.credentials import Resolved, Secrets
from services.executor.store import execution_ends as ends
from services.executor.store import executions as store
from services.executor.store import projected
from services.executor.store.execution_ends import Ending
from services.executor.store.projected import Needs
from services.providers.calls import Integration
from services.providers.catalog import Catalog

BEFORE_INTENT = failpoints.declare("run.before_intent", "the step is begun by the next worker")
AFTER_INTENT = failpoints.declare("run.after_intent", "a safe call is made, an unsafe one unknown")
AFTER_CALL = failpoints.declare(
    "run.after_call", "a safe call is made again, an unsafe one unknown"
)
BEFORE_RECORD = failpoints.declare("run.before_record", "as after the call: nothing was recorded")
AFTER_RECORD = failpoints.declare("run.after_record", "the recorded step is never run again")
BEFORE_FINISH = failpoints.declare(
    "run.before_finish", "neither the last step nor the end is there"
)
AFTER_FINISH = failpoints.declare("run.after_finish", "the run has ended and its work is gone")

AGAIN_S: Final = RETRY_S
"""What a run waits, in seconds, before each time it is taken up again at a failed step."""
JITTER: Final = 0.2
LASTS_S: Final = 0.02
"""A call that takes longer is seen under way."""
GIVEN_UP: Final[Mapping[Why, Ending]] = {
    "CANCELLED": CANCELLED,
    "DEADLINE_EXCEEDED": Ending("timeout", "DEADLINE_EXCEEDED", "it did not end in time"),
    "EXHAUSTED": Ending("failed", "INTERNAL", "it failed too often by itself"),
}


class Running:
    """Runs executions."""

    name = KIND

    def __init__(
        self,
        database: Database,
        secrets: Secrets,
        calling: Calling,
        catalog: Catalog,
        notes: Notes,
        changes: Changes,
        evaluator: Evaluator,
        rng: Random | None = None,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._calling = calling
        self._catalog = catalog
        self._notes = notes
        self._changes = changes
        self._evaluator = evaluator
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing

    async def prepare(self, claimed: Claimed) -> Progress | Done:
        """The run as it stands, with what its first step needs; Done where nothing is to do."""
        # A connector's lane has its id.
        beside = projected.needing(claimed.tenant_id, claimed.lane_id)
        execution, answers = await store.load(
            self._database, claimed.tenant_id, claimed.target_id, beside
        )
        if execution is None or execution.ended:
            return Done()
        try:
            # Its own key goes on for it, though the tenant may have another one by now.
            key = await self._secrets.lease_key(claimed.tenant_id, execution.data_key_id)
            return taken_up(claimed, key, execution, projected.wanted(answers))
        except Unsealable:
            return self._given_up(
                claimed, Ending("failed", "STATE_UNREADABLE", "its sealed state cannot be opened")
            )

    async def call(self, claimed: Claimed, prepared: Progress | Done) -> Outcome:
        """Step after step to the end or to a wait; ClaimLost where another worker has it by now."""
        if isinstance(prepared, Done):
            return prepared
        for position in range(len(prepared.recipe.steps)):
            settled = prepared.found(position).settled
            outcome = None if settled else await self._step(prepared, position)
            if outcome is not None:
                return outcome
        return await self._concluded(prepared)

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """The end of a run that was cancelled, late, or failed too often by itself."""
        return self._given_up(claimed, GIVEN_UP[why])

    async def _step(self, progress: Progress, position: int) -> Outcome | None:
        """Try one step; None: go on with the next."""
        attempts, verdict = await self._tried(progress, position)
        return await self._recorded(progress, position, attempts, verdict)

    async def _tried(self, progress: Progress, position: int) -> tuple[int, Verdict]:
        """The tries a step has had now, and how it stands after the last."""
        step, found = progress.step(position), progress.found(position)
        needs = await self._needs(progress, step)
        provider = needs.integration.spec["provider"] if needs.integration else ""
        repeatable = step.repeatable(self._catalog.manifests.get(provider))
        if found.in_flight and not repeatable:
            return found.attempts, steps.interrupted()
        try:
            order = await self._prepared(progress, step, needs, first=not found.attempts)
        except (InvalidArgument, NotFound, FailedPrecondition) as error:
            return found.attempts, steps.refused(error)
        if order is None:
            return 0, steps.skipped()
        attempts = found.attempts + 1
        # Each time the run is taken up again, the step has all its tries anew.
        tries = attempts - step.retry.max_attempts * found.retries
        intend = partial(self._intend, progress, position, attempts, repeatable=repeatable)
        call = partial(self._call, progress, step, order, tries, repeatable=repeatable)
        if progress.fresh and repeatable:
            verdict = await _beside(intend, call)
        else:
            await intend()
            verdict = await call()
        progress.fresh = False
        return attempts, verdict

    async def _needs(self, progress: Progress, step: Step) -> Needs:
        """What a step needs now; of the first, what was read with the run."""
        read, progress.wanted = progress.wanted, None
        needs = read.needs(step.integration) if read is not None else None
        if needs is not None and needs.integration is not None:
            return needs
        where = (progress.tenant_id, progress.connector_id)
        return await projected.needs(self._database, *where, step.integration)

    async def _prepared(
        self, progress: Progress, step: Step, needs: Needs, *, first: bool
    ) -> Order | None:
        """The call to make, and as whom; None where the step's condition is false."""
        running(needs)
        integration = callee(needs, step.integration)
        check_switch(needs)
        spec = integration.spec
        manifest = self._catalog.get(spec["provider"])
        config = manifest.config_with_defaults(spec.get("config") or {})
        about = {"name": integration.name, "config": config}
        seen = {**progress.seen, "integration": about}
        view = self._evaluator.seeing(seen, progress.tenant_id)
        if first and not await step.wanted(view):
            return None
        call = await steps.call_of(step, manifest, config, view)
        credential = await self._credential(progress, needs)
        called = Integration(manifest.provider, spec.get("base_url") or None, config)
        return Order(
            progress.tenant_id, called, call, needs.credential, credential, progress.secrets
        )

    async def _credential(self, progress: Progress, needs: Needs) -> Resolved | None:
        return await self._calling.credential(
            progress.tenant_id, needs.credential, progress.secrets
        )

    async def _intend(
        self, progress: Progress, position: int, attempts: int, *, repeatable: bool
    ) -> None:
        """Say, before it is made, that a call is made."""
        BEFORE_INTENT.hit()
        where, name = progress.where, progress.step(position).name
        begin = store.beginning(*where, position, name, attempts, repeatable=repeatable)
        # An intent that is lost with the disk's cache only lets a harmless call be made again.
        _, begun = await self._notes.note(
            progress.claimed, [store.running(*where), begin], durable=not repeatable
        )
        _still_ours(begun)
        AFTER_INTENT.hit()

    async def _call(
        self,
        progress: Progress,
        step: Step,
        order: Order,
        tries: int,
        *,
        repeatable: bool,
    ) -> Verdict:
        try:
            response = await self._calling.send(order, step.timeout_s)
        except EgressError as error:
            return steps.unanswered(step, error, tries, self._rng, repeatable=repeatable)
        except (InvalidArgument, NotFound, Stopped) as error:
            return steps.refused(error)
        finally:
            AFTER_CALL.hit()
        return await steps.answered(
            step,
            response,
            tries,
            self._rng,
            self._evaluator,
            repeatable=repeatable,
            owner=progress.tenant_id,
        )

    async def _recorded(
        self, progress: Progress, position: int, attempts: int, verdict: Verdict
    ) -> Outcome | None:
        """The outcome where the run ends or waits; else what it has come to is kept."""
        again_s = self._again_s(progress, verdict)
        if again_s is not None:
            verdict = replace(verdict, state="running", wait_s=again_s)
        elif progress.passes_over(position, verdict):
            verdict = steps.passed_over(verdict, sentence(verdict.message, progress.secrets))
        waits = verdict.state == "running"
        ending = None if waits else progress.ending(position, verdict)
        retries = int(again_s is not None)
        step = progress.row(position, attempts, verdict, retries=retries, keep=ending is None)
        retrying = [store.retrying(*progress.where)] * retries
        recording = store.recording(*progress.where, step)
        BEFORE_RECORD.hit()
        if ending is not None:
            BEFORE_FINISH.hit()
            return self._ended(progress, ending, recording)
        if waits:
            record = [store.running(*progress.where), recording, *retrying]
            return Later(record=record, delay_s=verdict.wait_s, told=_recorded)
        (kept,) = await self._notes.note(progress.claimed, [recording])
        _still_ours(kept)
        AFTER_RECORD.hit()
        progress.seen["steps"][step.step] = verdict.kept
        return None

    def _again_s(self, progress: Progress, verdict: Verdict) -> float | None:
        """In how many seconds the run is taken up again at a failed step; None: it is not."""
        so_far = progress.retries
        if not (verdict.failed and verdict.may_pass and so_far < progress.recipe.max_retries):
            return None
        after = AGAIN_S[min(so_far, len(AGAIN_S) - 1)]
        return max(verdict.wait_s, after * self._rng.uniform(1 - JITTER, 1 + JITTER))

    async def _concluded(self, progress: Progress) -> Done:
        """The end of a run whose steps are all behind it."""
        try:
            ending = await self._success(progress)
        except (OutputInvalid, Stopped) as error:
            ending = Ending("failed", error.code, sentence(error.message, progress.secrets))
        BEFORE_FINISH.hit()
        return self._ended(progress, ending)

    async def _success(self, progress: Progress) -> Ending:
        if not progress.recipe.output:
            return Ending("success")
        for name in sorted(progress.called_before()):
            # No credential may come out, whichever worker it was used by.
            where = (progress.tenant_id, progress.connector_id)
            needs = await projected.needs(self._database, *where, name)
            await self._credential(progress, needs)
        found = await outputs.mapped(
            progress.recipe.output, progress.seen, self._evaluator, progress.tenant_id
        )
        return progress.success(without(found, progress.secrets))

    def _ended(self, progress: Progress, ending: Ending, *first: Bound) -> Done:
        """The end of a run by itself."""
        finishing = ends.finishing(*progress.where, ending, progress.took_s)
        return self._done(progress.claimed, [*first, *finishing])

    def _given_up(self, claimed: Claimed, ending: Ending) -> Done:
        """The end of a run before its time."""
        return self._done(claimed, ends.giving_up(claimed.tenant_id, claimed.target_id, ending))

    def _done(self, claimed: Claimed, record: Sequence[Bound]) -> Done:
        """An end; who waits for it in this process gets the run as it was committed."""
        reading = store.getting(claimed.tenant_id, claimed.target_id)

        def told(answers: list[Rows]) -> None:
            _recorded(answers)
            AFTER_FINISH.hit()
            self._changes.tell(claimed.target_id, store.got(answers[-2:]))

        return Done(record=[*record, *reading], told=told)


def _recorded(_: list[Rows]) -> None:
    AFTER_RECORD.hit()


async def _beside(
    intend: Callable[[], Awaitable[None]], call: Callable[[], Coroutine[Any, Any, Verdict]]
) -> Verdict:
    """Make a harmless call under a claim that cannot be lost yet.

    Nothing hangs on its intent but what others see, so it is committed where the call lasts.
    """
    calling = asyncio.create_task(call())
    try:
        await asyncio.wait([calling], timeout=LASTS_S)
        if not calling.done():
            await intend()
        return await calling
    finally:
        calling.cancel()


def _still_ours(held: object) -> None:
    """Raise ClaimLost, which undoes the transaction, unless something was found to be ours."""
    if not held:
        raise ClaimLost
