"""What one provider's manifest may say, checked as it is read."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, field_validator, model_validator

from services.chassis.constraints import did_you_mean
from services.chassis.errors import Violation
from services.providers.app_streams import App
from services.providers.bodies import BodyPath, at
from services.providers.streams import Stream
from services.providers.urls import base_url_problem, template_names

Category = Literal[
    "scm",
    "target",
    "pipeline",
    "communication",
    "ticket",
    "crm",
    "payments",
    "accounting",
    "giving",
    "hr",
    "generic",
]
AuthType = Literal["api_key", "bearer", "basic", "none"]
SignatureScheme = Literal[
    "github_sha256", "standard_webhooks", "slack_v0", "stripe_v1", "hubspot_v3", "intuit_sha256"
]
PaginationStyle = Literal["link_header"]
RetryAfterSource = Literal["retry-after", "x-ratelimit-reset"]
FailureKind = Literal["rate_limited", "auth", "not_found", "invalid", "provider_error", "transient"]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
Grant = Literal["authorization_code", "client_credentials", "jwt_bearer"]
RoleName = Literal["message", "pipeline", "ticket"]
Scalar = str | int | bool

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Sentence = Annotated[str, StringConstraints(min_length=1, max_length=500)]

_ECHOED: Final = re.compile(r"[\x20-\x7e]{1,500}")
CARRIED_AS: Final[Mapping[str, AuthType]] = {"oauth2": "bearer"}
"""Types of credential that go on a request as another one does."""

_IS_TYPE: Final[Mapping[str, Callable[[object], bool]]] = {
    "string": lambda value: isinstance(value, str),
    # A whole number comes as 7.0 out of a protobuf Struct.
    "integer": lambda value: (
        not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1
    ),
    "boolean": lambda value: isinstance(value, bool),
}


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a pattern: {error}") from error
    return pattern


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(_Part):
    """One typed value a person gives: a setting, a path variable or a query parameter."""

    type: Literal["string", "integer", "boolean"] = "string"
    required: bool = False
    pattern: str | None = None
    description: Sentence
    default: Scalar | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pattern is not None:
            if self.type != "string":
                raise ValueError("only a string has a pattern")
            _compiles(self.pattern)
        if self.default is not None:
            if self.required:
                raise ValueError("a required value has no default")
            if message := self.problem(self.default):
                raise ValueError(f"the default {message}")
        return self

    def problem(self, value: object) -> str | None:
        """What is wrong with `value`, in words that never repeat it, or None."""
        if not _IS_TYPE[self.type](value):
            return f"must be of type {self.type}"
        if self.pattern is not None and not re.fullmatch(self.pattern, str(value)):
            return f"must match {self.pattern}"
        return None


class BaseUrl(_Part):
    """Where the provider's API stands, and whether an integration may or must say so itself."""

    default: str | None = None
    override: bool
    required: bool

    @field_validator("default")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        if value is not None and (base_url_problem(value) or not value.startswith("https://")):
            raise ValueError("must be an https URL without user, query or fragment")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.required == (self.default is not None):
            raise ValueError("give a default, or else required: true")
        if self.required and not self.override:
            raise ValueError("what is required must be open to override")
        return self


class AuthRule(_Part):
    """How one type of credential is put on a request: `header: prefix + value`.

    `header_setting` names the setting of the integration that replaces `header`.
    """

    type: AuthType
    header: HeaderName = "Authorization"
    prefix: str = ""
    header_setting: Slug | None = None


class Operation(_Part):
    """One call of the provider's API; `path` is an RFC 6570 level 1 template.

    `safe`: changes nothing there. `idempotent`: sending it twice does what sending it once does.
    """

    method: Method
    path: str
    description: Sentence
    path_params: dict[Slug, Parameter] = {}
    query: dict[Slug, Parameter] = {}
    body: bool = False
    safe: bool
    idempotent: bool
    pagination: PaginationStyle | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if template_names(self.path) != frozenset(self.path_params):
            raise ValueError("path and path_params must name the same variables")
        if self.safe and not self.idempotent:
            raise ValueError("a safe operation is idempotent")
        return self


class Word(_Part):
    """One word of a role's input, and what stands for it where it is not given.

    That is the integration's `setting`, or else `default`, a template over `event`. One that is not
    `required` and has neither is left out.
    """

    description: Sentence
    required: bool = False
    setting: Slug | None = None
    default: str | None = None


class Role(_Part):
    """How this provider does what is wanted of all of its category (`providers.roles`).

    `input` is that of the operation; a text in it that is `{word}` stands for a word's value.
    """

    operation: Slug
    words: dict[Slug, Word] = {}
    input: dict[str, Any] = {}


