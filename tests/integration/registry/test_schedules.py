"""When a connector runs by itself, as the registry keeps it: whole, planned by field, checked."""

from google.protobuf.json_format import MessageToDict
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.documents import acme

NIGHTLY = {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "input": {"n": 3}}


def scheduled(**schedule: object) -> wanted_pb2.Resource:
    step = {"name": "get", "integration": "github", "method": "GET", "path": "/user"}
    return documents.resource("connector", "timed", steps=[step], schedule=schedule)


async def schedule_of(owner: Caller) -> dict[str, object]:
    objects = await owner.snapshot("acme")
    (found,) = [each for key, each in objects.items() if "timed" in str(key)]
    return MessageToDict(found.resource.connector.schedule, preserving_proto_field_name=True)


async def test_a_schedule_is_kept_as_it_is_said_with_its_defaults(owner: Caller) -> None:
    await owner.apply("acme", [*acme(), scheduled(**NIGHTLY)])
    assert await schedule_of(owner) == {**NIGHTLY, "jitter": "0s"}
    await owner.apply("acme", [scheduled(every="90s", jitter="10s")])
    assert await schedule_of(owner) == {"every": "90s", "timezone": "UTC", "jitter": "10s"}


async def test_faults_of_a_schedule_stand_at_their_fields(owner: Caller) -> None:
    await owner.apply("acme", acme())
    for schedule, path in (
        ({"every": "59s"}, "spec.schedule.every"),
        ({"cron": "* * * *"}, "spec.schedule.cron"),
        ({"cron": "* * * * *", "timezone": "Nowhere/Town"}, "spec.schedule.timezone"),
        ({"every": "60s", "jitter": "7200s"}, "spec.schedule.jitter"),
        ({"every": "60s", "cron": "* * * * *"}, "spec.schedule"),
        ({"jitter": "5s"}, "spec.schedule"),
        ({"input": {"n": 1}}, "spec.schedule"),
        ({"every": "60s", "input": {"n": "x" * 70_000}}, "spec.schedule.input"),
    ):
        with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
            await owner.plan("acme", [scheduled(**schedule)])
        assert [each.field for each in held[0].violations] == [f"Connector/timed#{path}"], schedule
