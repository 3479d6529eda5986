"""The executor proves who it is by a certificate or a renewed token, and passes its callers' on."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import psycopg
import pytest
from cryptography import x509
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as stubs

from services.chassis.channel import ClientCertificate, TokenFile, open_channel
from services.chassis.errors import Unauthenticated, Unavailable
from services.chassis.interceptors import Gates
from services.chassis.process import background
from services.chassis.secret import Secret
from services.chassis.server import Listen, serving
from services.chassis.settings import SettingsError
from services.executor.main import _channel
from services.executor.registry.client import Registry
from services.executor.settings import Settings
from services.registry.access.control import MTLS, AccessControl
from services.registry.access.issuers import Issuer
from services.registry.access.jwks import Keys
from services.registry.access.tokens import Tokens
from services.registry.feed import Feed
from services.registry.store.tenants import Tenants
from tests.certificates import HERE, Authority
from tests.integration.executor.running_registry import RunningRegistry, document
from tests.integration.executor.test_main import _ended, environment, executor
from tests.tokens import AUDIENCE, ISSUER, TokenIssuer
from tests.wiring import wired

__all__ = ["_ended", "environment"]

EXECUTOR = "spiffe://acme/executor"
ROBOT = "spiffe://acme/robot"
ISSUED = TokenIssuer()
IN_ACME = pb.ListExecutionsRequest(parent="tenants/acme")

Admin = psycopg.AsyncConnection[object]


async def fetch() -> bytes:
    return ISSUED.published()


@asynccontextmanager
async def replica(
    service: RunningRegistry, listen: Listen, tokens: Tokens | None = None
) -> AsyncIterator[str]:
    """Another registry on the same tables; where it listens."""
    database = service._database
    access = AccessControl(database, service._pepper, tokens=tokens)
    tenants = Tenants(database)
    gates = Gates(access, tenants).in_order()
    wiring = wired(database, access, tenants, Feed(database), service._settings)
    async with (
        wiring as (_, found),
        background(access.invalidations.listen()),
        serving(found.services, gates, listen, grace_s=0.1) as port,
    ):
        yield f"127.0.0.1:{port}"


async def introduce(admin: Admin, issuer: str, subject: str) -> None:
    """Make an identity the executor's."""
    principal_id = uuid4()
    await admin.execute(
        "INSERT INTO registry.principals (principal_id, kind, issuer, subject, display_name)"
        " VALUES (%s, 'service', %s, %s, 'executor')",
        [principal_id, issuer, subject],
    )
    await admin.execute(
        "INSERT INTO registry.platform_grants (principal_id, role) VALUES (%s, 'EXECUTOR')",
        [principal_id],
    )


async def bind(admin: Admin, tenant: str, issuer: str, subject: str) -> None:
    await admin.execute(
        "INSERT INTO registry.role_bindings (tenant_id, binding_id, name, labels, annotations,"
        " revision, role, principal_kind, issuer, subject, kinds, sources)"
        " SELECT tenant_id, gen_random_uuid(), 'robot', '{}', '{}', 1, 'VIEWER', 'service', %s, %s,"
        " '{}', '{*}' FROM registry.tenants WHERE slug = %s",
        [issuer, subject, tenant],
    )


def own(pair: Sequence[Path]) -> ClientCertificate:
    return ClientCertificate(pair[0], pair[1])


def named(uri: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(uri)]


async def test_certificates_say_who_the_executor_is_and_who_calls_it(
    registry_service: RunningRegistry, environment: dict[str, str], admin: Admin, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls")
    server = authority.issue("server", HERE)
    ours = authority.issue("executor", named(EXECUTOR))
    await introduce(admin, MTLS, EXECUTOR)
    await registry_service.apply("acme", document("Tenant", "acme", display_name="Acme"))
    await bind(admin, "acme", MTLS, ROBOT)
    listen = Listen("127.0.0.1:0", *server, client_ca=authority.certificate)
    async with replica(registry_service, listen) as target:
        told = {
            "REGISTRY": target,
            "REGISTRY_CA": str(authority.certificate),
            "CLIENT_CERTIFICATE": str(ours[0]),
            "CLIENT_KEY": str(ours[1]),
            "CERTIFICATE": str(server[0]),
            "PRIVATE_KEY": str(server[1]),
            "CLIENT_CA": str(authority.certificate),
        }
        environment.pop("TENON_EXECUTOR_SERVICE_KEY_FILE")
        environment |= {f"TENON_EXECUTOR_{name}": value for name, value in told.items()}
        process = await executor(environment)
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        robot = own(authority.issue("robot", named(ROBOT)))
        stranger = own(authority.issue("stranger", named("spiffe://acme/stranger")))
        for certificate, code in (
            (robot, grpc.StatusCode.OK),
            (stranger, grpc.StatusCode.UNAUTHENTICATED),
        ):
            async with open_channel(
                f"127.0.0.1:{ready['grpc']}",
                ca_file=authority.certificate,
                certificate=certificate,
            ) as channel:
                stub: stubs.ExecutionServiceAsyncStub = stubs.ExecutionServiceStub(channel)
                call = stub.ListExecutions(IN_ACME, timeout=10)
                assert await call.code() is code, await call.details()


async def test_a_renewed_token_says_who_the_executor_is(
    registry_service: RunningRegistry, admin: Admin, tmp_path: Path
) -> None:
    await introduce(admin, ISSUER, "system:serviceaccount:tenon:executor")
    issuer = Issuer.model_construct(issuer=ISSUER, audience=AUDIENCE, jwks="", kind="service")
    tokens = Tokens([(issuer, Keys(ISSUER, fetch))])
    path = tmp_path / "token"
    path.write_text("not yet one")
    async with (
        replica(registry_service, Listen("127.0.0.1:0"), tokens) as target,
        open_channel(target, key=TokenFile(path)) as channel,
    ):
        client = Registry(channel)
        key = registry_service.owner_key.reveal_text()
        with pytest.raises(Unavailable):
            await client.authenticate(key)
        path.write_text(ISSUED.token("system:serviceaccount:tenon:executor"))
        assert (await client.authenticate(key)).kind == "user"
        with pytest.raises(Unauthenticated):
            await client.recognise(ROBOT)


def settings(**identity: object) -> Settings:
    return Settings(Secret("x"), Secret("x"), **identity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "identity",
    [
        {},
        {"service_key": Secret("k"), "service_token_file": Path("t")},
        {"service_key": Secret("k"), "client_certificate": Path("c"), "client_key": Path("k")},
        {"client_certificate": Path("c")},
        {"service_key": Secret("k"), "client_key": Path("k")},
    ],
)
def test_there_is_exactly_one_way_to_say_it(identity: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="exactly one of TENON_EXECUTOR_SERVICE_KEY"):
        _channel(settings(**identity))


def test_a_certificate_is_not_shown_on_a_clear_channel() -> None:
    with pytest.raises(SettingsError, match="TENON_EXECUTOR_REGISTRY_CA"):
        _channel(settings(client_certificate=Path("c"), client_key=Path("k")))
