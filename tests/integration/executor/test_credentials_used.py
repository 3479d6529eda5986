"""Credentials at work: dropped when they are revoked, refreshed when they have ended, counted."""

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis.channel import open_channel
from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition
from services.chassis.invalidation import Invalidation
from services.chassis.process import background
from services.chassis.secret import Secret
from services.chassis.usage import flush
from services.executor.calling import Calling
from services.executor.executions.running import Running
from services.executor.executions.runs import Executions, RunRequest
from services.executor.registry import invalidations
from services.executor.registry.client import Registry
from services.executor.registry.uses import Uses
from services.executor.store import projected, tenants
from services.executor.store.executions import Execution
from services.executor.store.tenants import ProjectedTenant
from services.providers.signatures import verify
from services.sandbox.faults import Fault
from services.sandbox.grants import Tokens
from tests.integration.executor.credential_calls import (
    revoked,
    shown,
    tenant_key_replaced,
)
from tests.integration.executor.delivery_bench import delivery_bench
from tests.integration.executor.execution_bench import (
    CATALOG,
    ISSUE,
    TOKEN,
    ExecutionBench,
    NoRoom,
    execution_bench,
    until,
)
from tests.integration.executor.running_registry import Document, RunningRegistry, document

LOCAL = "127.0.0.1/32:*"
RECORDS = "/oauth/api/records"
PARALLEL = 5


@dataclass
class Acme:
    """A tenant with an account at the sandbox's identity provider, and all that runs for it."""

    service: RunningRegistry
    registry: Registry
    runs: ExecutionBench
    uses: Uses
    tokens: Tokens

    @property
    def tenant_id(self) -> UUID:
        return self.runs.tenant_id

    async def want(self, *documents: Document) -> None:
        """Apply documents, and project them."""
        await self.service.apply("acme", *documents)
        snapshot = await self.registry.snapshot(self.tenant_id)
        async with self.runs.database.tenant(self.tenant_id) as tx:
            await tenants.write(
                tx, ProjectedTenant(self.tenant_id, "acme", True, snapshot.revision), seen=None
            )
            await projected.replace(tx, self.tenant_id, snapshot.objects)

    async def run(self, connector: str = "records") -> Execution:
        """A run of a connector, to its end."""
        request = RunRequest(self.tenant_id, uuid4(), connector, {}, wait_s=20)
        return await self.runs.executions.run(request)

    def called(self, path: str) -> int:
        """How many calls the sandbox got there."""
        return sum(call.path == path for call in self.runs.box.calls)

    async def report(self) -> None:
        """Hand on what was counted."""
        await flush(self.uses, self.registry.report_credential_use)


def connector(name: str, path: str, integration: str = "api", **step: object) -> Document:
    said = {"name": "read", "integration": integration, "method": "GET", "path": path, **step}
    return document("Connector", name, steps=[said])


def secret_parts(**values: str) -> dict[str, object]:
    return {part: {"plain": b64encode(value.encode()).decode()} for part, value in values.items()}


def account(tokens: Tokens, **spec: object) -> Document:
    assert tokens.refresh_token is not None
    values = secret_parts(access_token=tokens.access_token, refresh_token=tokens.refresh_token)
    return document("Credential", "account", type="oauth2", app="app", values=values, **spec)


@pytest.fixture
async def acme(registry_database: Database, executor_database: Database) -> AsyncIterator[Acme]:
    service = RunningRegistry(registry_database, egress_allow=LOCAL)
    await service.prepare()
    await service.start()
    await service.apply("acme", document("Tenant", "acme", display_name="Acme"))
    tenant_id, uses = await service.tenant_id("acme"), Uses()
    async with (
        execution_bench(executor_database, tenant_id) as runs,
        open_channel(service.target, key=service.service_key) as channel,
    ):
        registry = Registry(channel, uses)
        made = Acme(service, registry, runs, uses, runs.box.identity.issue("ada"))
        runs.executions = Executions(runs.database, registry, runs.changes, NoRoom())
        runs.running = Running(
            runs.database, registry, Calling(registry, runs.client, uses), CATALOG,
            runs.recorder, runs.changes, runs.evaluator,
        )  # fmt: skip
        await made.want(*wanted(made))
        async with runs.working(), background(invalidations.follow(registry, registry.forget)):
            yield made
    await service.stop()


def wanted(acme: Acme) -> list[Document]:
    identity, url = acme.runs.box.identity, acme.runs.box.url
    client = secret_parts(
        client_id=identity.client_id, client_secret=identity.client_secret.reveal_text()
    )
    return [
        document("Credential", "app", type="oauth2_client", provider="http", values=client,
                 config={"token_url": f"{url}/oauth/token"}),
        account(acme.tokens),
        document("Credential", "token", type="bearer", values=secret_parts(token=TOKEN)),
        document("Integration", "api", provider="http", credential="account", base_url=url),
        document("Integration", "github", provider="github", credential="token", base_url=url),
        connector("records", RECORDS, idempotent=False),
        connector("issue", ISSUE, "github"),
    ]  # fmt: skip


