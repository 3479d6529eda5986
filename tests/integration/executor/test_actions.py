"""Subscriptions to an integration's action: messages sent, workflows begun, tickets made."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.executor.calling import Calling
from services.executor.events.log import EventLog
from services.executor.events.publishing import NewEvent, Publishing
from services.executor.events.traces import EventTraces, Trace
from services.executor.executions.running import Running
from services.executor.executions.runs import Executions, Query
from services.executor.registry.client import Registry
from services.executor.registry.projection import Projection
from services.executor.registry.uses import Uses
from services.executor.store import lane_states
from services.executor.store.executions import Execution
from services.sandbox.faults import Fault
from services.sandbox.server import Box
from tests.integration.executor.execution_bench import (
    CATALOG,
    TOKEN,
    ExecutionBench,
    NoRoom,
    execution_bench,
)
from tests.integration.executor.lane_bench import pass_time
from tests.integration.executor.running_registry import Document, RunningRegistry, document

Admin = psycopg.AsyncConnection[Any]
QUICK = {"max_attempts": 3, "base": "0.01s", "cap": "0.05s"}
RELEASE = {"version": "1.4", "notes": "All new."}
GITHUB = {"owner": "acme", "repo": "shop", "workflow_id": "build.yml", "ref": "main"}


@dataclass
class Acme:
    """A tenant with accounts at the sandbox, and all that its events begin."""

    service: RunningRegistry
    registry: Registry
    projection: Projection
    publishing: Publishing
    traces: EventTraces
    runs: ExecutionBench

    @property
    def box(self) -> Box:
        return self.runs.box

    async def want(self, *documents: Document) -> None:
        """Apply documents, and project them."""
        await self.service.apply("acme", *documents)
        await self.projection.project(self.runs.tenant_id)

    async def publish(self, event_type: str = "release.started", payload: Any = None) -> UUID:
        new = NewEvent(event_type, dict(RELEASE) if payload is None else payload)
        (event_id,) = await self.publishing.publish(self.runs.tenant_id, [new])
        return event_id

    async def trace(self, event_id: UUID) -> Trace:
        return await self.traces.of(self.runs.tenant_id, event_id)

    async def happened(self, event_type: str = "release.started", **payload: Any) -> Execution:
        """What one event runs, once it has ended."""
        event_id = await self.publish(event_type, payload or None)
        (execution_id,) = (await self.trace(event_id)).executions
        async with self.runs.working():
            return await self.runs.end_of(execution_id)

    async def lanes(self) -> dict[str, str]:
        """Whose lanes there are, and how their owners are."""
        found = await lane_states.page(
            self.runs.database, self.runs.tenant_id, "", UUID(int=0), 100
        )
        return {each.owner: each.owner_state for each in found}

    async def lanes_are(self, expected: dict[str, str]) -> None:
        """Wait until that is how they are: an empty lane goes at somebody's next look."""
        async with asyncio.timeout(10):
            while await self.lanes() != expected:
                await asyncio.sleep(0.02)


def secret(**values: str) -> dict[str, object]:
    return {part: {"plain": b64encode(value.encode()).decode()} for part, value in values.items()}


def chat(acme: Acme, **spec: Any) -> Document:
    said = {"config": {"channel": "#ops"}, "base_url": f"{acme.box.url}/slack", **spec}
    return document("Integration", "chat", provider="slack", credential="token", **said)


def telling(*, is_active: bool = True, **action: Any) -> Document:
    said = {"integration": "chat", "retry": QUICK, **action}
    return document(
        "Subscription", "tell", event_types=["release.*"], is_active=is_active, action=said
    )


async def projected_connectors(admin: Admin) -> list[str]:
    found = await admin.execute(
        "SELECT name FROM executor.projected_objects WHERE kind = 'Connector' ORDER BY 1"
    )
    return [name for (name,) in await found.fetchall()]


