"""kill -9 of the registry anywhere in the last approval: applied whole and once, or still waiting."""

import asyncio
from collections.abc import Iterator
from typing import Final
from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import config_service_pb2 as pb2
from tenon.registry.v1 import config_service_pb2_grpc, wanted_pb2

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from tests.family import Family
from tests.faults.points import points, thinned

pytestmark = pytest.mark.faults

POINTS: Final = points("approve")
COMMITTED: Final = {"approve.after_commit"}
CALL_S: Final = 30.0


class Approving:
    """A tenant whose change waits, and somebody who may approve it."""

    def __init__(self, family: Family, tenant: str) -> None:
        self._family = family
        self._tenant = tenant
        self._author = Secret(family.deployment.owner_key.read_text())
        self._approver = asyncio.run(family.new_key("SUPER_ADMIN"))
        self._apply(self._document("tenant", tenant), self._policy())
        changed = self._document("credential", "token", type="bearer")
        changed.credential.values["token"].plain = b"waits-for-approval"
        self.pending = self._apply(changed).pending.name

    def approve(self, request_id: str) -> pb2.PendingRevision:
        request = pb2.ApproveRevisionRequest(name=self.pending, request_id=request_id)
        with open_sync_channel(
            self._family.registry, key=self._approver, reason="a test"
        ) as channel:
            stub = config_service_pb2_grpc.ConfigServiceStub(channel)
            return stub.ApproveRevision(request, timeout=CALL_S)

    def state(self) -> tuple[object, ...]:
        """How it stands: the revision, what is sealed, the approvals, and what was told."""
        tenant = self._family.tenant_id(self._tenant)
        queries = (
            "SELECT revision FROM registry.tenants WHERE tenant_id = %s",
            (
                "SELECT state, wrapped_key IS NOT NULL, sealed IS NOT NULL"
                " FROM registry.pending_revisions WHERE tenant_id = %s"
            ),
            "SELECT count(*) FROM registry.pending_approvals WHERE tenant_id = %s",
            "SELECT count(*) FROM registry.credential_versions WHERE tenant_id = %s",
            "SELECT count(*) FROM registry.audit_events WHERE tenant_id = %s",
            "SELECT count(*) FROM registry.request_answers WHERE tenant_id = %s",
        )
        return tuple(self._family.rows(query, tenant)[0] for query in queries)

    def _apply(self, *resources: wanted_pb2.Resource) -> pb2.ApplyConfigResponse:
        parts = [
            pb2.ApplyConfigRequest(header=pb2.ConfigHeader(tenant=self._tenant)),
            pb2.ApplyConfigRequest(chunk=pb2.ConfigChunk(resources=resources)),
        ]
        with open_sync_channel(self._family.registry, key=self._author, reason="a test") as channel:
            stub = config_service_pb2_grpc.ConfigServiceStub(channel)
            return stub.ApplyConfig(iter(parts), timeout=CALL_S)

    def _policy(self) -> wanted_pb2.Resource:
        return self._document("review_policy", "four-eyes", min_risk="MEDIUM")

    @staticmethod
    def _document(kind: str, name: str, **spec: object) -> wanted_pb2.Resource:
        return ParseDict({"metadata": {"name": name}, kind: spec}, wanted_pb2.Resource())


@pytest.fixture
def again(family: Family) -> Iterator[None]:
    """Leaves a registry that nothing kills."""
    yield
    family.restart("registry")


@pytest.mark.parametrize("point", thinned(POINTS))
@pytest.mark.usefixtures("again")
def test_killed_approval_is_whole_or_absent_and_applies_once(family: Family, point: str) -> None:
    approving = Approving(family, point.replace(".", "-").replace("_", "-"))
    request_id, before = str(uuid4()), approving.state()
    assert before[:4] == ((1,), ("pending", True, True), (0,), (0,))
    family.restart("registry", f"{point}=kill")
    with pytest.raises(grpc.RpcError) as lost:
        approving.approve(request_id)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    family.await_killed("registry")
    whole = ((2,), ("applied", False, False), (1,), (1,))
    assert approving.state()[:4] == (whole if point in COMMITTED else before[:4])
    if point not in COMMITTED:
        assert approving.state() == before

    family.start("registry")
    answer = approving.approve(request_id)
    assert (answer.state, answer.revision) == (pb2.PendingRevision.STATE_APPLIED, 2)
    after = approving.state()
    assert after[:4] == whole
    assert approving.approve(request_id) == answer
    assert approving.state() == after
