"""A webhook is verified, kept once, and routed; whatever is wrong with one looks the same outside."""

import asyncio
import gzip
import hashlib
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from services.chassis.database import Statement
from services.chassis.envelope import Unsealable
from services.chassis.failpoints import Arming, Failpoint
from services.chassis.invalidation import Invalidation
from services.chassis.secret import Secret
from services.executor.events import accepting
from services.executor.ingress import intake, server
from services.executor.store import events as store
from services.providers.signatures import sign
from services.sandbox.sender import webhook_headers
from tests.integration.executor.credential_calls import rotated, tenant_key_replaced
from tests.integration.executor.ingress_house import (
    BODY,
    SECRET,
    House,
    secret_document,
    wanted,
)
from tests.integration.executor.running_registry import RunningRegistry, document

EXAMPLES = Path(__file__).parents[2] / "fixtures" / "github_webhooks.json.gz"
OTHER = Secret("another secret")


def examples() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(EXAMPLES.read_bytes()))["deliveries"]
    return found


async def test_every_example_of_github_is_accepted_and_kept_byte_for_byte(house: House) -> None:
    deliveries = examples()
    assert {each["event"] for each in deliveries} == {"push", "pull_request", "issues", "release"}
    sent: dict[UUID, tuple[str, bytes]] = {}
    for each in deliveries:
        body = json.dumps(each["payload"], indent=1, ensure_ascii=False).encode()
        status, answer = await house.send(body, each["event"])
        assert status == 202
        action = each["payload"].get("action")
        sent[UUID(answer["event"])] = (
            f"{each['event']}.{action}" if action else each["event"],
            body,
        )
    types = dict(await house.rows("SELECT id, type FROM executor.events"))
    assert {kept.id: (types[kept.id], kept.body) for kept in await house.events()} == sent
    assert len(sent) == len(deliveries)


async def test_a_redelivery_is_one_event_and_one_run_with_the_same_answer(house: House) -> None:
    first = await house.send(delivery_id="d-1")
    assert first[0] == 202
    assert await house.send(delivery_id="d-1") == first
    assert await house.send(delivery_id="d-2") != first
    assert await house.count("events") == 2
    assert await house.count("executions") == 4


async def test_what_is_over_the_quota_leaves_nothing_and_is_taken_when_it_is_sent_again(
    house: House,
) -> None:
    limits = {"work_per_hour": 2}
    await house.want(document("Tenant", "acme", display_name="Acme", limits=limits))
    first = await house.send(delivery_id="d-1")
    assert first[0] == 202
    signed = webhook_headers("issues", BODY, SECRET, "d-2")
    status, answer, headers = await house.post("/v1/acme/hook", BODY, signed)
    assert (status, answer) == (429, b'{"error": "the quota is used up"}')
    wait_s = int(headers["retry-after"])
    assert 3500 < wait_s <= 3600
    assert await house.count("events") == await house.count("event_receipts") == 1
    # What is known costs nothing, and neither does what starts nothing.
    assert await house.send(delivery_id="d-1") == first
    assert (await house.send(b'{"action":"closed"}', delivery_id="d-3"))[0] == 202
    # A stranger does not learn how busy a tenant is.
    assert (await house.send(delivery_id="d-4", secret=OTHER))[0] == 404

    await house.admin.execute(
        "UPDATE executor.tenant_lanes SET quota_at = quota_at - make_interval(secs => %s)",
        [wait_s],
    )
    assert (await house.send(delivery_id="d-2"))[0] == 202
    assert await house.count("executions") == 4


async def test_a_tenant_of_which_too_much_is_under_way_is_told_to_come_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_OF_A_TENANT", 0)
    signed = webhook_headers("issues", BODY, SECRET, "d-1")
    status, answer, headers = await house.post("/v1/acme/hook", BODY, signed)
    assert (status, answer) == (429, b'{"error": "too much is under way"}')
    assert headers["retry-after"] == "1"
    # A stranger does not learn how busy a tenant is.
    assert (await house.send(secret=OTHER))[0] == 404


async def test_twenty_deliveries_of_one_id_at_once_are_one_event(house: House) -> None:
    answers = await asyncio.gather(*(house.send(delivery_id="d-1") for _ in range(20)))
    assert {status for status, _ in answers} == {202}
    assert len({answer["event"] for _, answer in answers}) == 1
    assert await house.count("events") == 1
    assert await house.count("executions") == 2