@pytest.fixture
async def acme(registry_database: Database, executor_database: Database) -> AsyncIterator[Acme]:
    service = RunningRegistry(registry_database, egress_allow="127.0.0.1/32:*")
    await service.prepare()
    await service.start()
    await service.apply(
        "acme",
        document("Tenant", "acme", display_name="Acme"),
        document("Credential", "token", type="bearer", values=secret(token=TOKEN)),
        document(
            *("Credential", "mail"),
            type="basic",
            values=secret(username="ada@example.com", password=TOKEN),
        ),
    )
    tenant_id, uses = await service.tenant_id("acme"), Uses()
    async with (
        execution_bench(executor_database, tenant_id) as runs,
        open_channel(service.target, key=service.service_key) as channel,
    ):
        registry = Registry(channel, uses)
        runs.executions = Executions(runs.database, registry, runs.changes, NoRoom())
        runs.running = Running(
            runs.database, registry, Calling(registry, runs.client, uses), CATALOG,
            runs.recorder, runs.changes, runs.evaluator,
        )  # fmt: skip
        log = EventLog(runs.database, registry)
        yield Acme(
            service,
            registry,
            Projection(runs.database, registry),
            Publishing(runs.database, registry, runs.evaluator),
            EventTraces(runs.database, log, runs.evaluator),
            runs,
        )
    await service.stop()


async def test_an_event_becomes_a_message(acme: Acme) -> None:
    text = "Release ${event.payload.version}: ${event.payload.notes} (${integration.name})"
    await acme.want(chat(acme), telling(input={"text": text}))
    found = await acme.happened()
    assert (found.state, found.connector, found.subscription) == (
        "success",
        "subscriptions/tell",
        "tell",
    )
    (message,) = acme.box.state.messages
    assert (message.channel, message.text) == ("#ops", "Release 1.4: All new. (chat)")
    # As the manifest has it, where nothing is said.
    await acme.want(telling())
    await acme.happened()
    assert acme.box.state.messages[-1].text == "release.started 1.4"
    listed = await acme.runs.executions.list(
        Query(acme.runs.tenant_id, connector="subscriptions/tell")
    )
    assert len(listed.executions) == 2


async def test_shorthands_send_run_and_make(acme: Acme) -> None:
    template = {"title": "Ship ${event.payload.version}", "description": "${event.payload.notes}"}
    await acme.want(
        chat(acme, automation={"notify_on_events": ["release.started"], "channel": "#rel"}),
        document(
            *("Integration", "build"),
            provider="github_actions",
            credential="token",
            base_url=acme.box.url,
            config=GITHUB,
            automation={"trigger_on_release": True},
        ),
        document(
            *("Integration", "jira"),
            provider="jira",
            credential="mail",
            base_url=f"{acme.box.url}/jira",
            config={"project_key": "SHOP"},
            automation={"auto_create_epics": True, "epic_template": template},
        ),
    )
    event_id = await acme.publish()
    async with acme.runs.working():
        for each in (await acme.trace(event_id)).executions:
            assert (await acme.runs.end_of(each)).state == "success"
    state = acme.box.state
    assert [(each.channel, each.text) for each in state.messages] == [
        ("#rel", "release.started 1.4")
    ]
    (begun,) = state.dispatches
    assert (begun.repo, begun.workflow, begun.ref, begun.inputs) == (
        "acme/shop",
        "build.yml",
        "main",
        {},
    )
    (ticket,) = state.tickets
    assert (ticket.key, ticket.summary) == ("SHOP-1", "Ship 1.4")
    assert ticket.fields["issuetype"] == {"name": "Epic"}
    assert "All new." in str(ticket.fields["description"])
    assert set(await acme.lanes()) == {
        f"subscriptions/{name}" for name in ("chat-notify", "build-release", "jira-epic")
    }


async def test_slacks_no_is_a_failure_though_its_status_is_good(acme: Acme) -> None:
    await acme.want(chat(acme), telling(input={"text": "x"}))
    no = {"ok": False, "error": "channel_not_found"}
    acme.box.faults.add(Fault(path="/slack/*", kind="status", status=200, body=no))
    found = await acme.happened()
    assert (found.state, found.failure_reason) == ("failed", "NOT_FOUND")
    assert found.failure_message == "step action: the provider answered 200: channel_not_found"
    assert found.steps[0].attempts == 1
    # It has done nothing, and asks to come again: so we do.
    busy = {"ok": False, "error": "ratelimited"}
    acme.box.faults.add(Fault(path="/slack/*", kind="status", status=200, body=busy, times=2))
    found = await acme.happened()
    assert (found.state, found.steps[0].attempts) == ("success", 3)
    # It may have done something: a message is not sent twice.
    broken = {"ok": False, "error": "fatal_error"}
    acme.box.faults.add(Fault(path="/slack/*", kind="status", status=200, body=broken))
    found = await acme.happened()
    assert (found.state, found.failure_reason, found.steps[0].attempts) == (
        "failed",
        "TRANSIENT",
        1,
    )
    acme.box.faults.add(Fault(path="/slack/*", kind="reset"))
    found = await acme.happened()
    assert (found.state, found.failure_reason) == ("failed", "OUTCOME_UNKNOWN")
    assert len(acme.box.state.messages) == 2


