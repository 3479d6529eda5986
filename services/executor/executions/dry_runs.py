"""What a connector's steps would send: nothing is called or kept, and no credential is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from services.chassis.constraints import did_you_mean
from services.chassis.database import Database
from services.chassis.egress import Request
from services.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, invalid
from services.chassis.evaluator import Evaluator
from services.chassis.expressions import Json
from services.chassis.secret import MASK, Secret
from services.executor.executions import outputs, steps
from services.executor.executions.outputs import OutputInvalid
from services.executor.executions.recipe import Recipe
from services.executor.executions.runs import connector_of
from services.executor.executions.standing import callee
from services.executor.executions.steps import Step
from services.executor.store.projected import Needs, ProjectedObject
from services.providers.auth import Credential, auth_header_name, credential_parts
from services.providers.calls import Integration, request_for
from services.providers.catalog import Catalog
from services.providers.manifest import CARRIED_AS, Manifest

Outcome = Literal["sends", "skipped", "fails"]
Refusal = (InvalidArgument, NotFound, FailedPrecondition)


@dataclass(frozen=True, slots=True)
class Example:
    """What a step is to have come to; with an `error` it failed and let the run go on."""

    output: Json = None
    status: int = 200
    body: Json = None
    error: Json = None


@dataclass(frozen=True, slots=True)
class DryRunRequest:
    """What to try out, with what its templates are to see; `examples` by the steps' names."""

    tenant_id: UUID
    connector: str
    input: Mapping[str, Json] = field(default_factory=dict, repr=False)
    event: Json = field(default=None, repr=False)
    examples: Mapping[str, Example] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something could not be done: UPPER_SNAKE, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DryStep:
    """What would become of a step: the request it sends, the mask for its credential on it."""

    name: str
    outcome: Outcome
    request: Request | None = field(default=None, repr=False)
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class DryRun:
    """Every step in order, and what the output would come to."""

    steps: tuple[DryStep, ...]
    output: Mapping[str, Json]
    output_fault: Fault | None = None


class DryRuns:
    """Tries connectors out."""

    def __init__(self, database: Database, catalog: Catalog, evaluator: Evaluator) -> None:
        self._database = database
        self._catalog = catalog
        self._evaluator = evaluator

    async def run(self, asked: DryRunRequest) -> DryRun:
        """Try a connector, also an inactive one, as it is now.

        Raises NotFound, InvalidArgument for an example of no step, FailedPrecondition in a tenant
        that is disabled.
        """
        async with self._database.tenant(asked.tenant_id, durable=False) as tx:
            connector, wanted = await connector_of(tx, asked.tenant_id, asked.connector)
        recipe = Recipe.from_spec(connector.spec)
        _check_examples(asked, recipe)
        seen: dict[str, Any] = {"event": asked.event, "input": dict(asked.input), "steps": {}}
        tried = []
        for step in recipe.steps:
            needs = wanted.needs(step.integration)
            tried.append(await self._step(asked.tenant_id, step, needs, seen))
            if tried[-1].outcome == "skipped":
                seen["steps"][step.name] = steps.skipped().kept
            elif step.name in asked.examples:
                seen["steps"][step.name] = _kept(asked.examples[step.name])
        return await self._with_output(asked.tenant_id, recipe, tuple(tried), seen)

    async def _step(
        self, tenant_id: UUID, step: Step, needs: Needs, seen: Mapping[str, Any]
    ) -> DryStep:
        """One step, with everything that is wrong with it."""
        faults: list[Fault] = []
        try:
            integration = callee(needs, step.integration)
            manifest = self._catalog.get(integration.spec["provider"])
        except Refusal as error:
            return DryStep(step.name, "fails", faults=(_fault(error),))
        config = manifest.config_with_defaults(integration.spec.get("config") or {})
        about = {"name": integration.name, "config": config}
        view = self._evaluator.seeing({**seen, "integration": about}, tenant_id)
        try:
            if not await step.wanted(view):
                return DryStep(step.name, "skipped")
        except Refusal as error:
            faults.append(_fault(error, "condition"))
        try:
            call = await steps.call_of(step, manifest, config, view)
            credential = _stand_in(needs.credential)
            base_url = integration.spec.get("base_url") or None
            called = Integration(manifest.provider, base_url, config, credential)
            request = _masked(request_for(manifest, called, call), manifest, called)
        except Refusal as error:
            return DryStep(step.name, "fails", faults=(*faults, _fault(error)))
        return DryStep(step.name, "fails" if faults else "sends", request, tuple(faults))

    async def _with_output(
        self, tenant_id: UUID, recipe: Recipe, tried: tuple[DryStep, ...], seen: Mapping[str, Any]
    ) -> DryRun:
        try:
            output = await outputs.mapped(recipe.output, seen, self._evaluator, tenant_id)
        except OutputInvalid as error:
            return DryRun(tried, {}, _fault(error))
        return DryRun(tried, output)


def _check_examples(asked: DryRunRequest, recipe: Recipe) -> None:
    names = [step.name for step in recipe.steps]
    for name in asked.examples:
        if name not in names:
            raise invalid("steps", f"{name} is no step of it{did_you_mean(name, names)}")


def _kept(example: Example) -> dict[str, Json]:
    return steps.kept(example.output, example.status, example.body, example.error)


def _fault(error: InvalidArgument | NotFound | FailedPrecondition, where: str = "") -> Fault:
    return Fault(error.code, f"{where}: {error.message}" if where else error.message)


def _stand_in(credential: ProjectedObject | None) -> Credential:
    """A credential of the same type without its values."""
    if credential is None:
        return Credential()
    kind = credential.spec["type"]
    return Credential(
        kind, {name: Secret(MASK) for name in credential_parts(CARRIED_AS.get(kind, kind)).needed}
    )


def _masked(request: Request, manifest: Manifest, called: Integration) -> Request:
    """The request with the mask itself for the credential, however that is written."""
    rule = manifest.auth_rule(called.credential.type)
    if rule is None or rule.type == "none":
        return request
    carried = {auth_header_name(rule, called.config): rule.prefix + MASK}
    return replace(request, headers={**request.headers, **carried})