async def test_without_a_usable_delivery_id_the_body_says_what_is_the_same(house: House) -> None:
    signed = sign("github_sha256", SECRET, BODY, time.time(), "x")
    for header in ({}, {"X-GitHub-Delivery": "d" * 300}, {"X-GitHub-Delivery": "two words"}):
        status, _, _ = await house.post(
            "/v1/acme/hook", BODY, {"X-GitHub-Event": "issues", **header, **signed}
        )
        assert status == 202
    ((key,),) = await house.rows("SELECT delivery_key FROM executor.events")
    assert key == f"sha256:{hashlib.sha256(BODY).hexdigest()}"


async def test_whatever_is_wrong_is_refused_alike_and_leaves_nothing(house: House) -> None:
    good = webhook_headers("issues", BODY, SECRET, "d-1")
    unsigned = {k: v for k, v in good.items() if k != "X-Hub-Signature-256"}
    refused = [
        ("/v1/acme/hook", BODY.replace(b"7", b"8"), good),
        ("/v1/acme/hook", BODY + b"\n", good),
        ("/v1/acme/hook", BODY, unsigned),
        ("/v1/acme/hook", BODY, {**unsigned, "X-Hub-Signature-256": "sha256="}),
        ("/v1/acme/hook", BODY, {**unsigned, "X-Hub-Signature": "sha1=" + "0" * 40}),
        ("/v1/acme/hook", BODY, webhook_headers("issues", BODY, OTHER, "d-1")),
        ("/v1/acme/nothing", BODY, good),
        ("/v1/nobody/hook", BODY, good),
        (f"/v1/{house.tenant_id}/hook", BODY, good),
        ("/v1/acme/off", BODY, good),
        ("/v1/acme/sleepy", BODY, good),
        ("/v1/acme/mute", BODY, good),
        ("/v1/acme/ho%00ok", BODY, good),
        ("/v1/ac%27me/hook", BODY, good),
        ("/v1/%F0%9F%A6%86/hook", BODY, good),
        ("/v1/acme/hook/more", BODY, good),
    ]
    answers = [await house.post(*each) for each in refused]
    assert answers[0][0] == 404
    assert answers[0][1] == b'{"error": "not found"}'
    assert all(answer == answers[0] for answer in answers)
    for table in ("events", "event_receipts", "executions", "work"):
        assert await house.count(table) == 0
    assert (await house.send())[0] == 202


async def test_a_secret_that_was_rotated_away_is_refused_at_once(house: House) -> None:
    assert (await house.send())[0] == 202
    await house.want(secret_document(OTHER, rotation={"overlap": "0s"}))
    assert (await house.send())[0] == 404
    assert (await house.send(secret=OTHER))[0] == 202


async def test_a_disabled_tenant_answers_like_an_unknown_one(house: House) -> None:
    await house.want(document("Tenant", "acme", display_name="Acme", enabled=False))
    assert await house.send() == (404, {"error": "not found"})


async def test_matching_subscriptions_start_their_connectors(house: House) -> None:
    _, answer = await house.send()
    runs = await house.rows(
        "SELECT subscription, connector, state, trigger_kind, trigger_id, event_type"
        " FROM executor.executions ORDER BY subscription"
    )
    event = UUID(answer["event"])
    expected = ("triage", "pending", "event", event, "issues.opened")
    assert runs == [("numbered", *expected), ("opened", *expected)]
    assert await house.count("work") == 2

    await house.send(b'{"action":"closed","issue":{"number":8}}')
    await house.send(b"{}", event="push")
    assert await house.count("events") == 3
    assert await house.count("executions") == 2


async def test_a_filter_may_go_through_lists_and_one_without_end_takes_nothing(
    house: House,
) -> None:
    about_labels = "event.payload.labels.exists(each, each.name == 'bug')"
    endless = "event.payload.l.all(x, event.payload.l.all(y, event.payload.l.size() + x + y > 0))"
    filters = {"labelled": about_labels, "endless": endless}
    await house.want(
        *wanted(),
        *(
            document("Subscription", name, endpoint="hook", connector="triage", filter=text)
            for name, text in filters.items()
        ),
    )
    body = json.dumps({"labels": [{"name": "p1"}, {"name": "bug"}], "l": list(range(400))})
    status, _ = await house.send(body.encode(), event="push")
    assert status == 202
    assert await house.rows("SELECT subscription FROM executor.executions") == [("labelled",)]


async def test_a_body_that_is_not_json_is_kept_and_its_header_says_the_type(house: House) -> None:
    for body in (b"payload=%7B%7D", b"{", b"", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000):
        assert (await house.send(body))[0] == 202
    kept = await house.rows("SELECT type, body FROM executor.events")
    assert {row[0] for row in kept} == {"issues"}
    assert len(kept) == 6


