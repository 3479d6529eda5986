"""One step of a connector, pure: what its call is, and what the call's outcome means."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal

from services.chassis import strict_json
from services.chassis.egress import ConnectFailed, EgressError, ResponseLost
from services.chassis.errors import TenonError
from services.chassis.expressions import Expression, ExpressionError, Json, Scope
from services.chassis.jsonpath import JsonPath
from services.chassis.templates import as_text, expressions, render
from services.providers.calls import Call, operation_call
from services.providers.client import ProviderResponse
from services.providers.failures import Failure, backoff
from services.providers.manifest import Manifest, Parameter

REPEATABLE_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""RFC 9110 §9.2.2, as far as connectors use them."""
LARGEST_BODY: Final = 256 * 1024
"""Bytes of an answer's body that later steps see; what a longer one holds they get by `extract`."""

OUTCOME_UNKNOWN: Final = "OUTCOME_UNKNOWN"
TIMEOUT: Final = "TIMEOUT"

State = Literal["running", "success", "failed", "skipped", "timeout"]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a step is tried again; times in seconds."""

    max_attempts: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """A step as the connector has it; texts may be templates."""

    name: str
    integration: str
    operation: str
    method: str
    path: str
    path_params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Json
    condition: str
    extract: Mapping[str, str]
    timeout_s: float
    retry: Retry
    idempotent: bool | None

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Step":
        """The step in a connector's projected spec, whose defaults the registry has filled in."""
        texts = ("name", "integration", "operation", "method", "path", "condition")
        maps = ("path_params", "query", "headers", "extract")
        retry = spec["retry"]
        plain: dict[str, Any] = {
            **{name: spec.get(name) or "" for name in texts},
            **{name: spec.get(name) or {} for name in maps},
        }
        return cls(
            **plain,
            body=spec.get("body"),
            timeout_s=seconds(spec["timeout"]),
            retry=Retry(retry["max_attempts"], seconds(retry["base"]), seconds(retry["cap"])),
            idempotent=spec.get("idempotent"),
        )

    def repeatable(self, manifest: Manifest | None) -> bool:
        """Whether its call may be made twice: as it says, or its operation, or its method."""
        if self.idempotent is not None:
            return self.idempotent
        if self.operation:
            operation = manifest.operations.get(self.operation) if manifest else None
            return operation is not None and operation.idempotent
        return self.method in REPEATABLE_METHODS

    def wanted(self, scope: Scope) -> bool:
        """Whether its condition holds. Raises ExpressionError."""
        return not self.condition or Expression.parse(self.condition).holds(scope)

    def scope(self, seen: Mapping[str, Any]) -> Scope:
        """What its expressions see of `seen`: only what they name, since handing over takes time.

        Raises ExpressionError.
        """
        maps = (self.path_params, self.query, self.headers)
        texts: Json = [self.path, self.body, *(text for each in maps for text in each.values())]
        condition = [Expression.parse(self.condition)] if self.condition else []
        found = [*condition, *expressions(texts)]
        names = frozenset[tuple[str, str | None]]().union(*(each.selected for each in found))
        visible = {name: seen[name] for name, _ in names if name in seen}
        if "steps" in visible and ("steps", None) not in names:
            named = {name: kept for name, kept in seen["steps"].items() if ("steps", name) in names}
            visible["steps"] = named
        return Scope(visible)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a step stands after a try; `running` is to be tried again in `wait_s` seconds.

    `kept` is what later steps see of it: output, status and body.
    """

    state: State
    status: int = 0
    kept: Mapping[str, Json] = field(default_factory=dict, repr=False)
    reason: str = ""
    message: str = ""
    wait_s: float = 0


def call_of(step: Step, manifest: Manifest, config: Mapping[str, object], scope: Scope) -> Call:
    """The call, every template rendered. Raises ExpressionError and CallInvalid."""
    params, query = _values(step.path_params, scope), _values(step.query, scope)
    headers = {name: as_text(value) for name, value in _values(step.headers, scope).items()}
    body = render(step.body, scope)
    operation = manifest.operations.get(step.operation)
    if not step.operation:
        path = as_text(render(step.path, scope))
        return Call(step.method, path, params, query, headers, body)
    if operation is not None:
        params, query = _typed(operation.path_params, params), _typed(operation.query, query)
    call = operation_call(
        manifest, step.operation, params=params, query=query, body=body, config=config
    )
    return replace(call, headers=headers)


def skipped() -> Verdict:
    """Of a step whose condition is false."""
    return Verdict("skipped", kept={"output": {}, "status": 0, "body": None})


def interrupted() -> Verdict:
    """Of an unsafe call that was under way when its worker died."""
    message = "a call that is not safe to repeat was under way when its worker stopped"
    return Verdict("failed", reason=OUTCOME_UNKNOWN, message=message)


def refused(error: TenonError) -> Verdict:
    """Of a call that was not made."""
    return Verdict("failed", reason=error.code, message=error.message)


def answered(
    step: Step, response: ProviderResponse, attempts: int, rng: Random, *, repeatable: bool
) -> Verdict:
    """Of a whole answer to try number `attempts`."""
    if response.failure is None:
        return _kept(step, response)
    failure = response.failure
    # A provider that asks to come back later has done nothing.
    came_too_early = failure.kind == "rate_limited" or (
        failure.status == 503 and failure.retry_after_s is not None
    )
    again = failure.retryable and (repeatable or came_too_early) and _left(step, attempts)
    said = f": {failure.message}" if failure.message else ""
    return Verdict(
        "running" if again else "failed",
        status=failure.status,
        reason=failure.kind.upper(),
        message=f"the provider answered {failure.status}{said}",
        wait_s=_wait(step.retry, attempts, rng, failure) if again else 0,
    )


def unanswered(
    step: Step, error: EgressError, attempts: int, rng: Random, *, repeatable: bool
) -> Verdict:
    """Of try number `attempts`, which brought no whole answer."""
    lost, late = isinstance(error, ResponseLost), getattr(error, "late", False)
    status = getattr(error, "status", None) or 0
    if lost and not repeatable:
        return Verdict("failed", status, reason=OUTCOME_UNKNOWN, message=error.message)
    reason = TIMEOUT if late else error.code
    if (lost or isinstance(error, ConnectFailed)) and _left(step, attempts):
        wait_s = _wait(step.retry, attempts, rng)
        return Verdict("running", status, reason=reason, message=error.message, wait_s=wait_s)
    return Verdict("timeout" if late else "failed", status, reason=reason, message=error.message)


def seconds(duration: str) -> float:
    """The seconds in a duration as protobuf's JSON writes it: `1.5s`."""
    return float(duration.removesuffix("s"))


