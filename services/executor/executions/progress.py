"""One run in a worker's hands: its rows opened, and what is stored of it again."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.chassis.secret import Secret
from services.executor.engine.work import Claimed
from services.executor.executions.masking import masked, sentence
from services.executor.executions.recipe import Recipe
from services.executor.executions.standing import ENDS_RUNS
from services.executor.executions.steps import Step, Verdict
from services.executor.registry.credentials import LeasedKey
from services.executor.sealing import opened, sealed
from services.executor.store import executions as store
from services.executor.store.execution_ends import Ending
from services.executor.store.executions import Execution
from services.executor.store.projected import Wanted

OUTPUT: Final = "sealed_output"


@dataclass(slots=True)
class Progress:
    """A run, and all that its worker has come to know of it.

    `wanted` is what its steps need, until the first has used it; `fresh` until then: its claim has
    just been committed by this process, so that nobody else can have it.
    """

    claimed: Claimed
    key: LeasedKey
    recipe: Recipe
    seen: dict[str, Any]
    wanted: Wanted | None
    retries: int = 0
    steps: Sequence[store.Step] = ()
    fresh: bool = False
    begun_at: float = field(default_factory=time.monotonic)
    secrets: list[Secret] = field(default_factory=list)

    @property
    def tenant_id(self) -> UUID:
        """Whose run it is."""
        return self.claimed.tenant_id

    @property
    def id(self) -> UUID:
        """The execution's."""
        return self.claimed.target_id

    @property
    def connector_id(self) -> UUID:
        """The connector's, whose lane has its id."""
        return self.claimed.lane_id

    @property
    def where(self) -> tuple[UUID, UUID]:
        """Tenant and execution, as the stores take them."""
        return self.tenant_id, self.id

    @property
    def took_s(self) -> float:
        """How long it has been in these hands."""
        return time.monotonic() - self.begun_at

    def step(self, position: int) -> Step:
        """The step as the recipe has it."""
        return self.recipe.steps[position]

    def found(self, position: int) -> store.Step:
        """How the step stood when this worker took over."""
        stands = {each.position: each for each in self.steps}
        return stands.get(position) or store.Step(position, self.step(position).name, "", 0)

    def called_before(self) -> set[str]:
        """The integrations that were called before this worker took over."""
        positions = range(len(self.recipe.steps))
        called = (n for n in positions if self.found(n).state not in {"", "skipped"})
        return {self.step(position).integration for position in called}

    def passes_over(self, position: int, verdict: Verdict) -> bool:
        """Whether the run goes on although the step has failed."""
        goes_on = self.step(position).continue_on_error and verdict.reason not in ENDS_RUNS
        return verdict.failed and goes_on

    def ending(self, position: int, verdict: Verdict) -> Ending | None:
        """The end that a step's outcome brings, or None where something follows."""
        if verdict.failed and not self.passes_over(position, verdict):
            message = f"step {self.step(position).name}: {verdict.message}"
            return Ending(verdict.state, verdict.reason, sentence(message, self.secrets))
        is_last = position == len(self.recipe.steps) - 1
        return Ending("success") if is_last and not self.recipe.output else None

    def row(
        self, position: int, attempts: int, verdict: Verdict, *, retries: int, keep: bool
    ) -> store.Step:
        """What is stored of a try; what later steps need of it only where it is to be kept."""
        place = (self.key, *self.where, _column(position))
        shown = masked(verdict.kept.get("output", {}), self.secrets)
        return store.Step(
            position=position,
            step=self.step(position).name,
            state=verdict.state,
            attempts=attempts,
            retries=self.found(position).retries + retries,
            response_status=verdict.status,
            masked_output=shown if isinstance(shown, dict) else {},
            failure_reason=verdict.reason,
            failure_message=sentence(verdict.message, self.secrets),
            sealed_output=sealed(*place, verdict.kept) if keep and verdict.kept else None,
            took_s=self.took_s,
        )

    def success(self, output: Mapping[str, Any]) -> Ending:
        """The good end of a run that came to `output`: values for its caller, masked for others."""
        shown = masked(output, self.secrets)
        return Ending(
            "success",
            masked_output=shown if isinstance(shown, dict) else {},
            sealed_output=sealed(self.key, *self.where, OUTPUT, output),
        )


def begun(
    claimed: Claimed, key: LeasedKey, recipe: Recipe, given: Mapping[str, Any], wanted: Wanted
) -> Progress:
    """A run that begins now: what was just written of it need not be read."""
    return Progress(claimed, key, recipe, {**given, "steps": {}}, wanted, fresh=True)


def taken_up(claimed: Claimed, key: LeasedKey, execution: Execution, wanted: Wanted) -> Progress:
    """A run as its rows have it. Raises Unsealable."""
    place = (key, claimed.tenant_id, execution.id)
    state = opened(*place, "sealed_input", execution.sealed_input or b"")
    recipe = Recipe.from_spec(state.pop("recipe"))
    kept = {
        each.step: opened(*place, _column(each.position), each.sealed_output)
        for each in execution.steps
        if each.sealed_output is not None
    }
    seen = {**state, "steps": kept}
    return Progress(claimed, key, recipe, seen, wanted, execution.retries, execution.steps)


def _column(position: int) -> str:
    return f"sealed_output.{position}"
