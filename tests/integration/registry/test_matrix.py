"""Every RPC of both services × every role × every state of tenant and credential.

What must come out is worked out here from the method's rule and the seeded roles alone; a last gate
takes the place of the use cases and says who got through.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis import errors
from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.interceptors import Authenticator, Call, Gates, TenantFinder
from services.chassis.rules import Rule, rule_of
from services.chassis.secret import Secret
from services.chassis.server import Listen, Service, serving
from services.chassis.status import from_rpc_error
from services.executor.registry.client import Registry as RegistryClient
from services.executor.store import tenants as projected
from services.registry.access.control import add_principal
from services.registry.store.tenants import Tenants
from tests.contracts import CONTRACTS, METHODS
from tests.granted import GRANTED, NEEDS_REASON
from tests.grants import grant
from tests.integration.registry.callers import Caller, Registry
from tests.integration.registry.documents import acme

Rows = psycopg.AsyncConnection[Any]

PASSED: Final = "PASSED"
OWN_ROLE: Final = ("lane-keeper", ("lanes.read", "lanes.pause"))
TENANTS: Final = ("acme", "globex", "asleep", "leaving", "gone")
MEMBER_OF: Final = ("acme", "asleep", "leaving", "gone")
"""`globex` is another's; `asleep` is disabled, `leaving` is draining, `gone` is purged."""
NOWHERE: Final = "nowhere"


@dataclass(frozen=True)
class Holder:
    """Whoever calls: what they hold where, and with what they call."""

    label: str
    role: str = ""
    platform: bool = False
    kind: str = "user"
    scopes: tuple[str, ...] = ("*",)
    ranges: tuple[str, ...] = ()
    expired: bool = False
    revoked: bool = False
    disabled: bool = False
    credential: bool = True
    reason: str = "a test"

    @property
    def holds(self) -> frozenset[str]:
        """The permissions of its role, as far as its key reaches."""
        held = frozenset(dict([OWN_ROLE]).get(self.role) or GRANTED.get(self.role, ()))
        return held if "*" in self.scopes else held & frozenset(self.scopes)

    @property
    def known(self) -> bool:
        """Whether its credential holds, from here."""
        bad = self.expired or self.revoked or self.disabled or bool(self.ranges)
        return self.credential and not bad


def _holders() -> Iterator[Holder]:
    for role in ("VIEWER", "MANAGER", "ADMIN", OWN_ROLE[0]):
        yield Holder(f"{role} of a tenant", role)
        yield Holder(f"{role} of a tenant, a service", role, kind="service")
    for role in GRANTED:
        for kind in ("user", "service"):
            yield Holder(f"{role} of the platform, a {kind}", role, platform=True, kind=kind)
    yield Holder("nobody anywhere")
    admin, owner = Holder("", "ADMIN"), Holder("", "SUPER_ADMIN", platform=True)
    for who, one in (("a tenant's admin", admin), ("the owner", owner)):
        yield replace(one, label=f"{who} with no credential", credential=False)
        yield replace(one, label=f"{who} with an expired key", expired=True)
        yield replace(one, label=f"{who} with a revoked key", revoked=True)
        yield replace(one, label=f"{who}, who is disabled", disabled=True)
        yield replace(one, label=f"{who} with a key without scopes", scopes=("tenants.read",))
        yield replace(one, label=f"{who} with another scope", scopes=("lanes.read",))
        yield replace(one, label=f"{who} from a wrong address", ranges=("192.0.2.0/24",))
    yield replace(owner, label="the owner without a reason", reason="")


HOLDERS: Final = tuple(_holders())
STATE_OF: Final = {"asleep": "disabled", "leaving": "draining"}


def expected(rule: Rule, holder: Holder, tenant: str) -> str:
    """The answer's code (or reason) that the rule wants."""
    if not holder.known:
        return "UNAUTHENTICATED"
    if rule.principal_kinds and holder.kind not in rule.principal_kinds:
        return "PERMISSION_DENIED"
    if rule.any_caller:
        return PASSED
    allowed = rule.permission in holder.holds
    if not rule.tenant_field or not tenant:
        if rule.tenant_field and not rule.tenant_optional:
            return "INVALID_ARGUMENT"
        return PASSED if holder.platform and allowed else "PERMISSION_DENIED"
    member = not holder.platform and tenant in MEMBER_OF and tenant != "gone"
    if not allowed or not (holder.platform or member):
        return "PERMISSION_DENIED"
    if tenant == NOWHERE or (tenant == "gone" and not rule.when_purged):
        return PASSED  # the use case says that it is not there
    if tenant in STATE_OF and not rule.when_disabled:
        return "TENANT_DISABLED"
    if holder.role in NEEDS_REASON and not holder.reason:
        return "REASON_REQUIRED"
    return PASSED


class Anything:
    """Keeps every contract: nobody gets as far as it."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method that is never called."""
        return lambda *_: None


async def _through(_: Call) -> None:
    raise errors.Aborted("through", reason=PASSED)


@asynccontextmanager
async def matrix_server(
    service: str, authenticator: Authenticator, tenants: TenantFinder
) -> AsyncIterator[str]:
    """The service's contract behind its gates, and nothing behind those."""
    services = [
        Service(contract, Anything())
        for file in CONTRACTS[service]
        for contract in file.services_by_name.values()
    ]
    gates = [*Gates(authenticator, tenants).in_order(), _through]
    async with serving(services, gates, Listen("127.0.0.1:0"), grace_s=0.1) as port:
        yield f"127.0.0.1:{port}"


@dataclass
class Matrix:
    """Both servers, and a key for every holder."""

    targets: Mapping[str, str]
    keys: dict[str, Secret | None] = field(default_factory=dict)