def _kept(step: Step, response: ProviderResponse) -> Verdict:
    body, is_json = _body(response.body)
    if step.extract and not is_json:
        message = "the answer is not JSON, so there is nothing to extract from"
        return Verdict("failed", response.status, reason="ANSWER_NOT_JSON", message=message)
    try:
        paths = {name: JsonPath.parse(path) for name, path in step.extract.items()}
        output: Json = {name: path.extract(body) for name, path in paths.items()}
    except TenonError as error:
        return Verdict("failed", response.status, reason=error.code, message=error.message)
    kept: dict[str, Json] = {"output": output, "status": response.status}
    if len(response.body) <= LARGEST_BODY:
        kept["body"] = body
    return Verdict("success", response.status, kept)


def _body(body: bytes) -> tuple[Json, bool]:
    """JSON and True, or else text and False; nothing at all is null."""
    if not body.strip():
        return None, True
    try:
        parsed: Any = strict_json.parse(body)
    except ValueError:
        return body.decode(errors="replace"), False
    return parsed, True


def _left(step: Step, attempts: int) -> bool:
    return attempts < step.retry.max_attempts


def _wait(retry: Retry, attempts: int, rng: Random, failure: Failure | None = None) -> float:
    """Seconds until the next try: as the provider asks, up to the cap, else with backoff."""
    if failure is not None and failure.retry_after_s is not None:
        return min(failure.retry_after_s, retry.cap_s)
    return backoff(attempts, base_s=retry.base_s, cap_s=retry.cap_s, rng=rng)


def _values(texts: Mapping[str, str], scope: Scope) -> dict[str, Json]:
    """Rendered, without those that came to null."""
    rendered = {name: _named(name, text, scope) for name, text in texts.items()}
    return {name: value for name, value in rendered.items() if value is not None}


def _named(name: str, text: str, scope: Scope) -> Json:
    try:
        return render(text, scope)
    except ExpressionError as error:
        raise type(error)(f"{name}: {error.message}", error.position) from None


def _typed(parameters: Mapping[str, Parameter], values: Mapping[str, Json]) -> dict[str, Json]:
    """Values as the operation declares them: a connector writes all of them as text."""
    return {
        name: _cast(parameters[name], value) if name in parameters else value
        for name, value in values.items()
    }


def _cast(parameter: Parameter, value: Json) -> Json:
    if parameter.type == "string" and isinstance(value, int | float):
        return as_text(value)
    if parameter.type == "integer" and isinstance(value, str) and value.isdecimal():
        return int(value)
    if parameter.type == "boolean" and value in ("true", "false"):
        return value == "true"
    return value
