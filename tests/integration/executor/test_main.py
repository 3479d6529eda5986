"""The executor as a process: says when it is ready, drains when told, and refuses in words."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.struct_pb2 import Value
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenon.executor.v1 import (
    delivery_service_pb2,
    delivery_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
)
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as stubs

from services.chassis.channel import open_channel
from services.chassis.secret import Secret
from tests.integration.executor.running_registry import RunningRegistry, document

ROOT = Path(__file__).parents[3]
STARTED: list[asyncio.subprocess.Process] = []


@pytest.fixture
def environment(
    executor_conninfos: tuple[Secret, Secret], registry_service: RunningRegistry, tmp_path: Path
) -> dict[str, str]:
    tenant, system = executor_conninfos
    secrets = {
        "DATABASE_URL": tenant,
        "SYSTEM_DATABASE_URL": system,
        "SERVICE_KEY": registry_service.service_key,
    }
    told = {
        "REGISTRY": registry_service.target,
        "LISTEN": "127.0.0.1:0",
        "INGRESS_PORT": "0",
        "METRICS_PORT": "0",
    }
    for name, secret in secrets.items():
        (tmp_path / name).write_bytes(secret.reveal() + b"\n")
        told[f"{name}_FILE"] = str(tmp_path / name)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    return plain | {f"TENON_EXECUTOR_{k}": v for k, v in told.items()} | {"PYTHONPATH": paths}


@pytest.fixture(autouse=True)
async def _ended() -> AsyncIterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def executor(environment: dict[str, str]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.executor.main",
        cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    STARTED.append(process)
    return process


async def test_it_serves_projects_authenticates_and_stops_when_told(
    environment: dict[str, str], registry_service: RunningRegistry
) -> None:
    await registry_service.apply("acme", document("Tenant", "acme", display_name="Acme"))
    process = await executor(environment)
    assert process.stdout is not None and process.stderr is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert ready["ready"] is True
    healthz = f"http://127.0.0.1:{ready['ingress']}/healthz"
    async with aiohttp.ClientSession() as session, session.get(healthz) as answer:
        assert answer.status == 200
    target = f"127.0.0.1:{ready['grpc']}"
    async with open_channel(target, key=registry_service.owner_key, reason="a test") as channel:
        checks: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
        checked = await checks.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        stub: stubs.ExecutionServiceAsyncStub = stubs.ExecutionServiceStub(channel)
        async with asyncio.timeout(20):
            while (await registry_service.tenant("acme")).projected_revision < 1:
                await asyncio.sleep(0.05)
        page = await stub.ListExecutions(pb.ListExecutionsRequest(parent="tenants/acme"), timeout=5)
        assert list(page.executions) == []
        await _publish_and_look(channel)
        await _refuse_strangers(target)
        following = _following(channel)
        assert (await following.read()).event.body == b'"pong"'
        process.send_signal(signal.SIGTERM)
        # Its consumers hear of the end at once, and hold up nothing.
        assert await asyncio.wait_for(following.read(), 5) is grpc.aio.EOF
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    for secret in (registry_service.owner_key, registry_service.service_key):
        assert secret.reveal() not in errors


async def _refuse_strangers(target: str) -> None:
    async with open_channel(target, key=Secret("tnk_test_nobody")) as channel:
        stub: stubs.ExecutionServiceAsyncStub = stubs.ExecutionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListExecutions(pb.ListExecutionsRequest(parent="tenants/acme"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def _following(channel: grpc.aio.Channel) -> Any:
    events: event_service_pb2_grpc.EventServiceAsyncStub
    events = event_service_pb2_grpc.EventServiceStub(channel)
    start = event_service_pb2.SubscribeEventsRequest.START_OLDEST
    request = event_service_pb2.SubscribeEventsRequest(parent="tenants/acme", start=start)
    return events.SubscribeEvents(request)


async def _publish_and_look(channel: grpc.aio.Channel) -> None:
    """An event comes in by the process's own services, and goes nowhere."""
    events: event_service_pb2_grpc.EventServiceAsyncStub
    events = event_service_pb2_grpc.EventServiceStub(channel)
    new = event_service_pb2.NewEvent(type="ping", payload=Value(string_value="pong"))
    publish = event_service_pb2.PublishEventsRequest(parent="tenants/acme", events=[new])
    (name,) = (await events.PublishEvents(publish, timeout=5)).names
    found = await events.GetEvent(event_service_pb2.GetEventRequest(name=name), timeout=5)
    assert found.body == b'"pong"'
    deliveries: delivery_service_pb2_grpc.DeliveryServiceAsyncStub
    deliveries = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
    asked = delivery_service_pb2.ListDeliveriesRequest(parent="tenants/acme")
    assert not (await deliveries.ListDeliveries(asked, timeout=5)).deliveries