async def test_an_event_type_that_is_no_word_is_unknown(house: House) -> None:
    assert (await house.send(b'{"action": "a\\u0000b"}'))[0] == 202
    assert (await house.send(b'{"action": {"deep": 1}}'))[0] == 202
    kept = await house.rows("SELECT type FROM executor.events ORDER BY id")
    assert kept == [("unknown",), ("issues",)]


async def test_what_is_packed_is_verified_and_kept_packed(house: House) -> None:
    packed = gzip.compress(BODY)
    headers = {**webhook_headers("issues", packed, SECRET, "d"), "Content-Encoding": "gzip"}
    status, _, _ = await house.post("/v1/acme/hook", packed, headers)
    assert status == 202
    assert [kept.body for kept in await house.events()] == [packed]


async def test_only_headers_that_describe_the_delivery_are_kept(house: House) -> None:
    headers = {
        **webhook_headers("issues", BODY, SECRET, "d-1"),
        "Authorization": "Bearer tnk_canary",
        "Cookie": "session=canary",
        "X-Api-Key": "canary",
        "Content-Length": str(len(BODY)),
        "User-Agent": "caf\udce9",
    }
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["POST /v1/acme/hook HTTP/1.1", "Host: here", *lines, "", ""])
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(house.url).port)
    writer.write(head.encode(errors="surrogateescape") + BODY)
    assert b" 202 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    (kept,) = await house.events()
    assert kept.headers == {
        "content-type": "application/json",
        "user-agent": "caf?",
        "x-github-event": "issues",
        "x-github-delivery": "d-1",
    }


async def test_nobody_reads_an_event_in_the_table_and_whoever_has_the_key_does(
    house: House,
) -> None:
    body, agent = b'{"name":"canary-of-a-body"}', {"User-Agent": "canary-of-a-header"}
    headers = {**webhook_headers("issues", body, SECRET, "d-1"), **agent}
    assert (await house.post("/v1/acme/hook", body, headers))[0] == 202
    ((row,),) = await house.rows("SELECT e::text FROM executor.events e")
    at_rest = row.encode() + bytes.fromhex("".join(re.findall(r"\\\\x([0-9a-f]+)", row)))
    assert b"canary" not in at_rest
    (kept,) = await house.events()
    assert (kept.body, kept.headers["user-agent"]) == (body, "canary-of-a-header")

    other = await house.send(delivery_id="d-2")
    stranger = await store.find(house.database, house.tenant_id, UUID(other[1]["event"]))
    assert stranger is not None
    key = await house.registry.lease_key(house.tenant_id, stranger.data_key_id)
    with pytest.raises(Unsealable):
        # It was moved to another row.
        accepting.opened(replace(stranger, id=kept.id), key)


async def test_events_open_after_their_tenant_has_got_another_key(house: House) -> None:
    assert (await house.send())[0] == 202
    await tenant_key_replaced(house.service, "acme")
    house.registry.forget(Invalidation("tenant", str(house.tenant_id)))
    assert (await house.send())[0] == 202
    assert await house.rows("SELECT count(DISTINCT data_key_id) FROM executor.events") == [(2,)]
    assert [kept.body for kept in await house.events()] == [BODY, BODY]


async def test_payloads_in_the_clear_are_kept_as_they_come_and_read_alike(house: House) -> None:
    house.inbound._seal = False
    assert (await house.send())[0] == 202
    ((body, key_id),) = await house.rows("SELECT body, data_key_id FROM executor.events")
    assert (bytes(body), key_id) == (BODY, None)
    house.inbound._seal = True
    assert (await house.send())[0] == 202
    assert [kept.body for kept in await house.events()] == [BODY, BODY]


async def test_while_it_goes_on_the_secret_before_verifies_too(house: House) -> None:
    await rotated(house.service, "acme", "hook-secret", secret=OTHER)
    house.registry.forget(Invalidation("credential", f"{house.tenant_id}/hook-secret"))
    assert (await house.send(secret=OTHER))[0] == 202
    assert (await house.send(secret=SECRET))[0] == 202
    assert (await house.send(secret=Secret("neither")))[0] == 404


async def test_a_secret_is_used_by_who_signs_with_it_and_by_no_stranger(house: House) -> None:
    assert (await house.send(secret=OTHER))[0] == 404
    assert house.uses.drain() == []
    assert (await house.send())[0] == 202
    (used,) = house.uses.drain()
    (use,) = used.uses.values()
    assert (use.uses, use.errors, use.version) == (1, 0, 1) and use.last_success


