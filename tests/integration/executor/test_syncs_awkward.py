"""Transfers of awkward answers, of lists that are others by now, and beside resets."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from services.chassis import strict_json
from services.chassis.database import Database
from services.chassis.errors import Aborted, DeadlineExceeded, Internal, NotFound, TenonError
from services.executor.audit.outbox import Doer
from services.executor.calling import Order
from services.executor.engine.work import Claimed, Later, Outcome
from services.executor.store.sync_pages import SyncRun
from services.executor.syncs.reading import RecordQuery
from services.executor.syncs.syncing import Syncing, Transfer
from services.providers.client import ProviderResponse
from services.providers.failures import Failure
from services.sandbox.faults import Fault
from services.sandbox.server import sandbox
from tests.integration.executor.execution_bench import CATALOG, TOKEN
from tests.integration.executor.lane_bench import pass_time
from tests.integration.executor.sync_bench import ISSUES, REPO, STREAM, SyncBench, sync_bench

Admin = psycopg.AsyncConnection[Any]
ADA = Doer(uuid4(), "user", "Ada")
URL = "https://api.github.example/repos/acme/shop/issues"


@dataclass
class Scripted:
    """A provider that answers by script: bodies of pages, or the status of a refusal."""

    answers: list[Any] = field(default_factory=list)

    async def credential(self, *_: Any) -> None:
        """None is needed."""

    async def send(self, order: Order, timeout_s: float) -> ProviderResponse:
        said = self.answers.pop(0) if self.answers else []
        if isinstance(said, int):
            return ProviderResponse(URL, said, {}, b"", Failure("transient", said))
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        return ProviderResponse(URL, 200, {}, body, None)


class OnePage(Syncing):
    """Has its turn over after each page."""

    async def call(self, claimed: Claimed, prepared: Any) -> Outcome:
        if not isinstance(prepared, Transfer):
            return await super().call(claimed, prepared)
        self._turn_s = 0.0
        await super().call(claimed, prepared)
        return await self._page(claimed, prepared) or Later(delay_s=0)


@dataclass
class Bench(SyncBench):
    """The bench, with a provider that answers by script where there is one."""

    script: Scripted | None = None
    kind: type[Syncing] = Syncing

    @property
    def syncing(self) -> Syncing:
        if self.script is None:
            return super().syncing
        calling: Any = self.script
        return self.kind(
            self.database, self.vault, calling, CATALOG, self.recorder, Random(1), self.turn_s
        )

    def answer(self, *answers: Any) -> None:
        self.script = Scripted(list(answers))


def issue(key: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": key, "updated_at": "2026-01-01T00:00:00Z", **more}


@pytest.fixture
async def bench(executor_database: Database, tenant_ids: tuple[UUID, UUID]) -> AsyncIterator[Bench]:
    async with sync_bench(executor_database, tenant_ids[0]) as made:
        found = Bench(made.database, made.tenant_id, made.box, made.client)
        await found.want("issues")
        yield found


async def soon(bench: Bench, admin: Admin, run: SyncRun) -> SyncRun:
    """A transfer once it has ended, whatever it waits for."""
    async with bench.working(), asyncio.timeout(60):
        while True:
            await pass_time(admin, 1000)
            found = await bench.syncs.get(bench.tenant_id, run.id)
            if found.ended:
                return found
            await asyncio.sleep(0.1)


async def test_a_text_that_was_cut_inside_a_character_ends_no_transfer(
    bench: Bench, admin: Admin
) -> None:
    body = b'[{"id": 1, "updated_at": "2026-01-01T00:00:00Z", "title": "cut \\ud83d"}]'
    bench.answer(*[body] * 10)
    ended = await soon(bench, admin, await bench.trigger())
    assert ended.state == "success" or ended.failure_reason == "STREAM_UNREADABLE"


async def test_a_cursor_that_cannot_be_kept_is_said_so(bench: Bench, admin: Admin) -> None:
    page = [issue(updated_at="2026-01-01\0")]
    bench.answer(*[page] * 10)
    ended = await soon(bench, admin, await bench.trigger())
    assert ended.failure_reason == "STREAM_UNREADABLE"


async def test_what_is_told_of_a_record_is_json(bench: Bench, admin: Admin) -> None:
    bench.answer(b'[{"id": 1, "updated_at": "2026-01-01T00:00:00Z", "value": 1e400}]')
    ended = await soon(bench, admin, await bench.trigger())
    if ended.state == "success":
        page = await bench.records.page(RecordQuery(bench.tenant_id, STREAM))
        assert strict_json.parse(page.records[0].data)


async def test_a_first_transfer_that_cannot_begin_is_counted(bench: Bench) -> None:
    await bench.want("issues", provider="http", credential="", config={})
    run = await bench.transferred()
    assert (run.state, run.failure_reason) == ("failed", "STREAM_UNKNOWN")
    stream = await bench.stream()
    assert (stream.failures, stream.last_failure_reason) == (1, "STREAM_UNKNOWN")


async def reset_while_all_is_brought(bench: Bench) -> None:
    run = await bench.trigger(whole=True)
    bench.box.faults.add(Fault(path=ISSUES, kind="slow", delay_s=1))
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "running")
        await bench.syncs.reset(bench.tenant_id, STREAM, ADA)
        await bench.until(run.id, lambda found: found.ended)


async def test_after_a_reset_nothing_is_believed_whatever_was_under_way(bench: Bench) -> None:
    await bench.transferred()
    await reset_while_all_is_brought(bench)
    bench.box.state.transferred |= {(REPO, number) for number in range(1, 251)}
    run = await bench.transferred()
    assert (run.state, run.deleted) == ("success", 250)


async def test_the_next_one_after_a_reset_brings_all_also_where_it_waited_before(
    bench: Bench,
) -> None:
    await bench.transferred()
    run, next_one = await bench.trigger(), await bench.trigger()
    bench.box.faults.add(Fault(path=ISSUES, kind="slow", delay_s=1))
    async with bench.working():
        await bench.until(run.id, lambda found: found.state == "running")
        await bench.syncs.reset(bench.tenant_id, STREAM, ADA)
        ended = await bench.until(next_one.id, lambda found: found.ended)
    assert ended.whole and ended.covered_by is None


async def test_a_stream_that_is_another_list_by_now_is_brought_whole(
    executor_database: Database, tenant_ids: tuple[UUID, UUID]
) -> None:
    async with (
        sandbox(TOKEN, repos={REPO: 5, "acme/other": 3}) as box,
        sync_bench(executor_database, tenant_ids[0]) as bench,
    ):
        bench.box = box
        await bench.want("issues")
        box.state.change_issue(REPO, 1)
        await bench.transferred()
        await bench.want("issues", config={"owner": "acme", "repo": "other"})
        await bench.transferred()
        titles = (await bench.kept()).keys()
        assert {f"Issue {n} of acme/other" for n in (1, 2, 3)} <= titles


async def test_a_long_transfer_does_not_die_of_errors_that_it_got_over(
    bench: Bench, admin: Admin
) -> None:
    bench.kind = OnePage
    pages = [[issue(n, updated_at=f"2026-01-{n + 1:02}T00:00:00Z")] for n in range(12)]
    bench.answer(*[each for page in pages for each in (503, page)])
    await whole_list(bench, len(pages))
    ended = await soon(bench, admin, await bench.trigger())
    assert (ended.state, ended.created) == ("success", 12)


async def whole_list(bench: Bench, count: int) -> None:
    """Each page but the last one names another one."""
    script = bench.script
    assert script is not None
    send, left = script.send, [count]

    async def sent(order: Order, timeout_s: float) -> ProviderResponse:
        answer = await send(order, timeout_s)
        left[0] -= answer.failure is None
        more = {"link": f'<{order.integration.base_url}/next>; rel="next"'} if left[0] > 0 else {}
        return ProviderResponse(answer.url, answer.status, more, answer.body, answer.failure)

    script.send = sent  # type: ignore[method-assign]


async def test_one_that_ends_says_why_also_where_a_credential_does_not_open(
    bench: Bench, admin: Admin
) -> None:
    bench.vault.fault = Internal("the sealed value does not open here")
    ended = await soon(bench, admin, await bench.trigger())
    assert ended.state == "failed" and ended.failure_reason
    assert (await bench.stream()).last_failure_reason


async def test_a_stream_that_goes_while_it_is_reset_is_not_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = bench.syncs.streams

    async def gone(*asked: Any) -> Any:
        await bench.want()
        return await streams(*asked)

    monkeypatch.setattr(bench.syncs, "streams", gone)
    with pytest.raises(NotFound):
        await bench.syncs.reset(bench.tenant_id, STREAM, ADA)


async def test_a_page_that_never_comes_ends_it_with_its_reason(bench: Bench, admin: Admin) -> None:
    bench.answer(*[503] * 20)
    ended = await soon(bench, admin, await bench.trigger())
    assert (ended.state, ended.failure_reason) == ("failed", "TRANSIENT")
    assert bench.script is not None
    assert len(bench.script.answers) == 20 - 7, "one try, and one after each of the six waits"
    assert (await bench.stream()).last_failure_reason == "TRANSIENT"


async def test_records_are_told_in_as_many_pages_as_their_length_takes(
    bench: Bench, admin: Admin
) -> None:
    long = "x" * 2**20
    bench.answer([issue(n, body=long) for n in range(5)], [])
    await soon(bench, admin, await bench.trigger())
    keys, token = list[str](), ""
    while True:
        page = await bench.records.page(RecordQuery(bench.tenant_id, STREAM, page_token=token))
        assert sum(len(each.data) for each in page.records) < 4 * 2**20
        keys += [each.key for each in page.records]
        token = page.next_page_token
        if not token:
            break
    assert keys == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("fault", [DeadlineExceeded("it took too long"), Aborted("try again")])
async def test_what_passes_by_itself_ends_no_transfer(
    bench: Bench, admin: Admin, fault: TenonError
) -> None:
    run = await bench.trigger()
    bench.vault.fault = fault
    async with bench.working():
        await asyncio.wait_for(bench.vault.asked.wait(), 10)
        bench.vault.fault = None
    assert (await soon(bench, admin, run)).state == "success"


async def test_one_that_fails_too_often_by_our_fault_says_so(bench: Bench, admin: Admin) -> None:
    bench.vault.fault = DeadlineExceeded("it took too long")
    ended = await soon(bench, admin, await bench.trigger())
    assert (ended.state, ended.failure_reason) == ("failed", "INTERNAL")
