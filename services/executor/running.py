"""The work of kind `execution`: carries a run on from wherever it stands, to its end or a wait.

Each try of a step has three moments: the intent is committed, the call is made, the outcome is
committed. A worker that dies leaves at most one call in flight, and the intent says which: it is
made again where that does no harm, else the run ends with OUTCOME_UNKNOWN. The last outcome, the
end of the run and that of its work are one transaction.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from services.chassis import failpoints
from services.chassis.database import Database
from services.chassis.egress import EgressError
from services.chassis.envelope import Unsealable
from services.chassis.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from services.chassis.secret import Secret
from services.executor import lanes, steps
from services.executor.executions import (
    KIND,
    Endings,
    Secrets,
    opened,
    sealed,
)
from services.executor.lanes import Claimed
from services.executor.masking import masked, sentence
from services.executor.registry import LeasedKey
from services.executor.steps import Step, Verdict
from services.executor.store import executions as store
from services.executor.store import projected
from services.executor.store.executions import Ending, Execution
from services.executor.store.projected import Needs, ProjectedObject
from services.providers.auth import Credential
from services.providers.calls import Call, Integration
from services.providers.catalog import Catalog
from services.providers.client import ProviderClient

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


class ClaimLost(Aborted):
    """Another worker has this run by now."""

    reason = "CLAIM_LOST"


class Stopped(FailedPrecondition):
    """What a run needs is inactive or gone, so that it does not go on."""


@dataclass(slots=True)
class _Progress:
    """One run in a worker's hands."""

    claimed: Claimed
    key: LeasedKey
    execution: Execution
    recipe: tuple[Step, ...]
    seen: dict[str, Any]
    secrets: list[Secret] = field(default_factory=list)

    @property
    def tenant_id(self) -> UUID:
        return self.claimed.tenant_id

    @property
    def id(self) -> UUID:
        return self.execution.id

    def found(self, position: int) -> store.Step:
        """How the step stood when this worker took over."""
        stands = {each.position: each for each in self.execution.steps}
        return stands.get(position) or store.Step(position, self.recipe[position].name, "", 0)