@pytest.fixture
async def matrix(
    registry: Registry, owner: Caller, rows: Rows, executor_database: Database
) -> AsyncIterator[Matrix]:
    for slug in TENANTS:
        await owner.apply(slug, acme(slug))
    await rows.execute(MAKE_ROLE, [OWN_ROLE[0], list(OWN_ROLE[1])])
    keys = {holder.label: await _key(registry, rows, holder) for holder in HOLDERS}
    await rows.execute(PROJECT)
    for statement in STATES:
        await rows.execute(statement)
    service = Holder("the executor", "EXECUTOR", platform=True, kind="service")
    async with open_channel(registry.target, key=await _key(registry, rows, service)) as channel:
        finder = projected.finder(executor_database)
        async with (
            matrix_server("registry", registry.access, Tenants(registry.database)) as first,
            matrix_server("executor", RegistryClient(channel), finder) as second,
        ):
            yield Matrix({"registry": first, "executor": second}, keys)


async def _key(registry: Registry, rows: Rows, holder: Holder) -> Secret | None:
    if not holder.credential:
        return None
    platform = holder.role if holder.platform else None
    async with registry.database.system() as transaction:
        principal = await add_principal(transaction, holder.kind, holder.label, platform)
        until = datetime.now(UTC) - timedelta(seconds=1) if holder.expired else None
        key = await registry.access.issue(
            transaction, "test", principal, "test", holder.scopes, until, holder.ranges
        )
    if holder.role and not holder.platform:
        for slug in MEMBER_OF:
            tenant_id = await registry.tenant_id(slug)
            await grant(registry.database, tenant_id, holder.kind, principal, holder.role)
    if holder.revoked:
        await rows.execute(REVOKE, [principal])
    if holder.disabled:
        await rows.execute(DISABLE, [principal])
    return key


REVOKE: Final = "UPDATE registry.api_keys SET revoked_at = now() WHERE principal_id = %s"
DISABLE: Final = "UPDATE registry.principals SET disabled_at = now() WHERE principal_id = %s"
MAKE_ROLE: Final = """
    INSERT INTO registry.tenant_roles
        (tenant_id, role_id, name, labels, annotations, revision, description, permissions)
    SELECT tenant_id, gen_random_uuid(), %s, '{}', '{}', 1, '', %s FROM registry.tenants"""
STATES: Final = (
    "UPDATE registry.tenants SET enabled = false WHERE slug = 'asleep'",
    "UPDATE registry.tenants SET state = 'draining' WHERE slug = 'leaving'",
    "UPDATE registry.tenants SET state = 'purged' WHERE slug = 'gone'",
    "UPDATE executor.tenants SET enabled = false WHERE slug = 'asleep'",
    "UPDATE executor.tenants SET enabled = false WHERE slug = 'leaving'",
    "DELETE FROM executor.tenants WHERE slug = 'gone'",
)
PROJECT: Final = """
    INSERT INTO executor.tenants (tenant_id, slug, enabled, revision)
    SELECT tenant_id, slug, true, 1 FROM registry.tenants"""


async def ask(channel: grpc.aio.Channel, method: MethodDescriptor, tenant: str) -> str:
    """What a call answers: its reason, or its code where there is none."""
    ways = ("stream" if m else "unary" for m in (method.client_streaming, method.server_streaming))
    call = getattr(channel, "_".join(ways))(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = _request(method, tenant)
    try:
        answer = call(iter([request]) if method.client_streaming else request, timeout=20)
        await (anext(aiter(answer)) if method.server_streaming else answer)
    except grpc.aio.AioRpcError as error:
        told = from_rpc_error(error).code
        return told if told in TOLD else error.code().name
    raise AssertionError(f"{method.full_name} was answered by nobody")


TOLD: Final = {PASSED, "TENANT_DISABLED", "REASON_REQUIRED"}


def _request(method: MethodDescriptor, tenant: str) -> Message:
    request = GetMessageClass(method.input_type)()
    path = rule_of(method).tenant_field.split(".")
    if path != [""] and tenant:
        inner: Any = request
        for part in path[:-1]:
            inner = getattr(inner, part)
        setattr(inner, path[-1], f"tenants/{tenant}/things/one")
    return request


async def _wrong(matrix: Matrix, holder: Holder) -> list[str]:
    """Where a holder is not answered as the rules want."""
    found = []
    for service, method in METHODS:
        rule = rule_of(method)
        tenants = (*TENANTS, NOWHERE, "") if rule.tenant_field else ("",)
        key = matrix.keys[holder.label]
        async with open_channel(matrix.targets[service], key=key, reason=holder.reason) as channel:
            answers = await asyncio.gather(*(ask(channel, method, each) for each in tenants))
        for tenant, answer in zip(tenants, answers, strict=True):
            wanted = expected(rule, holder, tenant)
            if answer != wanted:
                found.append(f"{holder.label}, {rule.method}, {tenant}: {answer}, not {wanted}")
    return found


async def test_every_call_is_answered_as_its_rule_wants(matrix: Matrix) -> None:
    wrong = [line for holder in HOLDERS for line in await _wrong(matrix, holder)]
    assert wrong == []


def test_the_matrix_tells_every_answer() -> None:
    """A matrix in which an answer never occurs would prove nothing about it."""
    told = {
        expected(rule_of(method), holder, tenant)
        for _, method in METHODS
        for holder in HOLDERS
        for tenant in (*TENANTS, NOWHERE, "")
    }
    assert told == {
        *TOLD,
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "INVALID_ARGUMENT",
    }
