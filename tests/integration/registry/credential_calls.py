"""What the tests of credentials say to a registry, and what they look for behind it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import grpc
import psycopg
from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis.status import from_rpc_error
from services.registry.credentials.attention import LEADER, Attention
from tests.integration.registry.callers import Caller, Registry

Rows = psycopg.AsyncConnection[tuple[Any, ...]]
Values = Mapping[str, bytes]
ACME: Final = "tenants/acme"
FORGET: Final = """NOTIFY registry_access, '{"everything": ""}'"""
HOUR: Final = timedelta(hours=1)


def secret(name: str, kind: str = "bearer", /, **spec: Any) -> wanted_pb2.Resource:
    """A Credential document; `values` are bytes by part."""
    values: Values = spec.pop("values", {})
    document = {"metadata": {"name": name}, "credential": {"type": kind, **spec}}
    resource = ParseDict(document, wanted_pb2.Resource())
    for part, value in values.items():
        resource.credential.values[part].plain = value
    return resource


def named(name: str, tenant: str = "acme") -> str:
    """A credential's name in the contract."""
    return f"tenants/{tenant}/credentials/{name}"


async def resolve(
    executor: Caller, name: str = "token", tenant: str = "acme"
) -> pb2.ResolveCredentialResponse:
    request = pb2.ResolveCredentialRequest(name=named(name, tenant))
    return await executor.credentials.ResolveCredential(request, timeout=5)


async def get(who: Caller, name: str = "token") -> pb2.Credential:
    return await who.credentials.GetCredential(pb2.GetCredentialRequest(name=named(name)))


async def put(
    who: Caller, name: str, spec: wanted_pb2.CredentialSpec, **more: Any
) -> pb2.Credential:
    request = pb2.PutCredentialRequest(name=named(name), spec=spec, **more)
    return await who.credentials.PutCredential(request, timeout=5)


async def rotate(
    who: Caller,
    name: str = "token",
    /,
    values: Values | None = None,
    overlap: timedelta | None = None,
    request_id: str = "",
) -> pb2.RotateCredentialResponse:
    request = pb2.RotateCredentialRequest(name=named(name), request_id=request_id)
    for part, value in (values or {}).items():
        request.values[part].plain = value
    if overlap is not None:
        request.overlap.FromTimedelta(overlap)
    return await who.credentials.RotateCredential(request, timeout=5)


async def reveal(who: Caller, name: str) -> pb2.RevealCredentialResponse:
    return await who.credentials.RevealCredential(pb2.RevealCredentialRequest(name=named(name)))


async def revoke(who: Caller, name: str = "token", **more: Any) -> pb2.Credential:
    request = pb2.RevokeCredentialRequest(name=named(name), **more)
    return await who.credentials.RevokeCredential(request, timeout=5)


async def shred(who: Caller, name: str, version: int) -> pb2.Credential:
    request = pb2.ShredCredentialVersionRequest(name=named(name), version=version)
    return await who.credentials.ShredCredentialVersion(request, timeout=5)


async def delete(who: Caller, name: str) -> None:
    request = config_pb2.DeleteObjectRequest(name=named(name), force=True)
    await who.config.DeleteObject(request, timeout=5)


@dataclass
class Reported:
    """One credential's use, as the executor would tell it; moments are ages before now."""

    uid: str
    version: int = 1
    uses: int = 1
    errors: int = 0
    used: timedelta = timedelta(0)
    succeeded: timedelta | None = None
    refused: timedelta | None = None
    rate_limit: Mapping[str, str] | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def message(self) -> pb2.CredentialUse:
        now = self.now
        use = pb2.CredentialUse(
            uid=self.uid,
            version=self.version,
            uses=self.uses,
            errors=self.errors,
            rate_limit=self.rate_limit or {},
        )
        used = now - self.used
        use.bucket_time.FromDatetime(used.replace(minute=0, second=0, microsecond=0))
        use.last_use_time.FromDatetime(used)
        if self.succeeded is not None:
            use.last_success_time.FromDatetime(now - self.succeeded)
        if self.refused is not None:
            use.last_refusal_time.FromDatetime(now - self.refused)
        return use


async def report(executor: Caller, *uses: Reported, seals: Mapping[str, int] | None = None) -> None:
    request = pb2.ReportCredentialUseRequest(
        parent=ACME, uses=[use.message() for use in uses], seals=seals or {}
    )
    await executor.credentials.ReportCredentialUse(request, timeout=5)


def attention(registry: Registry) -> Attention:
    """What looks after credentials, as the registry's main wires it."""
    follow: Any = registry.wired.loops[LEADER]
    found = follow.__self__
    assert isinstance(found, Attention)
    return found


async def events(rows: Rows, *columns: str, kind: str = "Credential") -> list[tuple[Any, ...]]:
    """These columns of what the audit log tells of credentials, the oldest first."""
    query = f"SELECT {', '.join(columns)} FROM registry.audit_events WHERE kind = %s ORDER BY seq"
    return await (await rows.execute(query.encode(), [kind])).fetchall()


async def notices(rows: Rows) -> int:
    """How many notices stand in the feed."""
    query = "SELECT count(*) FROM registry.feed WHERE kind = 'notice'"
    ((count,),) = await (await rows.execute(query)).fetchall()
    return int(count)


async def until(look: Callable[[], Awaitable[bool]], within_s: float = 5.0) -> float:
    """Wait until it is so; the seconds that took."""
    begun = time.monotonic()
    while not await look():
        assert time.monotonic() < begun + within_s, "it did not come"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def version_of(
    executor: Caller, version: int, name: str = "token"
) -> pb2.ResolveCredentialResponse:
    """What is resolved once this version is: another process may hear of it a little later."""
    found: list[pb2.ResolveCredentialResponse] = []

    async def come() -> bool:
        with suppress(grpc.aio.AioRpcError):
            found[:] = [await resolve(executor, name)]
        return bool(found) and found[0].version == version

    await until(come)
    return found[0]


async def code_of(call: Awaitable[object]) -> str:
    """Why a call was refused; empty where it was not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).code
    return ""


def request_id() -> str:
    return str(uuid4())
