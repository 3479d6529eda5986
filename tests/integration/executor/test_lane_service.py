"""LaneService over gRPC and `tenon lanes`, on real lanes that do not move for real reasons."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from tenon.executor.v1 import lane_service_pb2 as pb
from tenon.executor.v1 import lane_service_pb2_grpc as pb_grpc

from config import look
from services.chassis.interceptors import Call
from services.chassis.server import Listen, Service, serving
from services.chassis.tenancy import Principal
from services.executor.engine import steering
from services.executor.engine.steering import Limits
from services.executor.engine.switchboard import Switchboard
from services.executor.engine.work import Breaker, Failed
from services.executor.servicers.lane import LaneServicer
from services.executor.store import projected
from services.executor.store.projected import ProjectedObject
from services.providers.catalog import Catalog
from tests.integration.executor.lane_bench import LaneBench

Admin = psycopg.AsyncConnection[Any]
Stub: TypeAlias = "pb_grpc.LaneServiceAsyncStub"
PARENT = "tenants/acme"


@pytest.fixture
def bench(bench: LaneBench, tenant_ids: tuple[UUID, UUID]) -> LaneBench:
    bench.tenant_id = tenant_ids[0]
    return bench


@pytest.fixture
async def address(bench: LaneBench) -> AsyncIterator[str]:
    async def enter(call: Call) -> None:
        """What the gates find for a caller of acme."""
        call.principal = Principal(uuid4(), "user", "the caller")
        call.tenant, call.tenant_id = "acme", bench.tenant_id

    switchboard = Switchboard(bench.database, Catalog.load(), [bench.KIND])
    service = Service(pb.DESCRIPTOR.services_by_name["LaneService"], LaneServicer(switchboard))
    async with serving([service], [enter], Listen("127.0.0.1:0"), grace_s=0.1) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.LaneServiceStub(channel)


async def listed(stub: Stub, **asked: Any) -> dict[str, pb.Lane]:
    answer = await stub.ListLanes(pb.ListLanesRequest(parent=PARENT, **asked))
    return {lane.name.rpartition("/")[2]: lane for lane in answer.lanes}


def codes(lane: pb.Lane) -> list[str]:
    return [reason.code for reason in lane.reasons]


async def govern(bench: LaneBench, limits: Limits) -> None:
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.govern(tx, bench.tenant_id, limits)


async def test_every_lane_says_how_it_stands_and_why_it_does_not_move(
    bench: LaneBench, stub: Stub, admin: Admin
) -> None:
    names = (
        "free",
        "full",
        "ordered",
        "open",
        "rated",
        "later",
        "idle",
        "strange",
        "asleep",
        "burst",
    )
    ids = {name: uuid4() for name in names}
    await bench.enqueue(
        bench.item(ids["full"], concurrency=1),
        bench.item(ids["full"], concurrency=1),
        bench.item(ids["ordered"], ordering="lane"),
        bench.item(ids["ordered"], ordering="lane"),
        bench.item(ids["open"], breaker=Breaker(1, 600), retry_s=(0.0, 0.0)),
        bench.item(ids["rated"], rate_per_s=0.001, provider="github"),
        bench.item(ids["rated"]),
        bench.item(ids["idle"]),
    )
    for claimed in await bench.take():
        if claimed.lane_id == ids["open"]:
            assert await bench.record(claimed, Failed(worked=False))
        elif claimed.lane_id == ids["idle"]:
            assert await bench.complete(claimed)
    await bench.enqueue(bench.item(ids["later"], delay_s=60), bench.item(ids["free"]))
    await bench.enqueue(bench.item(ids["strange"]), bench.item(ids["asleep"]))
    await admin.execute("UPDATE executor.lanes SET kind = 'x' WHERE lane_id = %s", [ids["strange"]])
    await bench.enqueue(bench.item(ids["burst"], rate_per_s=0.001, burst=3))
    # One of three has been used up.
    spent = "UPDATE executor.lanes SET rate_at = now() + interval '1000 s' WHERE lane_id = %s"
    await admin.execute(spent, [ids["burst"]])
    asleep = "UPDATE executor.lanes SET next_at = 'infinity' WHERE lane_id = %s"
    await admin.execute(asleep, [ids["asleep"]])
    found = {name: (await listed(stub))[str(lane_id)] for name, lane_id in ids.items()}
    assert {name: codes(lane) for name, lane in found.items()} == {
        "free": [],
        "full": ["FULL"],
        "ordered": ["IN_ORDER"],
        "open": ["BREAKER_OPEN"],
        "rated": ["RATE"],
        "later": ["NOT_DUE"],
        "idle": [],
        "strange": ["NO_KIND"],
        "asleep": ["ASLEEP"],
        "burst": [],
    }
    full, opened, rated, later = (found[n] for n in ("full", "open", "rated", "later"))
    assert (full.waiting, full.running, full.concurrency) == (1, 1, 1)
    assert found["ordered"].waiting == 1
    assert opened.breaker == pb.Lane.BREAKER_OPEN and opened.HasField("next_look_time")
    assert (rated.provider, rated.kind) == ("github", bench.KIND)
    assert full.HasField("oldest_age") and not later.HasField("oldest_age")
    assert not found["asleep"].HasField("next_look_time")
    stuck = await listed(stub, not_moving=True)
    assert stuck.keys() == {str(ids[name]) for name in names} - {
        str(ids[name]) for name in ("free", "idle", "burst")
    }
    assert (await listed(stub, kind="x")).keys() == {str(ids["strange"])}


async def test_the_tenants_limits_are_told(bench: LaneBench, stub: Stub) -> None:
    other = uuid4()
    await bench.enqueue(*(bench.item(provider="github") for _ in range(3)), bench.item(other))
    caps: tuple[tuple[Limits, list[str], list[str]], ...] = (
        (Limits(paused=True), ["TENANT_PAUSED"], ["TENANT_PAUSED"]),
        (Limits(provider_caps={"github": 1}), ["PROVIDER_FULL"], []),
        (Limits(max_running=1), ["TENANT_FULL"], ["TENANT_FULL"]),
        (Limits(), [], []),
    )
    assert len(await bench.take(share=2)) == 2
    for limits, here, there in caps:
        await govern(bench, limits)
        found = await listed(stub)
        assert (codes(found[str(bench.lane_id)]), codes(found[str(other)]) or there) == (
            here,
            there,
        )


async def test_a_paused_lane_says_why_and_goes_on_when_it_is_resumed(
    bench: LaneBench, stub: Stub
) -> None:
    await bench.enqueue(bench.item())
    name = f"{PARENT}/lanes/{bench.lane_id}"
    paused = await stub.PauseLane(pb.PauseLaneRequest(name=name, reason="a migration"))
    assert [(r.code, r.message) for r in paused.reasons] == [("PAUSED", "paused: a migration")]
    assert await bench.take() == []
    resumed = await stub.ResumeLane(pb.ResumeLaneRequest(name=name))
    assert resumed.name == name and not resumed.reasons
    assert len(await bench.take()) == 1


async def test_a_provider_that_is_switched_off_stops_its_lanes_until_it_is_on(
    bench: LaneBench, stub: Stub
) -> None:
    await bench.enqueue(bench.item(provider="github"))
    off = await stub.SwitchOffProvider(
        pb.SwitchOffProviderRequest(provider="github", reason="an incident")
    )
    again = await stub.SwitchOffProvider(
        pb.SwitchOffProviderRequest(provider="github", reason="another")
    )
    assert off == again and off.reason == "an incident" and off.create_time.seconds
    switched = await stub.ListProviderSwitches(pb.ListProviderSwitchesRequest())
    assert list(switched.provider_switches) == [off]
    assert await bench.take() == []
    (lane,) = (await listed(stub, not_moving=True)).values()
    assert lane.reasons[0].message == "provider github is switched off: an incident"
    await stub.SwitchOnProvider(pb.SwitchOnProviderRequest(provider="github"))
    assert not (await stub.ListProviderSwitches(pb.ListProviderSwitchesRequest())).provider_switches
    assert await listed(stub, not_moving=True) == {}


async def test_pages_have_each_lane_once_also_where_few_are_asked_for(
    bench: LaneBench, stub: Stub
) -> None:
    await bench.enqueue(*(bench.item(uuid4(), delay_s=60 * (n % 3 == 0)) for n in range(20)))
    for not_moving, count in ((False, 20), (True, 7)):
        names, token = [], ""
        while True:
            asked: dict[str, Any] = {"page_size": 3, "page_token": token, "not_moving": not_moving}
            answer = await stub.ListLanes(pb.ListLanesRequest(parent=PARENT, **asked))
            names += [lane.name for lane in answer.lanes]
            token = answer.next_page_token
            if not token:
                break
        assert len(names) == len(set(names)) == count


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("PauseLane", pb.PauseLaneRequest(name=f"{PARENT}/lanes/7", reason="x"), "INVALID_ARGUMENT"),
        ("PauseLane", pb.PauseLaneRequest(name=f"{PARENT}/lanes/{UUID(int=7)}"), "INVALID_ARGUMENT"),
        ("PauseLane", pb.PauseLaneRequest(name=f"{PARENT}/lanes/{UUID(int=7)}", reason="x"), "NOT_FOUND"),
        ("ResumeLane", pb.ResumeLaneRequest(name=f"{PARENT}/lanes/{UUID(int=7)}"), "NOT_FOUND"),
        ("ListLanes", pb.ListLanesRequest(parent=PARENT, page_token="abc"), "INVALID_ARGUMENT"),
        ("SwitchOffProvider", pb.SwitchOffProviderRequest(provider="github"), "INVALID_ARGUMENT"),
        ("SwitchOffProvider", pb.SwitchOffProviderRequest(provider="githup", reason="x"), "NOT_FOUND"),
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
async def test_wrong_words_are_refused(method: str, request_: Any, code: str, stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request_)
    assert refused.value.code().name == code


async def test_another_tenants_lanes_are_not_there(
    bench: LaneBench, stub: Stub, tenant_ids: tuple[UUID, UUID]
) -> None:
    await bench.enqueue(bench.item())
    other = f"{PARENT}/lanes/{bench.lane_id}"
    bench.tenant_id = tenant_ids[1]
    assert await listed(stub) == {}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PauseLane(pb.PauseLaneRequest(name=other, reason="x"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_command_shows_the_connectors_name_and_the_reason(
    bench: LaneBench,
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    triage = ProjectedObject("Connector", bench.lane_id, "triage", 0, {})
    async with bench.database.tenant(bench.tenant_id) as tx:
        await projected.replace(tx, bench.tenant_id, [triage])
    await bench.enqueue(bench.item(), bench.item(uuid4()))
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, bench.lane_id, "by hand")
    (tmp_path / "key").write_text("tnk_test_key\n")

    async def tenon(*words: str) -> str:
        parser = argparse.ArgumentParser()
        look.register(parser.add_subparsers())
        key = ["--key-file", str(tmp_path / "key")]
        given = parser.parse_args(["lanes", "acme", "--executor", address, *key, *words])
        assert await asyncio.to_thread(given.run, given) == 0
        return capsys.readouterr().out

    shown = " ".join((await tenon("--not-moving")).split())
    assert "triage" in shown and "paused: by hand" in shown
    found = json.loads(await tenon("--output", "json"))
    assert [lane.get("owner") for lane in found].count("triage") == 1 and len(found) == 2
    (stuck,) = json.loads(await tenon("--output", "json", "--not-moving"))
    assert stuck["reasons"] == [{"code": "PAUSED", "message": "paused: by hand"}]


async def by_provider(stub: Stub) -> dict[str, pb.ProviderState]:
    answer = await stub.ListProviderStates(pb.ListProviderStatesRequest(parent=PARENT))
    return {each.provider: each for each in answer.provider_states}


async def test_lanes_are_counted_by_the_provider_they_call(
    bench: LaneBench, stub: Stub, admin: Admin, tenant_ids: tuple[UUID, UUID]
) -> None:
    failing, probing, paused = uuid4(), uuid4(), uuid4()
    kept: dict[str, Any] = {"provider": "github", "retry_s": (60.0,), "breaker": Breaker(1, 600)}
    await bench.enqueue(bench.item(failing, **kept), bench.item(probing, **kept))
    for claimed in await bench.take():
        assert await bench.record(claimed, Failed(worked=False))
    half = "UPDATE executor.lanes SET breaker = 'HALF_OPEN' WHERE lane_id = %s"
    await admin.execute(half, [probing])
    await bench.enqueue(
        bench.item(uuid4(), provider="github"),
        bench.item(uuid4(), provider="http", delay_s=60),
        bench.item(paused),
    )
    await admin.execute("UPDATE executor.work SET due_at = due_at - interval '9 s'")
    async with bench.database.tenant(bench.tenant_id) as tx:
        await steering.pause(tx, bench.tenant_id, paused, "by hand")
    await stub.SwitchOffProvider(pb.SwitchOffProviderRequest(provider="http", reason="a leak"))

    found = await by_provider(stub)
    assert list(found) == ["", "github", "http"]
    counts = {n: (s.closed, s.open, s.half_open, s.paused) for n, s in found.items()}
    assert counts == {"": (1, 0, 0, 1), "github": (1, 1, 1, 0), "http": (1, 0, 0, 0)}
    assert 9 <= found["github"].oldest_age.ToTimedelta().total_seconds() < 60
    assert not found["http"].HasField("oldest_age")
    assert (found["http"].off_reason, found["github"].off_reason) == ("a leak", "")
    await stub.SwitchOnProvider(pb.SwitchOnProviderRequest(provider="http"))
    bench.tenant_id = tenant_ids[1]
    assert await by_provider(stub) == {}