class FailureRule(_Part):
    """A kind of failure and the signs of it; every sign given must be seen.

    `header` is name and exact value, `field` the same of a JSON answer; `message` is a pattern
    searched for, without regard to case, in what the answer says of itself. Only a rule with a
    `field` makes a failure of an answer with a good status. `wait_s` is the wait when the answer
    names none (seconds).
    """

    kind: FailureKind
    status: tuple[int, ...] = ()
    header: tuple[HeaderName, str] | None = None
    header_present: HeaderName | None = None
    field: tuple[FieldName, Scalar] | None = None
    message: str | None = None
    wait_s: float | None = None

    @field_validator("message")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return value if value is None else _compiles(value)


class Failures(_Part):
    """What this provider's refusals mean where HTTP alone does not say; the first rule wins.

    `message` is the field of a JSON answer in which it says why, as a text, a list or a mapping of
    them; of several fields the first that says something counts.
    """

    rules: tuple[FailureRule, ...] = ()
    message: tuple[FieldName, ...] = ("message",)
    retry_after: tuple[RetryAfterSource, ...] = ("retry-after",)


class Signature(_Part):
    """How inbound webhooks are signed."""

    scheme: SignatureScheme


class OAuth2(_Part):
    """How accounts of this provider are authorised (RFC 6749), and where that differs from others.

    URLs are templates of the app's settings, which `config` describes. `account` is where an answer
    with tokens names the account, as a dotted path; `metadata` names what else is kept of it.
    """

    authorization_url: str
    token_url: str
    revocation_url: str = ""
    issuer: str = ""
    grants: tuple[Grant, ...] = ("authorization_code",)
    client_auth: Literal["basic", "post"] = "basic"
    scopes: tuple[str, ...] = ()
    scope_separator: Literal[" ", ","] = " "
    authorize_params: dict[str, str] = {}
    account: str = ""
    metadata: dict[Slug, str] = {}
    config: dict[Slug, Parameter] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for url in (self.authorization_url, self.token_url, self.revocation_url, self.issuer):
            unknown = template_names(url) - self.config.keys()
            if unknown:
                raise ValueError(f"oauth2.config does not describe {', '.join(sorted(unknown))}")
            if url and not url.startswith(("https://", "{")):
                raise ValueError("an oauth2 URL is https, or a setting's")
        return self

    def config_violations(self, config: Mapping[str, object]) -> tuple[Violation, ...]:
        """What is wrong with an app's settings; empty when they are good."""
        return violations(self.config, config)


class EventType(_Part):
    """Where a webhook says what it is about: a header, a body field, or both joined by a dot."""

    header: HeaderName | None = None
    body_field: BodyPath | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.header is None and self.body_field is None:
            raise ValueError("give header, body_field or both")
        return self

    def read(self, headers: Mapping[str, str], body: object) -> str | None:
        """The event type, such as `issues.opened`, or None; header names are lower-case.

        A body without the field leaves the header alone to say it (GitHub's `push`).
        """
        from_header = headers.get(self.header.lower()) if self.header else None
        if self.header and not from_header:
            return None
        named = at(body, self.body_field) if self.body_field else None
        words = [w for w in (from_header, named) if isinstance(w, str) and w]
        return ".".join(words) or None


class Challenge(_Part):
    """What this provider asks at set-up time to learn whether an url is ours.

    The answer is what `field` holds, as it is. It is asked in the `query` of a GET (Dropbox
    "Webhooks", Meta "Webhooks: Getting Started", W3C WebSub 5.3), or in the JSON `body` of a
    delivery, which proves itself as any other does (Slack "url_verification"). `when` names the
    fields that tell it from anything else, with their values; `token` the one that must hold the
    token of the url, which somebody has told the provider.
    """

    by: Literal["query", "body"]
    field: FieldName
    when: dict[FieldName, str] = {}
    token: FieldName | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.by == "body" and not self.when:
            raise ValueError("when must tell a challenge in a body from an event")
        if self.by == "body" and self.token:
            raise ValueError("a token is for what has no proof of its own: by query")
        return self

    def answer(self, asked: object) -> str | None:
        """What to say to those who ask this, or None where it is not this that they ask."""
        if not isinstance(asked, Mapping):
            return None
        if any(asked.get(name) != value for name, value in self.when.items()):
            return None
        said = asked.get(self.field)
        return said if isinstance(said, str) and _ECHOED.fullmatch(said) else None


