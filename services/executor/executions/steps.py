"""One step of a connector: what its call is, and what the call's outcome means."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal

from services.chassis import strict_json
from services.chassis.egress import ConnectFailed, EgressError, ResponseLost
from services.chassis.errors import TenonError
from services.chassis.evaluation import NotJson
from services.chassis.evaluator import Evaluator, View
from services.chassis.expressions import Json
from services.chassis.templates import as_text
from services.providers.calls import Call, operation_call
from services.providers.client import ProviderResponse
from services.providers.failures import Failure, backoff
from services.providers.manifest import Manifest, Parameter
from services.providers.roles import Action, operation_of, placed

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
    """A step as the connector has it; texts may be templates.

    One with an `action` has its call from that alone.
    """

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
    continue_on_error: bool
    action: Action | None = None

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
            continue_on_error=bool(spec.get("continue_on_error")),
            action=Action(**spec["action"]) if spec.get("action") else None,
        )

    def repeatable(self, manifest: Manifest | None) -> bool:
        """Whether its call may be made twice: as it says, or its operation, or its method."""
        if self.idempotent is not None:
            return self.idempotent
        if self.operation or self.action:
            operation = manifest.operations.get(self._operation(manifest)) if manifest else None
            return operation is not None and operation.idempotent
        return self.method in REPEATABLE_METHODS

    def _operation(self, manifest: Manifest) -> str:
        return operation_of(manifest, self.action) if self.action else self.operation

    async def wanted(self, view: View) -> bool:
        """Whether its condition holds. Raises ExpressionError."""
        return not self.condition or await view.holds(self.condition)

    def calling(self, manifest: Manifest, config: Mapping[str, object]) -> "Step":
        """The step with its action as the call that it comes to. Raises CallInvalid."""
        if self.action is None:
            return self
        call = placed(manifest, self.action, config)
        place: Any = {"path_params": call.params, "query": call.query, "body": call.body}
        return replace(self, operation=call.operation, action=None, **place)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a step stands after a try; `running` is to be tried again in `wait_s` seconds.

    `kept` is what later steps see of it: output, status and body, or error. One that failed and
    `may_pass` has used up its tries; another would do no harm, and is not wanted before `wait_s`.
    """

    state: State
    status: int = 0
    kept: Mapping[str, Json] = field(default_factory=dict, repr=False)
    reason: str = ""
    message: str = ""
    wait_s: float = 0
    may_pass: bool = False

    @property
    def failed(self) -> bool:
        """Whether the step has come to a bad end."""
        return self.state in {"failed", "timeout"}


async def call_of(step: Step, manifest: Manifest, config: Mapping[str, object], view: View) -> Call:
    """The call, every template rendered. Raises ExpressionError and CallInvalid."""
    step = step.calling(manifest, config)
    path = {} if step.operation else {"path": step.path}
    maps: dict[str, Any] = {
        "path_params": step.path_params,
        "query": step.query,
        "headers": step.headers,
    }
    # All at once: what goes to another process goes there once.
    made: Any = await view.render({**path, **maps, "body": step.body})
    params, query, given = (_given(made[name]) for name in maps)
    headers = {name: as_text(value) for name, value in given.items()}
    operation = manifest.operations.get(step.operation)
    if not step.operation:
        return Call(step.method, as_text(made["path"]), params, query, headers, made["body"])
    if operation is not None:
        params, query = _typed(operation.path_params, params), _typed(operation.query, query)
    call = operation_call(
        manifest, step.operation, params=params, query=query, body=made["body"], config=config
    )
    return replace(call, headers=headers)


def skipped() -> Verdict:
    """Of a step whose condition is false."""
    return Verdict("skipped", kept=kept())


def interrupted() -> Verdict:
    """Of an unsafe call that was under way when its worker died."""
    message = "a call that is not safe to repeat was under way when its worker stopped"
    return Verdict("failed", reason=OUTCOME_UNKNOWN, message=message)


