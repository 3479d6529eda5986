"""kill -9 of the registry anywhere in an apply: all of it or nothing, and one answer a request_id."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import grpc
import pytest
from tenon.registry.v1 import config_service_pb2 as pb2
from tenon.registry.v1 import config_service_pb2_grpc, wanted_pb2

from config.reading import read
from config.resolve import resolve_secrets
from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from tests.family import Family
from tests.faults.points import points, thinned

pytestmark = pytest.mark.faults

Rows = dict[str, list[str]]
Difference = dict[str, tuple[int, int]]
Resources = list[wanted_pb2.Resource]

POINTS: Final = points("apply")
COMMITTED: Final = {"apply.after_commit"}
APPLY_S: Final = 30.0


@dataclass(frozen=True)
class Bench:
    """The registry under test, and what an apply that nobody disturbs does."""

    family: Family

    def apply(self, resources: Resources, request_id: str) -> pb2.ApplyConfigResponse:
        """One apply; every try of the channel's carries the same request_id."""
        tenant = resources[0].metadata.name
        header = pb2.ConfigHeader(tenant=tenant, request_id=request_id)
        parts = [
            pb2.ApplyConfigRequest(header=header),
            pb2.ApplyConfigRequest(chunk=pb2.ConfigChunk(resources=resources)),
        ]
        key = Secret(self.family.deployment.owner_key.read_text())
        with open_sync_channel(self.family.registry, key=key, reason="a test") as channel:
            stub = config_service_pb2_grpc.ConfigServiceStub(channel)
            return stub.ApplyConfig(iter(parts), timeout=APPLY_S)

    def wanted(self, tenant: str) -> Resources:
        """The example's objects, as a tenant of that name wants them; the tenant first."""
        documents = read([self.family.example(tenant)]).documents
        (batch,), faults = resolve_secrets(documents, self.family.secrets_of_example())
        assert not faults
        return list(batch.resources)

    def rows(self) -> Rows:
        """All rows that calls have changed."""
        return self.family.changed_by_calls()


def make(resources: Resources) -> Resources:
    """A tenant that is not there yet."""
    return resources


def change(resources: Resources) -> Resources:
    """The same with a rotated secret, a changed connector and one object more."""
    for resource in resources:
        if resource.metadata.name == "github-token":
            resource.credential.values["token"].plain = b"rotated-for-this-test"
        if resource.metadata.name == "triage":
            resource.connector.description = "changed"
    another = wanted_pb2.Resource()
    another.CopyFrom(next(one for one in resources if one.WhichOneof("spec") == "subscription"))
    another.metadata.name = "another"
    return [*resources, another]


VARIANTS: Final = {"make": make, "change": change}
CASES: Final = [(point, variant) for point in POINTS for variant in VARIANTS]


def difference(before: Rows, after: Rows) -> Difference:
    """By table, how many rows came and how many went; a changed row did both."""
    found = {}
    for table in before.keys() | after.keys():
        old, new = set(before.get(table, ())), set(after.get(table, ()))
        if old != new:
            found[table] = (len(new - old), len(old - new))
    return found


def parted(found: Difference) -> tuple[Difference, Difference]:
    """What an apply did, and what tells that it failed: the tenant was not there yet."""
    tells = {table: of for table, of in found.items() if table.startswith("platform_audit_")}
    return {table: of for table, of in found.items() if table not in tells}, tells


def told(answer: pb2.ApplyConfigResponse) -> list[tuple[object, ...]]:
    """An answer without what differs from tenant to tenant."""
    changes = [
        (one.kind, one.action, tuple(f.path for f in one.fields)) for one in answer.plan.changes
    ]
    return [(answer.revision, answer.plan.base_revision), *changes]


@pytest.fixture(scope="module")
def bench(family: Family) -> Bench:
    return Bench(family)


@dataclass(frozen=True)
class Undisturbed:
    """What the two applies do to the tables and answer when nothing dies."""

    changes: dict[str, Difference]
    answers: dict[str, list[tuple[object, ...]]]


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Undisturbed:
    changes, answers = {}, {}
    for variant, of in VARIANTS.items():
        resources = of(bench.wanted("undisturbed"))
        before = bench.rows()
        answers[variant] = told(bench.apply(resources, str(uuid4())))
        changes[variant] = difference(before, bench.rows())
    for table in ("audit_events", "config_revisions", "feed", "request_answers", "tenants"):
        assert all(table in each for each in changes.values())
    return Undisturbed(changes, answers)


@pytest.fixture
def again(bench: Bench) -> Iterator[None]:
    """Leaves a registry that nothing kills."""
    yield
    bench.family.restart("registry")


def start_from(bench: Bench, variant: str, tenant: str) -> Resources:
    """Bring a tenant to where the variant begins; what is to be applied then."""
    if variant == "change":
        bench.apply(bench.wanted(tenant), str(uuid4()))
    return VARIANTS[variant](bench.wanted(tenant))


@pytest.mark.parametrize(("point", "variant"), thinned(CASES, keep=4))
@pytest.mark.usefixtures("again")
def test_killed_apply_is_whole_or_absent_and_answers_once(
    bench: Bench, undisturbed: Undisturbed, point: str, variant: str
) -> None:
    resources = start_from(bench, variant, f"{variant}-{point.replace('.', '-').replace('_', '-')}")
    request_id, whole = str(uuid4()), undisturbed.changes[variant]
    before = bench.rows()
    bench.family.restart("registry", f"{point}=kill")
    with pytest.raises(grpc.RpcError) as lost:
        bench.apply(resources, request_id)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    bench.family.await_killed("registry")
    assert difference(before, bench.rows()) == (whole if point in COMMITTED else {})

    bench.family.start("registry")
    answer = bench.apply(resources, request_id)
    assert told(answer) == undisturbed.answers[variant]
    after = bench.rows()
    assert difference(before, after) == whole
    assert bench.apply(resources, request_id) == answer
    assert bench.rows() == after


@pytest.mark.parametrize("point", thinned(POINTS, keep=2))
@pytest.mark.usefixtures("again")
def test_failed_apply_is_whole_or_absent_and_the_registry_lives(
    bench: Bench, undisturbed: Undisturbed, point: str
) -> None:
    resources = bench.wanted(f"fail-{point.replace('.', '-').replace('_', '-')}")
    request_id, whole = str(uuid4()), undisturbed.changes["make"]
    before = bench.rows()
    bench.family.restart("registry", f"{point}=error@1")
    with pytest.raises(grpc.RpcError) as failed:
        bench.apply(resources, request_id)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    done, tells = parted(difference(before, bench.rows()))
    assert done == (whole if point in COMMITTED else {})
    assert tells["platform_audit_events"] == (1, 0)
    assert bench.family.alive("registry")
    assert told(bench.apply(resources, request_id)) == undisturbed.answers["make"]
    assert parted(difference(before, bench.rows()))[0] == whole
