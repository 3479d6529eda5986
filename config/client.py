"""The registry as the reconciler needs it: plan, apply, and wait until it is projected."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from tenon.registry.v1 import (
    config_service_pb2,
    config_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    wanted_pb2,
)

from services.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from services.chassis.status import from_rpc_error

LARGEST_CHUNK: Final = 2**20
LARGEST_SUBMISSION: Final = 16 * 2**20
"""Bytes of serialized resources. Source: config_service.proto."""
_FRAME: Final = 64
"""Bytes at most that a message's own fields add to the resources in it."""

TRIES: Final = 3
FIRST_PAUSE_S: Final = 0.2
POLL_S: Final = 0.2

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Submission:
    """What is wanted of one tenant, by whom (`source`) and from which commit."""

    tenant: str
    source: str
    resources: Sequence[wanted_pb2.Resource]
    commit: str = ""

    def header(self) -> config_service_pb2.ConfigHeader:
        """The header of a plan; an apply adds what it is bound to."""
        return config_service_pb2.ConfigHeader(
            tenant=self.tenant, source=self.source, commit=self.commit
        )


class RegistryClient:
    """Calls over a blocking channel. Every method raises TenonError, never an error of gRPC."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config_service_pb2_grpc.ConfigServiceStub(channel)
        self._tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._now = now

    def plan(self, wanted: Submission) -> config_service_pb2.Plan:
        """What an apply would do now; nothing is kept."""
        request = config_service_pb2.PlanConfigRequest
        parts = [request(chunk=chunk) for chunk in chunks(wanted.resources)]
        stream = [request(header=wanted.header()), *parts]
        return self._patiently(
            lambda: self._config.PlanConfig(iter(stream), timeout=self._timeout_s)
        )

    def apply(
        self, wanted: Submission, plan: config_service_pb2.Plan, request_id: str
    ) -> config_service_pb2.ApplyConfigResponse:
        """Do what `plan` says, or raise Aborted when that is no longer what would be done.

        The same `request_id` answers the same, so trying again is safe.
        """
        header = wanted.header()
        header.base_revision = plan.base_revision
        header.plan_hash = plan.plan_hash
        header.request_id = request_id
        request = config_service_pb2.ApplyConfigRequest
        parts = [request(chunk=chunk) for chunk in chunks(wanted.resources)]
        stream = [request(header=header), *parts]
        return self._patiently(
            lambda: self._config.ApplyConfig(iter(stream), timeout=self._timeout_s)
        )

    def delete(
        self, request: config_service_pb2.DeleteObjectRequest
    ) -> config_service_pb2.ApplyConfigResponse:
        """Delete one object or see what that would do; with a `request_id` trying again is safe."""
        return self._patiently(lambda: self._config.DeleteObject(request, timeout=self._timeout_s))

    def wait_projected(self, tenant: str, revision: int, timeout_s: float = 60.0) -> None:
        """Return once the executor works by `revision`; DeadlineExceeded after `timeout_s`."""
        request = tenant_service_pb2.GetTenantRequest(name=f"tenants/{tenant}")
        deadline = self._now() + timeout_s
        while True:
            answer = self._patiently(
                lambda: self._tenants.GetTenant(request, timeout=self._timeout_s)
            )
            if answer.projected_revision >= revision:
                return
            if self._now() >= deadline:
                raise DeadlineExceeded(
                    f"applied as revision {revision}, but the executor has not taken it up "
                    f"within {timeout_s:.0f} s: is it running?"
                )
            self._sleep(POLL_S)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """The answer of `call`, made again while the registry is away.

        The channel retries too, but only requests that fit its buffer.
        """
        for attempt in range(TRIES):
            try:
                return call()
            except grpc.RpcError as error:
                told = from_rpc_error(error)
            if not isinstance(told, Unavailable) or attempt == TRIES - 1:
                break
            self._sleep(FIRST_PAUSE_S * 2**attempt)
        raise told


def chunks(resources: Sequence[wanted_pb2.Resource]) -> Iterator[config_service_pb2.ConfigChunk]:
    """The resources in their order, in chunks of at most LARGEST_CHUNK bytes."""
    if sum(map(_size, resources)) > LARGEST_SUBMISSION:
        raise ResourceExhausted("what is wanted of this tenant is over 16 MiB in all")
    chunk, size = config_service_pb2.ConfigChunk(), _FRAME
    for resource in resources:
        if _FRAME + _size(resource) > LARGEST_CHUNK:
            place = f"{resource.origin.file}:{resource.origin.line}"
            raise ResourceExhausted(f"{place}: one document is over 1 MiB when sent")
        if size + _size(resource) > LARGEST_CHUNK:
            yield chunk
            chunk, size = config_service_pb2.ConfigChunk(), _FRAME
        chunk.resources.append(resource)
        size += _size(resource)
    if chunk.resources:
        yield chunk


def _size(resource: wanted_pb2.Resource) -> int:
    """Bytes in a chunk: the resource, its tag and its length."""
    return resource.ByteSize() + 6