async def test_metrics_are_served_where_it_is_told_and_every_loop_is_led(
    environment: dict[str, str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"TENON_EXECUTOR_METRICS_PORT": str(port), "TENON_EXECUTOR_ROLE": "work"}
    process = await executor(environment | told)
    assert process.stdout is not None and process.stderr is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert ready == {"ready": True, "metrics": port}
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    assert 'tenon_doctor_repairs_total{level="lane"} 0.0' in text
    assert 'tenon_work_running{kind="execution"} 0.0' in text
    led: set[bytes] = set()
    async with asyncio.timeout(20):
        while len(led) < 6:
            led.update(re.findall(rb"leading executor\.(\w+)", await process.stderr.readline()))
    assert led == {b"projection", b"retention", b"draining", b"scheduler", b"doctor", b"audit"}
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_without_settings_it_says_all_that_is_missing_and_ends() -> None:
    process = await executor({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"})
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, output) == (1, b"")
    for name in (b"DATABASE_URL", b"SYSTEM_DATABASE_URL"):
        assert b"TENON_EXECUTOR_" + name in errors
    assert b"Traceback" not in errors


async def test_without_its_database_it_ends_in_words_that_hold_no_password(
    environment: dict[str, str], tmp_path: Path
) -> None:
    nowhere = "host=/nowhere user=x password=canary-word dbname=x"
    (tmp_path / "SYSTEM_DATABASE_URL").write_text(nowhere)
    process = await executor(environment)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, output) == (1, b"")
    assert b"executor: " in errors
    assert b"canary-word" not in errors and b"Traceback" not in errors


@pytest.mark.parametrize(
    ("role", "ports"), [("rpc", {"grpc"}), ("ingress", {"ingress"}), ("work", set())]
)
async def test_a_role_listens_where_it_must_and_nowhere_else(
    environment: dict[str, str], role: str, ports: set[str]
) -> None:
    process = await executor(environment | {"TENON_EXECUTOR_ROLE": role})
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert ready.keys() - {"ready"} == ports
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ROLE": "scheduler"}, "TENON_EXECUTOR_ROLE must be one of all, rpc, ingress, work"),
        ({"WORK_PROCESSES": "-1"}, "TENON_EXECUTOR_WORK_PROCESSES must be 0 or more"),
        (
            {"RPC_PROCESSES": "2", "LISTEN": "unix:/nowhere"},
            "TENON_EXECUTOR_LISTEN must be host:port where several processes listen",
        ),
    ],
)
async def test_processes_that_cannot_be_are_refused_in_words(
    environment: dict[str, str], settings: dict[str, str], words: str
) -> None:
    told = {f"TENON_EXECUTOR_{name}": value for name, value in settings.items()}
    process = await executor(environment | told)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, output) == (1, b"")
    assert words.encode() in errors
    assert b"Traceback" not in errors


async def test_what_runs_elsewhere_is_said(environment: dict[str, str]) -> None:
    process = await executor(environment | {"TENON_EXECUTOR_INGRESS_PROCESSES": "1"})
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert ready.keys() == {"ready", "ingress"}
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    for role in (b"rpc", b"work"):
        assert b"no " + role + b" process runs here" in errors