async def soon(holds: Callable[[], Awaitable[object]], seconds: float = 1.0) -> None:
    """Wait until something holds, but no longer."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.01)


async def test_a_credential_that_is_revoked_is_dropped_within_a_second(acme: Acme) -> None:
    async def refused() -> bool:
        try:
            await acme.registry.resolve(acme.tenant_id, "token", 1)
        except FailedPrecondition as error:
            return error.code == "CREDENTIAL_REVOKED"
        return False

    async def remembered() -> bool:
        asked = acme.service.calls["ResolveCredential"]
        return not await refused() and acme.service.calls["ResolveCredential"] == asked

    assert (await acme.run("issue")).state == "success"
    await soon(remembered)
    await revoked(acme.service, "acme", "token")
    await soon(refused)
    found = await acme.run("issue")
    assert (found.state, found.failure_reason) == ("failed", "CREDENTIAL_UNAVAILABLE")
    assert "credential token was revoked" in found.failure_message
    assert acme.called(ISSUE) == 1


async def test_a_call_whose_token_has_ended_is_made_once_more_with_a_new_one(acme: Acme) -> None:
    acme.runs.box.identity.revoke_token(acme.tokens.access_token)
    found = await acme.run()
    assert (found.state, found.failure_message) == ("success", "")
    # Not even a call that is not safe to repeat is counted as tried twice.
    assert [each.attempts for each in found.steps] == [1]
    assert acme.called(RECORDS) == 2
    assert (await acme.run()).state == "success"
    assert acme.called(RECORDS) == 3 and acme.service.calls["RefreshCredential"] == 1


async def test_an_endpoint_is_shown_a_token_of_its_own_provider_and_a_newer_one_when_it_ends(
    acme: Acme,
) -> None:
    identity = acme.runs.box.identity
    async with delivery_bench(acme.runs.database, acme.tenant_id, registry=acme.registry) as out:
        await acme.want(
            *wanted(acme),
            document("Credential", "machine", type="oauth2", app="app", grant="client_credentials"),
            document("Credential", "pair", type="webhook_secret", generate="ed25519"),
            document("WebhookEndpoint", "out", direction="OUTBOUND", url=out.receiver.url,
                     secret="pair", auth="OAUTH2", credential="machine",
                     delivery={"retries": ["0.05s"]}),
            document("Subscription", "all", deliver_to="out"),
        )  # fmt: skip
        async with out.working():
            await out.publish()
            await out.until(lambda found: [d.state for d in found] == ["success"])
            (first,) = out.receiver.got
            token = first.headers["authorization"].removeprefix("Bearer ")
            assert identity.holder(token) is not None
            identity.revoke_token(token)
            out.receiver.answer(401)
            await out.publish()
            await out.until(lambda found: [d.state for d in found] == ["success"] * 2)
    _, refused, taken = out.receiver.got
    assert refused.headers["authorization"] == first.headers["authorization"]
    newer = taken.headers["authorization"].removeprefix("Bearer ")
    assert newer != token and identity.holder(newer) is not None
    # What signs it, the registry has made, and everybody may see what verifies it.
    public = Secret((await shown(acme.service, "acme", "pair")).public_key)
    verify("standard_webhooks", [public], taken.headers, taken.body, time.time())


async def test_however_many_calls_are_refused_at_once_one_asks_for_a_new_token(acme: Acme) -> None:
    acme.runs.box.identity.revoke_token(acme.tokens.access_token)
    found = await asyncio.gather(*(acme.run() for _ in range(PARALLEL)))
    assert {each.state for each in found} == {"success"}
    grants = [each.grant for each in acme.runs.box.identity.requests]
    assert grants == ["refresh_token"] and acme.service.calls["RefreshCredential"] == 1


async def test_a_refusal_stands_where_a_new_token_is_refused_too(acme: Acme) -> None:
    acme.runs.box.faults.add(Fault(path=RECORDS, kind="status", status=401, times=2))
    found = await acme.run()
    assert (found.state, found.failure_reason) == ("failed", "AUTH")
    assert acme.called(RECORDS) == 2 and acme.service.calls["RefreshCredential"] == 1


async def test_a_refusal_of_what_cannot_be_had_anew_stands(acme: Acme) -> None:
    acme.runs.box.faults.add(Fault(path=ISSUE, kind="status", status=401))
    found = await acme.run("issue")
    assert (found.state, found.failure_reason) == ("failed", "AUTH")
    assert acme.called(ISSUE) == 1 and acme.service.calls["RefreshCredential"] == 0


async def test_an_account_that_must_be_connected_again_is_said_so(acme: Acme) -> None:
    acme.runs.box.identity.revoke_family("ada")
    for _ in range(2):
        found = await acme.run()
        assert (found.state, found.failure_reason) == ("failed", "CREDENTIAL_UNAVAILABLE")
        assert "must be connected again" in found.failure_message


async def test_a_credential_is_sent_nowhere_but_where_it_may_go(acme: Acme) -> None:
    async def permitted() -> bool:
        return (await acme.run()).state == "success"

    await acme.want(account(acme.tokens, allowed_endpoints=[f"{acme.runs.box.url}/oauth/other"]))
    found = await acme.run()
    assert (found.state, found.failure_reason) == ("failed", "ENDPOINT_NOT_ALLOWED")
    assert acme.called(RECORDS) == 0
    # Nothing of its values has changed.
    await acme.want(account(acme.tokens, allowed_endpoints=[acme.runs.box.url + RECORDS]))
    await soon(permitted, 5)


async def test_the_registry_is_told_how_credentials_are_used(acme: Acme) -> None:
    assert (await acme.run("issue")).state == "success"
    acme.runs.box.faults.add(Fault(path=ISSUE, kind="status", status=404, retry_after=7))
    assert (await acme.run("issue")).state == "failed"
    await acme.report()
    told = await shown(acme.service, "acme", "token")
    assert told.status == told.STATUS_VALID
    assert [(window.uses, window.errors) for window in told.usage] == [(2, 1)] * 2
    assert told.validate_time.seconds and told.use_time.seconds >= told.validate_time.seconds
    assert dict(told.rate_limit) == {"retry-after": "7"}

    acme.runs.box.faults.add(Fault(path=ISSUE, kind="status", status=401))
    await acme.run("issue")
    await acme.report()
    told = await shown(acme.service, "acme", "token")
    assert told.status == told.STATUS_INVALID


async def test_uses_and_seals_wait_for_a_registry_that_is_away(
    acme: Acme, admin: psycopg.AsyncConnection[Any]
) -> None:
    async def seals() -> int:
        rows = await (await admin.execute("SELECT wraps FROM registry.data_keys")).fetchall()
        return int(sum(count for (count,) in rows))

    await acme.report()
    before = await seals()
    await acme.run("issue")
    await acme.service.stop()
    await acme.report()
    await acme.run("issue")
    await acme.report()
    await acme.service.start()

    async def taken() -> bool:
        await acme.report()
        return await seals() > before

    await soon(taken, 10)
    told = await shown(acme.service, "acme", "token")
    assert [(window.uses, window.errors) for window in told.usage] == [(2, 0)] * 2
    # A run that has one step and no output seals what it begins with.
    assert await seals() == before + 2
    assert acme.uses.drain() == []


async def test_a_run_goes_on_when_its_tenant_gets_another_key(acme: Acme) -> None:
    steps = [
        {"name": "first", "integration": "github", "method": "GET", "path": ISSUE,
         "extract": {"title": "$.title"}},
        {"name": "second", "integration": "github", "method": "GET", "path": "/echo",
         "query": {"title": "${steps.first.output.title}"}, "extract": {"got": "$.query.title"},
         "retry": {"base": "1s", "cap": "1s"}},
    ]  # fmt: skip
    output = [{"source": "steps.second.output.got", "target": "got"}]
    await acme.want(document("Connector", "two", steps=steps, output=output))
    acme.runs.box.faults.add(Fault(path="/echo", kind="status", status=503))
    request = RunRequest(acme.tenant_id, uuid4(), "two", {}, request_id=uuid4())
    begun = await acme.runs.executions.run(request)
    await until(
        acme.runs, begun.id, lambda run: len(run.steps) == 2 and run.steps[1].failure_reason
    )

    await tenant_key_replaced(acme.service, "acme")

    async def has_another() -> bool:
        key = await acme.registry.lease_key(acme.tenant_id)
        return key.data_key_id != begun.data_key_id

    await soon(has_another)
    found = await acme.runs.end_of(begun.id)
    assert (found.state, found.failure_message) == ("success", "")
    again = await acme.runs.executions.run(request)
    assert again.output == {"got": "Issue 7 of acme/shop"}


async def test_who_keeps_what_it_seals_longer_than_its_key_is_warned_once(
    acme: Acme, caplog: pytest.LogCaptureFixture
) -> None:
    opens = timedelta(days=200)
    async with open_channel(acme.service.target, key=acme.service.service_key) as channel:
        for kept, warnings in ((opens - timedelta(days=1), 0), (opens + timedelta(days=1), 1)):
            caplog.clear()
            registry = Registry(channel, kept=kept)
            key = await registry.lease_key(acme.tenant_id)
            await registry.lease_key(acme.tenant_id, key.data_key_id)
            registry.forget(Invalidation("everything"))
            await registry.lease_key(acme.tenant_id)
            told = [each for each in caplog.messages if "RETIRED_KEY_DAYS" in each]
            assert len(told) == warnings