async def test_a_template_without_a_value_fails_where_it_is_seen(acme: Acme) -> None:
    await acme.want(chat(acme), telling(input={"text": "${event.payload.version}"}))
    found = await acme.happened(other=1)
    assert (found.state, found.failure_reason) == ("failed", "VALUE_MISSING")
    assert not acme.box.calls


async def test_an_operation_may_be_called_by_its_name(acme: Acme) -> None:
    hub = document(
        *("Integration", "hub"),
        provider="github",
        credential="token",
        base_url=acme.box.url,
        config={"owner": "acme", "repo": "shop"},
    )
    said = {"issue_number": "${event.payload.issue}", "body": "Out with ${event.payload.version}"}
    comment = telling(integration="hub", operation="create_issue_comment", input=said)
    await acme.want(hub, comment)
    found = await acme.happened(issue=7, version="1.4")
    assert found.state == "success", found.failure_message
    assert [(each.number, each.body) for each in acme.box.comments] == [(7, "Out with 1.4")]
    # One that does no harm is repeated.
    acme.box.faults.add(Fault(path="/repos/*", kind="status", status=502))
    await acme.want(telling(integration="hub", operation="list_issues"))
    found = await acme.happened()
    assert (found.state, found.steps[0].attempts) == ("success", 2)


async def test_what_is_switched_off_begins_nothing_and_a_trace_says_why(acme: Acme) -> None:
    await acme.want(chat(acme, is_active=False), telling())
    traced = await acme.trace(await acme.publish())
    assert [(each.takes, each.reason) for each in traced.answers] == [(False, "TARGET_INACTIVE")]
    assert not traced.executions
    assert await acme.lanes() == {"subscriptions/tell": "inactive"}
    await acme.want(chat(acme))
    waiting = await acme.publish()
    traced = await acme.trace(waiting)
    assert [(each.takes, each.reason) for each in traced.answers] == [(True, "")]
    (execution_id,) = traced.executions
    assert await acme.lanes() == {"subscriptions/tell": "active"}
    await acme.want(telling(is_active=False))
    traced = await acme.trace(waiting)
    assert [each.reason for each in traced.answers] == ["INACTIVE"]
    assert traced.executions == (execution_id,)
    assert await acme.lanes() == {"subscriptions/tell": "inactive"}


async def test_what_waits_for_a_subscription_that_goes_ends_and_its_lane_goes(
    acme: Acme, admin: Admin
) -> None:
    await acme.want(chat(acme), telling())
    traced = await acme.trace(await acme.publish())
    (execution_id,) = traced.executions
    gone = {"metadata": {"name": "tell"}, "subscription": {}, "absent": True}
    await acme.want(gone)
    async with acme.runs.working():
        found = await acme.runs.end_of(execution_id)
        # The lane is looked at once more when the lease of what ran last would have ended.
        await pass_time(admin, 31)
        await acme.lanes_are({})
    assert (found.state, found.failure_reason) == ("failed", "CONNECTOR_GONE")
    assert not acme.box.calls
    assert await projected_connectors(admin) == []


async def test_an_action_that_becomes_another_target_leaves_nothing(
    acme: Acme, admin: Admin
) -> None:
    steps = [{"name": "who", "integration": "chat", "operation": "test_auth"}]
    await acme.want(chat(acme), telling(), document("Connector", "who", steps=steps))
    assert set(await acme.lanes()) == {"subscriptions/tell", "who"}
    await acme.want(
        document(
            *("Subscription", "tell"),
            event_types=["release.*"],
            connector="who",
            action={"integration": ""},
        )
    )
    assert await projected_connectors(admin) == ["who"]
    assert (await acme.happened()).connector == "who"
    async with acme.runs.working():
        await acme.lanes_are({"who": "active"})