class Running:
    """Runs executions; each intent prolongs the claim by `lease_s` seconds."""

    name = KIND

    def __init__(
        self,
        database: Database,
        secrets: Secrets,
        client: ProviderClient,
        catalog: Catalog,
        endings: Endings,
        rng: Random | None = None,
        *,
        lease_s: float = lanes.LEASE_S,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._client = client
        self._catalog = catalog
        self._endings = endings
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing
        self._lease_s = lease_s

    async def run(self, claimed: Claimed) -> None:
        """Carry one execution on; ClaimLost where another worker has it by now."""
        key = await self._secrets.lease_key(claimed.tenant_id)
        execution = await store.load(self._database, claimed.tenant_id, claimed.target_id)
        if execution is None or execution.ended:
            async with self._database.tenant(claimed.tenant_id) as tx:
                await lanes.complete(tx, claimed)
            return
        try:
            progress = _taken_up(claimed, key, execution)
        except Unsealable:
            await self._give_up(claimed)
            return
        for position in range(len(progress.recipe)):
            settled = progress.found(position).state in {"success", "skipped"}
            if not settled and not await self._step(progress, position):
                return

    async def _step(self, progress: _Progress, position: int) -> bool:
        """Try one step; whether to go on with the next."""
        attempts, verdict = await self._tried(progress, position)
        return await self._record(progress, position, attempts, verdict)

    async def _tried(self, progress: _Progress, position: int) -> tuple[int, Verdict]:
        """The tries a step has had now, and how it stands after the last."""
        step, found = progress.recipe[position], progress.found(position)
        needs = await projected.needs(
            self._database, progress.tenant_id, progress.execution.connector_id, step.integration
        )
        provider = needs.integration.spec["provider"] if needs.integration else ""
        repeatable = step.repeatable(self._catalog.manifests.get(provider))
        if found.in_flight and not repeatable:
            return found.attempts, steps.interrupted()
        try:
            prepared = await self._prepared(progress, step, needs, first=not found.attempts)
        except (InvalidArgument, NotFound, FailedPrecondition) as error:
            return found.attempts, steps.refused(error)
        if prepared is None:
            return 0, steps.skipped()
        attempts = found.attempts + 1
        await self._intend(progress, position, attempts, repeatable=repeatable)
        verdict = await self._call(step, prepared, attempts, repeatable=repeatable)
        return attempts, verdict

    async def _prepared(
        self, progress: _Progress, step: Step, needs: Needs, *, first: bool
    ) -> tuple[Integration, Call] | None:
        """The call to make, and as whom; None where the step's condition is false."""
        integration = _allowed(needs, step.integration)
        spec = integration.spec
        manifest = self._catalog.get(spec["provider"])
        config = manifest.config_with_defaults(spec.get("config") or {})
        about = {"name": integration.name, "config": config}
        scope = step.scope({**progress.seen, "integration": about})
        if first and not step.wanted(scope):
            return None
        call = steps.call_of(step, manifest, config, scope)
        credential = await self._credential(progress, needs.credential)
        return Integration(
            manifest.provider, spec.get("base_url") or None, config, credential
        ), call

    async def _credential(self, progress: _Progress, wanted: ProjectedObject | None) -> Credential:
        if wanted is None:
            return Credential()
        try:
            found = await self._secrets.resolve(progress.tenant_id, wanted.name, wanted.version)
        except (NotFound, FailedPrecondition):
            raise Stopped(
                f"credentials/{wanted.name} cannot be used", reason="CREDENTIAL_UNAVAILABLE"
            ) from None
        progress.secrets.extend(found.values.values())
        return Credential(found.type, found.values)

    async def _intend(
        self, progress: _Progress, position: int, attempts: int, *, repeatable: bool
    ) -> None:
        """Say, before it is made, that a call is made."""
        BEFORE_INTENT.hit()
        step = progress.recipe[position].name
        # An intent that is lost with the disk's cache only lets a harmless call be made again.
        async with self._database.tenant(progress.tenant_id, durable=not repeatable) as tx:
            *_, begun = await tx.conclude(
                [
                    lanes.renewing(progress.claimed, self._lease_s),
                    store.running(progress.tenant_id, progress.id),
                    store.beginning(progress.claimed, position, step, attempts),
                ]
            )
        _still_ours(begun)
        AFTER_INTENT.hit()

    async def _call(
        self, step: Step, prepared: tuple[Integration, Call], attempts: int, *, repeatable: bool
    ) -> Verdict:
        integration, call = prepared
        try:
            response = await self._client.send(integration, call, timeout_s=step.timeout_s)
        except EgressError as error:
            return steps.unanswered(step, error, attempts, self._rng, repeatable=repeatable)
        except (InvalidArgument, NotFound) as error:
            return steps.refused(error)
        finally:
            AFTER_CALL.hit()
        return steps.answered(step, response, attempts, self._rng, repeatable=repeatable)

    async def _record(
        self, progress: _Progress, position: int, attempts: int, verdict: Verdict
    ) -> bool:
        """Keep the outcome of a try; whether there is a next step to go on with."""
        waits = verdict.state == "running"
        ending = None if waits else _ending(progress, position, verdict)
        step = _row(progress, position, attempts, verdict, keep=ending is None)
        BEFORE_RECORD.hit()
        recording = store.recording(progress.tenant_id, progress.id, step)
        async with self._database.tenant(progress.tenant_id) as tx:
            if ending is not None:
                finishing = store.finishing(progress.tenant_id, progress.id, ending)
                _still_ours(await lanes.complete(tx, progress.claimed, [recording, *finishing]))
                BEFORE_FINISH.hit()
            else:
                _still_ours((await tx.pipeline([recording]))[0])
            if waits:
                _still_ours(await lanes.postpone(tx, progress.claimed, verdict.wait_s))
        AFTER_RECORD.hit()
        if ending is not None:
            AFTER_FINISH.hit()
            self._endings.tell(progress.id)
        progress.seen["steps"][step.step] = verdict.kept
        return not waits and ending is None

    async def _give_up(self, claimed: Claimed) -> None:
        """End a run whose sealed state does not open with the tenant's key."""
        unread = Ending("failed", "STATE_UNREADABLE", "its sealed state cannot be opened")
        async with self._database.tenant(claimed.tenant_id) as tx:
            finishing = store.finishing(claimed.tenant_id, claimed.target_id, unread)
            _still_ours(await lanes.complete(tx, claimed, finishing))
        self._endings.tell(claimed.target_id)


def _taken_up(claimed: Claimed, key: LeasedKey, execution: Execution) -> _Progress:
    """A run as its rows have it. Raises Unsealable."""
    where = (key, claimed.tenant_id, execution.id)
    state = opened(*where, "sealed_input", execution.sealed_input or b"")
    recipe = tuple(Step.from_spec(each) for each in state.pop("steps"))
    kept = {
        each.step: opened(*where, _column(each.position), each.sealed_output)
        for each in execution.steps
        if each.sealed_output is not None
    }
    return _Progress(claimed, key, execution, recipe, {**state, "steps": kept})


def _column(position: int) -> str:
    return f"sealed_output.{position}"


def _row(
    progress: _Progress, position: int, attempts: int, verdict: Verdict, *, keep: bool
) -> store.Step:
    """What is stored of a try; what later steps need of it only where there are any."""
    where = (progress.key, progress.tenant_id, progress.id, _column(position))
    shown = masked(verdict.kept.get("output", {}), progress.secrets)
    return store.Step(
        position=position,
        step=progress.recipe[position].name,
        state=verdict.state,
        attempts=attempts,
        response_status=verdict.status,
        masked_output=shown if isinstance(shown, dict) else {},
        failure_reason=verdict.reason,
        failure_message=sentence(verdict.message, progress.secrets),
        sealed_output=sealed(*where, verdict.kept) if keep and verdict.kept else None,
    )


def _still_ours(held: object) -> None:
    """Raise ClaimLost, which undoes the transaction, unless something was found to be ours."""
    if not held:
        raise ClaimLost("another worker has this run")


def _ending(progress: _Progress, position: int, verdict: Verdict) -> Ending | None:
    """The end that a step's outcome brings, or None where more steps follow."""
    name = progress.recipe[position].name
    if verdict.state in {"failed", "timeout"}:
        message = sentence(f"step {name}: {verdict.message}", progress.secrets)
        return Ending(verdict.state, verdict.reason, message)
    return Ending("success") if position == len(progress.recipe) - 1 else None


def _allowed(needs: Needs, name: str) -> ProjectedObject:
    """The integration to call. Raises Stopped where the run may not go on."""
    if not needs.enabled:
        raise Stopped("the tenant is disabled", reason="TENANT_DISABLED")
    if needs.connector is None or not needs.connector.spec["is_active"]:
        raise Stopped("the connector is inactive or gone", reason="CONNECTOR_INACTIVE")
    if needs.integration is None:
        raise Stopped(f"integrations/{name} is gone", reason="INTEGRATION_UNKNOWN")
    if not needs.integration.spec["is_active"]:
        raise Stopped(f"integrations/{name} is inactive", reason="INTEGRATION_INACTIVE")
    if needs.integration.spec.get("credential") and needs.credential is None:
        raise Stopped(f"the credential of integrations/{name} is gone", reason="CREDENTIAL_UNKNOWN")
    return needs.integration
