"""The executor as several processes: the whole way of an event, and deaths that lose nothing."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tenon.executor.v1 import execution_service_pb2 as pb
from tenon.executor.v1 import execution_service_pb2_grpc as stubs

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from services.embedded import Embedded
from tests.accounts import Process, descendants, living
from tests.family import Family, family_on, until

ROLES: Final = ("rpc", "ingress", "work")
TWO_OF_EACH: Final = {f"TENON_EXECUTOR_{role.upper()}_PROCESSES": "2" for role in ROLES}
DOORS: Final = {"grpc": 2, "ingress": 2}
POOL_SIZE: Final = {"TENON_EXECUTOR_POOL_SIZE": "2"}
ISSUE: Final = json.dumps(
    {
        "action": "opened",
        "issue": {"number": 5, "title": "A title", "locked": False},
        "repository": {"name": "shop", "owner": {"login": "acme"}},
        "sender": {"login": "octocat"},
    }
).encode()
ENDED: Final = "SELECT state, failure_reason FROM executor.executions WHERE trigger_id = %s::uuid AND ended_at IS NOT NULL"
SUCCESS: Final = ("success", "")
UNKNOWN: Final = ("failed", "OUTCOME_UNKNOWN")
CLAIMED: Final = (
    "SELECT count(*) FROM executor.work WHERE claim_id IS NOT NULL AND lease_until > now()"
)
SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND usename LIKE '%%executor%%'
"""
LISTEN: Final = "0A"  # as proc_net_tcp(5) writes it
CALL_S: Final = 20.0
GONE_S: Final = 30.0


