"""Credentials and leased keys of the registry, remembered for as long as it lets us."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

import grpc
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc as pb2_grpc

from services.chassis.cache import Cache, Clock, Keeping
from services.chassis.endpoint_limits import parse_only
from services.chassis.envelope import Unsealable
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.invalidation import Invalidation
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.executor.registry.calls import CALL_S, asked
from services.executor.registry.credentials import LeasedKey, Resolved
from services.executor.registry.uses import Use, Used, Uses

log = logging.getLogger(__name__)

REFRESH_S: Final = 60.0
"""The registry asks the provider meanwhile, and may have to wait for another that does."""
KEEPING: Final = Keeping(fresh_s=300, stale_s=900)
REFRESHES: Final = Keeping(fresh_s=1, stale_s=1)
"""Many calls are refused at once when a token ends: they ask for another one together."""
GONE: Final = frozenset({NotFound.reason, "KEY_SHREDDED"})
"""The registry's reasons where a data key does not open anything any more."""


class RegistrySecrets:
    """Asks for them over the channel, and says there how they were used.

    `kept` is how long at most stays here what is sealed; it is told once where that is longer than
    a replaced key opens it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        uses: Uses,
        clock: Clock = time.monotonic,
        kept: timedelta = timedelta(0),
    ) -> None:
        self._credentials: pb2_grpc.CredentialServiceAsyncStub = pb2_grpc.CredentialServiceStub(
            channel
        )
        self._uses = uses
        self._resolved: Cache[tuple[UUID, str, int], Resolved] = Cache(KEEPING, clock)
        self._refreshed: Cache[tuple[UUID, str, int], None] = Cache(REFRESHES, clock)
        # The version that was refreshed, until the one after it is resolved.
        self._past: dict[tuple[UUID, str], int] = {}
        self._keys: Cache[tuple[UUID, UUID | None], LeasedKey] = Cache(KEEPING, clock)
        self._kept = kept
        self._warned = False

    async def resolve(self, tenant_id: UUID, name: str, version: int) -> Resolved:
        """The values of a credential; `version` is the projected one: a new one is asked anew."""
        return await self._resolved.get(
            (tenant_id, name, version), partial(self._resolve, tenant_id, name)
        )

    async def refresh(self, tenant_id: UUID, name: str, version: int) -> None:
        """Have newer tokens fetched than those of a version, unless there are some; then forget it.

        Raises FailedPrecondition where there can be none, Unavailable where there are none for now.
        """
        which = (tenant_id, name, version)
        await self._refreshed.get(which, partial(self._refresh, *which))

    async def lease_key(self, tenant_id: UUID, data_key_id: UUID | None = None) -> LeasedKey:
        """The tenant's key for sealing what stays here, or the one that something was sealed with.

        Raises Unsealable where that one is gone for good.
        """
        current = await self._leased(tenant_id, None)
        if data_key_id in {None, current.data_key_id}:
            return current
        return await self._leased(tenant_id, data_key_id)

    async def report(self, used: Used) -> None:
        """Hand on how a tenant's credentials and keys were used."""
        request = pb2.ReportCredentialUseRequest(parent=f"tenants/{used.tenant_id}")
        for (credential_id, hour), use in used.uses.items():
            request.uses.append(_row(credential_id, hour, use))
        for key_id, seals in used.seals.items():
            request.seals[str(key_id)] = seals
        await asked(self._credentials.ReportCredentialUse(request, timeout=CALL_S))

    def forget(self, told: Invalidation) -> None:
        """Drop the credentials it concerns, and a tenant's keys."""
        concerned, tenant_id = told.secrets(), told.tenant_id
        self._resolved.drop(lambda key, _: concerned(key[0], key[1]))
        if told.what in {"tenant", "everything"}:
            self._keys.drop(lambda key, _: tenant_id in {None, key[0]})

    async def _resolve(self, tenant_id: UUID, name: str) -> tuple[Resolved, float]:
        place = (tenant_id, name)
        request = pb2.ResolveCredentialRequest(
            name=_path(tenant_id, name), newer_than=self._past.get(place, 0)
        )
        answer = await asked(self._credentials.ResolveCredential(request, timeout=CALL_S))
        if answer.version > self._past.get(place, answer.version):
            del self._past[place]
        found = Resolved(
            credential_id=UUID(answer.uid),
            type=answer.type,
            version=answer.version,
            values=_remembered(answer.values),
            previous=tuple(_remembered(each.values) for each in answer.previous),
            only=parse_only(answer.allowed_endpoints, answer.allowed_ranges),
        )
        return found, answer.ttl.ToTimedelta().total_seconds()

    async def _refresh(self, tenant_id: UUID, name: str, version: int) -> tuple[None, float]:
        request = pb2.RefreshCredentialRequest(name=_path(tenant_id, name), version=version)
        await asked(self._credentials.RefreshCredential(request, timeout=REFRESH_S))
        self._past[tenant_id, name] = version
        self._resolved.drop(lambda key, _: key[:2] == (tenant_id, name))
        return None, REFRESHES.fresh_s

    async def _leased(self, tenant_id: UUID, data_key_id: UUID | None) -> LeasedKey:
        which = (tenant_id, data_key_id)
        return await self._keys.get(which, partial(self._lease, *which))

    async def _lease(self, tenant_id: UUID, data_key_id: UUID | None) -> tuple[LeasedKey, float]:
        named = str(data_key_id or "")
        request = pb2.LeaseKeyRequest(name=f"tenants/{tenant_id}", data_key_uid=named)
        try:
            answer = await asked(self._credentials.LeaseKey(request, timeout=CALL_S))
        except (NotFound, FailedPrecondition) as error:
            if data_key_id is not None and error.code in GONE:
                raise Unsealable from None
            raise
        self._compare(answer)
        key_id = UUID(answer.data_key_uid)
        count = partial(self._uses.note_seal, tenant_id, key_id)
        leased = LeasedKey(key_id, remember(Secret(answer.key)), count)
        return leased, answer.ttl.ToTimedelta().total_seconds()

    def _compare(self, answer: pb2.LeaseKeyResponse) -> None:
        """Warn an operator, once, before what is kept is past opening."""
        opens = answer.retired_ttl.ToTimedelta()
        if self._warned or not answer.HasField("retired_ttl") or self._kept <= opens:
            return
        self._warned = True
        log.warning(
            "what is sealed here is kept for up to %d days, but opens for %d days only once its key"
            " was replaced: raise TENON_REGISTRY_RETIRED_KEY_DAYS, or lower"
            " TENON_EXECUTOR_RETENTION_DAYS",
            self._kept.days,
            opens.days,
        )


def _path(tenant_id: UUID, name: str) -> str:
    return f"tenants/{tenant_id}/credentials/{name}"


def _remembered(values: Mapping[str, bytes]) -> dict[str, Secret]:
    return {part: remember(Secret(value)) for part, value in values.items()}


def _row(credential_id: UUID, hour: int, use: Use) -> pb2.CredentialUse:
    row = pb2.CredentialUse(
        uid=str(credential_id),
        version=use.version,
        uses=use.uses,
        errors=use.errors,
        rate_limit=use.rate_limit,
    )
    row.bucket_time.FromSeconds(hour)
    times = {
        "last_use_time": use.last_use,
        "last_success_time": use.last_success,
        "last_refusal_time": use.last_refusal,
    }
    for name, at in times.items():
        if at is not None:
            getattr(row, name).FromNanoseconds(int(at * 1e9))
    return row