def refused(error: TenonError) -> Verdict:
    """Of a call that was not made."""
    return Verdict("failed", reason=error.code, message=error.message)


def passed_over(verdict: Verdict, message: str) -> Verdict:
    """A failure that lets the run go on: later steps see why, in the words of `message`."""
    error: Json = {"reason": verdict.reason, "message": message}
    return replace(verdict, kept=kept(status=verdict.status, error=error))


def kept(
    output: Json = None, status: int = 0, body: Json = None, error: Json = None
) -> dict[str, Json]:
    """What later steps see of one; an `error` only where there is one, so that has() tells."""
    seen: dict[str, Json] = {"output": output or {}, "status": status, "body": body}
    return {**seen, "error": error} if error is not None else seen


async def answered(
    step: Step,
    response: ProviderResponse,
    attempts: int,
    rng: Random,
    evaluator: Evaluator,
    *,
    repeatable: bool,
    owner: Hashable = None,
) -> Verdict:
    """Of a whole answer to try number `attempts`."""
    if response.failure is None:
        return await _kept(step, response, evaluator, owner)
    failure = response.failure
    # A provider that asks to come back later has done nothing.
    came_too_early = failure.kind == "rate_limited" or (
        failure.status == 503 and failure.retry_after_s is not None
    )
    may_pass = failure.retryable and (repeatable or came_too_early)
    said = f": {failure.message}" if failure.message else ""
    return Verdict(
        "running" if may_pass and _left(step, attempts) else "failed",
        status=failure.status,
        reason=failure.kind.upper(),
        message=f"the provider answered {failure.status}{said}",
        wait_s=_wait(step.retry, attempts, rng, failure) if may_pass else 0,
        may_pass=may_pass,
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
    may_pass = lost or isinstance(error, ConnectFailed)
    ended: State = "timeout" if late else "failed"
    return Verdict(
        "running" if may_pass and _left(step, attempts) else ended,
        status,
        reason=reason,
        message=error.message,
        wait_s=_wait(step.retry, attempts, rng) if may_pass else 0,
        may_pass=may_pass,
    )


def seconds(duration: str) -> float:
    """The seconds in a duration as protobuf's JSON writes it: `1.5s`."""
    return float(duration.removesuffix("s"))


async def _kept(
    step: Step, response: ProviderResponse, evaluator: Evaluator, owner: Hashable
) -> Verdict:
    output: dict[str, Json] = {}
    try:
        if step.extract:
            # Nothing at all is null.
            body = response.body if response.body.strip() else b"null"
            output = await evaluator.extract(step.extract, body, owner)
    except NotJson as error:
        return Verdict("failed", response.status, reason="ANSWER_NOT_JSON", message=error.message)
    except TenonError as error:
        return Verdict("failed", response.status, reason=error.code, message=error.message)
    seen: dict[str, Json] = {"output": output, "status": response.status}
    if len(response.body) <= LARGEST_BODY:
        seen["body"] = _body(response.body)
    return Verdict("success", response.status, seen)


def _body(body: bytes) -> Json:
    """JSON, or else text; nothing at all is null."""
    if not body.strip():
        return None
    try:
        parsed: Any = strict_json.parse(body)
    except ValueError:
        return body.decode(errors="replace")
    return parsed  # type: ignore[no-any-return]


def _left(step: Step, attempts: int) -> bool:
    return attempts < step.retry.max_attempts


def _wait(retry: Retry, attempts: int, rng: Random, failure: Failure | None = None) -> float:
    """Seconds until the next try: as the provider asks, up to the cap, else with backoff."""
    if failure is not None and failure.retry_after_s is not None:
        return min(failure.retry_after_s, retry.cap_s)
    return backoff(attempts, base_s=retry.base_s, cap_s=retry.cap_s, rng=rng)


def _given(rendered: Mapping[str, Json]) -> dict[str, Json]:
    """Without those that came to null."""
    return {name: value for name, value in rendered.items() if value is not None}


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