@pytest.fixture(scope="module")
def applied(postgres: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A family with the example applied, its executor of two processes a role."""
    with family_on(postgres, tmp_path_factory.mktemp("family")) as family:
        for service in ("sandbox", "registry"):
            family.start(service)
        family.start("executor", **TWO_OF_EACH, **POOL_SIZE)
        family.apply_example()
        yield family


@pytest.fixture
def family(applied: Family) -> Family:
    """The same for every test, whatever the one before did to it."""
    if not applied.alive("executor"):
        applied.start("executor", **TWO_OF_EACH, **POOL_SIZE)
    return applied


def crew(family: Family) -> set[Process]:
    """The processes below the supervisor."""
    supervisor = family.members["executor"].process.pid
    return {one for one in living(descendants(supervisor)) if one[0] != supervisor}


def by_role(family: Family) -> dict[str, set[Process]]:
    """The crew by what each does."""
    found: dict[str, set[Process]] = {role: set() for role in ROLES}
    for one in crew(family):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{one[0]}/environ").read_bytes()
            role = re.search(rb"TENON_EXECUTOR_ROLE=(\w+)", environment)
            if role is not None:
                found[role[1].decode()].add(one)
    return found


def accepted(family: Family) -> str:
    """The event of a webhook, sent again until it is taken in, as a provider does."""

    def event() -> str:
        status, answer = family.webhook(ISSUE)
        return str(answer["event"]) if status == 202 else ""

    return str(until(event, what="the webhook's 202"))


def end_of_run(family: Family, event: str) -> tuple[str, str]:
    """State and reason of the one run of an event."""
    ((state, reason),) = until(lambda: family.rows(ENDED, event), what="the run's end")
    return state, reason


def owner(family: Family) -> Secret:
    return Secret(family.deployment.owner_key.read_text())


def run_waited_for(family: Family) -> Any:
    """The end of a run that its caller waits for, over a channel of its own."""
    with open_sync_channel(family.executor, key=owner(family), reason="a test") as channel:
        stub = stubs.ExecutionServiceStub(channel)
        request = pb.RunConnectorRequest(name="tenants/acme/connectors/triage")
        request.input.update({"anything": "at all"})
        request.wait.FromSeconds(15)
        return stub.RunConnector(request, timeout=CALL_S)


def listeners(port: int) -> int:
    """How many sockets listen on a port."""
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == LISTEN for fields in lines)


def test_the_whole_way_of_an_event_and_of_a_call(family: Family) -> None:
    assert {role: len(found) for role, found in by_role(family).items()} == dict.fromkeys(ROLES, 2)
    assert {door: listeners(family.ports["executor"][door]) for door in DOORS} == DOORS
    assert end_of_run(family, accepted(family)) == SUCCESS
    for _ in range(4):
        # Without an event the first step has no issue to ask for; that it ended is the point.
        assert run_waited_for(family).end_time.seconds


def test_a_killed_process_of_each_role_is_replaced_and_nothing_is_lost(family: Family) -> None:
    before, ports = by_role(family), dict(family.ports["executor"])
    events = [accepted(family) for _ in range(5)]
    killed = {min(before[role]) for role in ROLES}
    for pid, _ in killed:
        os.kill(pid, signal.SIGKILL)
    events += [accepted(family) for _ in range(5)]
    # A step that was under way in the dead worker may have been made: then the run says so.
    assert {end_of_run(family, event) for event in events} <= {SUCCESS, UNKNOWN}
    until(
        lambda: [len(found - killed) for found in by_role(family).values()] == [2, 2, 2],
        what="the replacements",
    )
    until(lambda: {door: listeners(ports[door]) for door in DOORS} == DOORS, what="both doors")
    assert {one for found in before.values() for one in found} - killed <= crew(family)
    assert end_of_run(family, accepted(family)) == SUCCESS
    assert run_waited_for(family).end_time.seconds
    assert family.ports["executor"] == ports


def test_a_killed_supervisor_leaves_nobody_and_its_ports_free(family: Family) -> None:
    everybody, ports = crew(family), dict(family.ports["executor"])
    family.kill("executor")
    until(lambda: not living(everybody), GONE_S, "the end of all")
    assert family.start("executor", **TWO_OF_EACH, **POOL_SIZE).ready == ports
    assert end_of_run(family, accepted(family)) == SUCCESS


def test_told_to_stop_all_drain_and_keep_no_claim(family: Family) -> None:
    everybody = crew(family)
    events = [accepted(family) for _ in range(5)]
    supervisor = family.members.pop("executor").process
    supervisor.terminate()
    assert supervisor.wait(GONE_S) == 0
    assert not living(everybody)
    assert family.rows(CLAIMED) == [(0,)]
    family.start("executor", **TWO_OF_EACH, **POOL_SIZE)
    assert {end_of_run(family, event) for event in events} == {SUCCESS}


def test_the_sessions_it_keeps_are_in_the_budget(family: Family) -> None:
    family.kill("executor")
    until(lambda: family.rows(SESSIONS) == [(0,)], GONE_S, "the end of all sessions")
    said = len(family.said("executor"))
    # Both pools keep one connection each; the system pool may grow to two.
    family.start("executor", TENON_EXECUTOR_POOL_SIZE="1")
    found = re.search(r"opens at most (\d+) of the \d+ connections", family.said("executor")[said:])
    assert found is not None
    budget = int(found[1])
    until(lambda: family.rows(SESSIONS)[0][0] >= budget - 1, what="the sessions of the budget")
    accepted(family)
    run_waited_for(family)
    assert family.rows(SESSIONS)[0][0] <= budget
    family.kill("executor")


def test_more_connections_than_the_server_has_are_refused_in_words(family: Family) -> None:
    family.kill("executor")
    said = len(family.said("executor"))
    with pytest.raises(AssertionError, match="connection budget"):
        family.start("executor", **TWO_OF_EACH, TENON_EXECUTOR_POOL_SIZE="20")
    assert family.members.pop("executor").process.wait() == 1
    words = family.said("executor")[said:]
    # 30 for both pools, and the sessions each role keeps.
    assert re.search(
        r"rpc 2 × 3\d \+ ingress 2 × 30 \+ work 2 × 3\d = \d+, and the database has 97", words
    )
    assert "Traceback" not in words


@pytest.mark.parametrize("processes", [{}, TWO_OF_EACH], ids=["one process", "several"])
def test_a_second_executor_on_the_same_ports_hears_so(
    family: Family, processes: dict[str, str]
) -> None:
    supervisor = family.members["executor"]
    try:
        with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1"):
            family.start("executor", **processes, **POOL_SIZE)
        assert family.members["executor"].process.wait() == 1
    finally:
        family.members["executor"] = supervisor
    assert len(crew(family)) == 6