async def test_a_body_over_the_limit_is_refused_announced_or_not(house: House) -> None:
    largest = b'"' + b"a" * (server.LARGEST_BODY - 2) + b'"'
    headers = webhook_headers("issues", largest, SECRET, "d-1")
    assert (await house.post("/v1/acme/hook", BytesIO(largest), headers))[0] == 202
    too_large = largest + b" "

    async def unannounced() -> AsyncIterator[bytes]:
        yield too_large[:700_000]
        yield too_large[700_000:]

    headers = webhook_headers("issues", too_large, SECRET, "d-2")
    for body in (BytesIO(too_large), unannounced()):
        status, _, _ = await house.post("/v1/acme/hook", body, headers)
        assert status == 413
    assert await house.count("events") == 1


async def test_a_body_that_never_ends_is_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.1)
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    status, _, _ = await house.post("/v1/acme/hook", slow(), {})
    assert status == 408


async def test_with_the_registry_down_known_endpoints_go_on_and_others_are_asked_again(
    house: House, registry_service: RunningRegistry
) -> None:
    assert (await house.send())[0] == 202
    await house.want(
        document("Credential", "fresh", type="webhook_secret",
                 values={"secret": {"plain": b64encode(OTHER.reveal()).decode()}}),
        document("WebhookEndpoint", "late", integration="github", secret="fresh"),
    )  # fmt: skip
    await registry_service.stop()
    assert (await house.send())[0] == 202
    late = webhook_headers("issues", BODY, OTHER, "d")
    status, body, headers = await house.post("/v1/acme/late", BODY, late)
    assert (status, headers["retry-after"]) == (503, "5")
    assert json.loads(body) == {"error": "try again soon"}
    await registry_service.start()

    async def accepted() -> bool:
        return (await house.post("/v1/acme/late", BODY, late))[0] == 202

    async with asyncio.timeout(20):
        while not await accepted():
            await asyncio.sleep(0.1)
    assert await house.count("events") == 3


@pytest.mark.parametrize(
    ("place", "kept"), [("BEFORE_COMMIT", 0), ("AFTER_COMMIT", 1)], ids=["before", "after"]
)
async def test_an_interruption_at_the_commit_is_all_or_nothing_and_a_redelivery_mends_it(
    house: House, monkeypatch: pytest.MonkeyPatch, place: str, kept: int
) -> None:
    dying = Failpoint(f"ingress.{place.lower()}", Arming("error", 1, ""))
    monkeypatch.setattr(intake, place, dying)
    assert await house.send(delivery_id="d-1") == (500, {"error": "internal error"})
    assert await house.count("events") == kept
    assert await house.count("executions") == 2 * kept
    assert (await house.send(delivery_id="d-1"))[0] == 202
    assert await house.count("events") == 1
    assert await house.count("executions") == 2


async def test_a_fault_of_ours_shows_no_trace_and_no_secret(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("canary /srv/services")

    monkeypatch.setattr(house.registry, "lease_key", broken)
    assert await house.send() == (500, {"error": "internal error"})


async def test_other_paths_and_methods_say_little(house: House) -> None:
    async with house.session.get(f"{house.url}/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "serving"})
    async with house.session.get(f"{house.url}/v1/acme/hook") as answer:
        there = answer.status, await answer.read()
    async with house.session.get(f"{house.url}/v1/nobody/hook") as answer:
        assert (answer.status, await answer.read()) == there
    async with house.session.post(f"{house.url}/v2") as answer:
        assert (answer.status, await answer.json()) == (404, {"error": "not found"})


async def test_events_are_seen_inside_their_tenant_alone(
    house: House, executor_conninfos: tuple[Secret, Secret]
) -> None:
    await house.send()
    tenant, system = executor_conninfos
    for tenant_id, expected in ((house.tenant_id, 1), (UUID(int=5), 0)):
        async with house.database.tenant(tenant_id) as tx:
            for table in ("events", "event_receipts"):
                rows = await tx.all(Statement(text(f"SELECT 1 FROM executor.{table}")))
                assert len(rows) == expected
    async with await psycopg.AsyncConnection.connect(tenant.reveal_text()) as raw:
        assert await (await raw.execute("SELECT 1 FROM executor.events")).fetchall() == []
    async with await psycopg.AsyncConnection.connect(system.reveal_text()) as raw:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await raw.execute("SELECT 1 FROM executor.events")