class Webhook(_Part):
    """How this provider calls us.

    Without a `delivery_id_header` its deliveries are told apart by their bodies. `app` is there
    where it sends what happens in all accounts of an app to one address; each item of it says its
    `event_type` for itself.
    """

    signature: Signature
    delivery_id_header: HeaderName | None = None
    event_type: EventType
    content_types: tuple[str, ...] = ("application/json",)
    challenge: Challenge | None = None
    app: App | None = None

    def answer(self, by: Literal["query", "body"], asked: object) -> str | None:
        """What to say where this provider asks in this way whether an url is ours, or None."""
        challenge = self.challenge
        return challenge.answer(asked) if challenge and challenge.by == by else None


class Manifest(_Part):
    """All we know of one provider, as data."""

    provider: Slug
    display_name: Sentence
    category: Category
    docs: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]
    base_url: BaseUrl
    auth: tuple[AuthRule, ...]
    config: dict[Slug, Parameter] = {}
    headers: dict[HeaderName, str] = {}
    verify: Slug | None = None
    operations: dict[Slug, Operation] = {}
    roles: dict[RoleName, Role] = {}
    streams: dict[Slug, Stream] = {}
    failures: Failures = Failures()
    oauth2: OAuth2 | None = None
    webhook: Webhook | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        types = [rule.type for rule in self.auth]
        if not types or len(set(types)) != len(types):
            raise ValueError("auth: at least one rule, and one at most for each type")
        if bool(self.operations) != (self.verify in self.operations):
            raise ValueError("verify must name one of the operations")
        for rule in self.auth:
            setting = self.config.get(rule.header_setting) if rule.header_setting else None
            if rule.header_setting and (setting is None or setting.type != "string"):
                raise ValueError(f"auth: header_setting {rule.header_setting} is no string setting")
        for name, role in self.roles.items():
            if role.operation not in self.operations:
                raise ValueError(f"roles.{name}: {role.operation} is none of the operations")
            settings = {word.setting for word in role.words.values() if word.setting}
            if unknown := settings - self.config.keys():
                raise ValueError(f"roles.{name}: no setting is called {min(unknown)}")
        return self

    @model_validator(mode="after")
    def _streams_can_be_asked_for(self) -> Self:
        for name, stream in self.streams.items():
            operation = self.operations.get(stream.operation)
            if operation is None or not operation.safe:
                raise ValueError(f"streams.{name}: {stream.operation} is no safe operation")
            if stream.cursor and stream.cursor.query not in operation.query:
                raise ValueError(f"streams.{name}: {stream.cursor.query} is no query parameter")
            for fault in violations(operation.query, stream.query):
                raise ValueError(f"streams.{name}: query.{fault.field} {fault.description}")
        return self

    def auth_rule(self, credential_type: str) -> AuthRule | None:
        """The rule for a credential of this type (`none`: no credential), or None if refused.

        An OAuth 2.0 access token goes as a bearer token does (RFC 6750).
        """
        carried = CARRIED_AS.get(credential_type, credential_type)
        return next((rule for rule in self.auth if rule.type == carried), None)

    def config_violations(self, config: Mapping[str, object]) -> tuple[Violation, ...]:
        """What is wrong with an integration's settings; empty when they are good."""
        return violations(self.config, config)

    def config_with_defaults(self, config: Mapping[str, object]) -> dict[str, object]:
        """The settings as given, with this manifest's defaults where nothing was given."""
        return with_defaults(self.config, config)

    def base_url_problem(self, base_url: str | None) -> str | None:
        """What is wrong with an integration's base URL (None: not given), or None."""
        if base_url is None:
            return "is required by this provider" if self.base_url.required else None
        if not self.base_url.override:
            return "cannot be changed for this provider"
        return base_url_problem(base_url)


def violations(
    parameters: Mapping[str, Parameter], values: Mapping[str, object]
) -> tuple[Violation, ...]:
    """Every unknown, missing, wrongly typed or malformed value, without repeating any value."""
    unknown = [
        Violation(name, f"is not known here{did_you_mean(name, list(parameters))}")
        for name in values
        if name not in parameters
    ]
    missing = [
        Violation(name, "is required")
        for name, parameter in parameters.items()
        if parameter.required and name not in values
    ]
    wrong = [
        Violation(name, message)
        for name, value in values.items()
        if name in parameters and (message := parameters[name].problem(value))
    ]
    return (*unknown, *missing, *wrong)


def with_defaults(
    parameters: Mapping[str, Parameter], values: Mapping[str, object]
) -> dict[str, object]:
    """The values, with the default of each parameter that has one and was not given."""
    defaults = {n: p.default for n, p in parameters.items() if p.default is not None}
    return {**defaults, **values}
