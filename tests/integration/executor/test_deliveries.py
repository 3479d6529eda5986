"""Events reach endpoints: signed, tried again as long as it makes sense, each try on record."""

import asyncio
import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from services.chassis.database import Database
from services.chassis.errors import NotFound
from services.chassis.failpoints import Failpoint
from services.chassis.secret import MASK, Secret
from services.executor.deliveries.policies import KIND
from services.executor.deliveries.sending import AFTER_SEND, BEFORE_SEND, GONE
from services.executor.engine import steering
from services.executor.events.publishing import NewEvent
from services.executor.registry.credentials import Resolved
from services.executor.store import lane_states
from services.providers.signatures import verify
from services.providers.signing_keys import new_private_key, public_key
from tests.certificates import Authority
from tests.integration.executor.delivery_bench import (
    OLDER,
    SECRET,
    DeliveryBench,
    Got,
    delivery_bench,
    subscription,
)
from tests.tls_receiver import issued, tls_receiver


def all_are(state: str, count: int = 1) -> Callable[[list[Any]], bool]:
    return lambda found: len(found) == count and all(each.state == state for each in found)


def verified(secret: Secret, got: Got) -> dict[str, object]:
    """What a receiver's own library takes from a request."""
    found: dict[str, object] = Webhook(secret.reveal_text()).verify(got.body, dict(got.headers))
    return found


async def test_an_event_is_delivered_signed_and_its_try_is_on_record(out: DeliveryBench) -> None:
    event_id = await out.publish(payload={"total": 7.0, "who": "Zoë"})
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    (got,) = out.receiver.got
    told = verified(SECRET, got)
    assert told["type"] == "invoice.paid" and told["data"] == {"total": 7.0, "who": "Zoë"}
    assert str(told["timestamp"]).endswith("Z")
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == f"evt_{delivery.id}"
    assert delivery.event_id == event_id and delivery.subscription == "all"
    assert bytes(delivery.payload_hash) == hashlib.sha256(got.body).digest()
    (attempt,) = await out.attempts(delivery.id)
    assert (attempt.number, attempt.response_status, attempt.response_head) == (1, 200, "thanks")
    assert 0 <= attempt.duration_ms < 5000 and delivery.ended_at is not None


async def test_what_is_not_taken_is_sent_again_byte_for_byte_with_the_same_id(
    out: DeliveryBench,
) -> None:
    out.receiver.answer(500, 404, 302)
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    first, *others = out.receiver.got
    assert len(others) == 3
    for other in others:
        assert other.body == first.body
        assert other.headers["webhook-id"] == first.headers["webhook-id"]
        verified(SECRET, other)
    tries = await out.attempts(delivery.id)
    assert [each.response_status for each in tries] == [500, 404, 302, 200]
    assert [each.failure_reason for each in tries] == ["HTTP_500", "HTTP_404", "HTTP_302", ""]


async def test_after_its_last_try_a_delivery_is_dead_and_says_why(out: DeliveryBench) -> None:
    out.receiver.answer(503, 503, 503, 500, text="no, " * 1000)
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(all_are("dead"))
    assert (delivery.failure_reason, delivery.attempts) == ("HTTP_500", 4)
    heads = [each.response_head for each in await out.attempts(delivery.id)]
    assert all(head.startswith("no, ") and len(head) <= 1024 for head in heads)


async def test_the_wait_that_an_endpoint_asks_for_is_kept(out: DeliveryBench) -> None:
    out.receiver.answer(429, headers={"Retry-After": "1"})
    await out.publish()
    async with out.working():
        await out.until(all_are("success"))
    first, second = out.receiver.got
    assert 1.0 <= second.at - first.at < 3.0


async def test_an_endpoint_that_has_gone_gets_nothing_more(out: DeliveryBench) -> None:
    out.receiver.answer(410)
    await out.publish()
    async with out.working():
        await out.until(all_are("failed"))
        await out.publish()
        await asyncio.sleep(0.3)
        (lane,) = await lane_states.page(out.database, out.tenant_id, KIND, UUID(int=0), 10)
        assert lane.pause_reason == GONE and len(out.receiver.got) == 1
        async with out.database.tenant(out.tenant_id) as tx:
            await steering.resume(tx, out.tenant_id, lane.lane_id)
        found = await out.until(lambda found: found[-1].state == "success")
    assert [each.state for each in found] == ["failed", "success"]


async def test_a_dead_endpoint_is_asked_by_one_and_the_others_lose_no_try(
    out: DeliveryBench,
) -> None:
    await out.want(delivery={"retries": ["60s", "60s"], "concurrency": 1})
    out.receiver.answer(*[500] * 10)
    for _ in range(40):
        await out.publish()
    async with out.working():
        found = await out.until(lambda f: sum(d.state == "retrying" for d in f) == 10)
        await asyncio.sleep(0.3)
        found = await out.deliveries()
    assert sorted(each.attempts for each in found) == [0] * 30 + [1] * 10
    (lane,) = await lane_states.page(out.database, out.tenant_id, KIND, UUID(int=0), 10)
    assert lane.breaker == "OPEN"


async def test_during_an_overlap_both_secrets_verify_it(out: DeliveryBench) -> None:
    out.keys.webhook = [SECRET, OLDER]
    await out.publish()
    async with out.working():
        await out.until(all_are("success"))
    (got,) = out.receiver.got
    assert verified(SECRET, got) == verified(OLDER, got)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + b64encode(bytes(32)).decode()).verify(got.body, dict(got.headers))


async def test_an_endpoint_of_a_pair_is_signed_so_that_its_public_key_verifies_it(
    out: DeliveryBench,
) -> None:
    pair = new_private_key()
    out.keys.webhook = [pair, SECRET]
    await out.publish()
    async with out.working():
        await out.until(all_are("success"))
    (got,) = out.receiver.got
    verify("standard_webhooks", [Secret(public_key(pair))], got.headers, got.body, time.time())
    # While they overlap, who has not changed over yet finds the other signature.
    verified(SECRET, got)


@pytest.mark.parametrize(
    ("auth", "header", "credential", "shown"),
    [
        ("BEARER", "", ("bearer", {"token": "tok"}), ("authorization", "Bearer tok")),
        ("OAUTH2", "", ("oauth2", {"token": "acc"}), ("authorization", "Bearer acc")),
        ("API_KEY", "", ("api_key", {"key": "k1"}), ("x-api-key", "k1")),
        ("CUSTOM", "X-Acme", ("api_key", {"key": "k2"}), ("x-acme", "k2")),
        (
            "BASIC",
            "",
            ("basic", {"username": "u", "password": "p:w"}),
            ("authorization", "Basic " + b64encode(b"u:p:w").decode()),
        ),
    ],
)
async def test_the_sender_shows_who_it_is(
    out: DeliveryBench,
    auth: str,
    header: str,
    credential: tuple[str, dict[str, str]],
    shown: tuple[str, str],
) -> None:
    kind, values = credential
    secrets = {part: Secret(value) for part, value in values.items()}
    out.keys.shown = Resolved(out.keys.credential_id, kind, 1, secrets)
    await out.want(auth=auth, credential="shown", auth_header=header, headers={"X-Team": "pay"})
    await out.publish()
    async with out.working():
        await out.until(all_are("success"))
    (got,) = out.receiver.got
    assert got.headers[shown[0]] == shown[1] and got.headers["x-team"] == "pay"
    verified(SECRET, got)


async def test_an_endpoint_is_shown_its_certificate_and_the_next_one_at_once(
    executor_database: Database,
    tenant_ids: tuple[UUID, UUID],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients, strangers = Authority(tmp_path / "c", "c"), Authority(tmp_path / "s", "s")

    def shown(name: str, version: int, by: Authority = clients) -> Resolved:
        return Resolved(UUID(int=9), "client_certificate", version, issued(by, name))

    async with (
        tls_receiver(tmp_path, clients, monkeypatch) as receiver,
        delivery_bench(executor_database, tenant_ids[0], receiver.port) as out,
    ):
        patient = {"retries": ["0.2s"] * 8}
        await out.want(auth="MTLS", credential="shown", url=receiver.url, delivery=patient)
        out.keys.shown = shown("first", 1)
        await out.publish()
        async with out.working():
            await out.until(all_are("success"))
            out.keys.shown = shown("second", 2)
            await out.publish()
            await out.until(all_are("success", 2))
            # What cannot be shown, or is not accepted, is tried again until there is another.
            out.keys.shown = shown("stranger", 3, strangers)
            await out.publish()
            await out.until(lambda found: found[-1].failure_reason == "LOST")
            out.keys.shown = Resolved(UUID(int=9), "bearer", 4, {"token": Secret("none")})
            await out.until(lambda found: found[-1].failure_reason == "NO_CERTIFICATE")
            out.keys.shown = shown("third", 5)
            await out.until(all_are("success", 3))
    assert receiver.names == ["first", "second", "third"]


async def test_what_an_endpoint_repeats_of_its_secrets_is_not_kept(out: DeliveryBench) -> None:
    out.keys.shown = Resolved(out.keys.credential_id, "bearer", 1, {"token": Secret("canary-123")})
    await out.want(auth="BEARER", credential="shown")
    out.receiver.answer(400, text="bad token: canary-123")
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    assert "canary" not in (await out.attempts(delivery.id))[0].response_head


async def test_no_half_of_a_secret_is_kept_where_an_answer_is_cut(out: DeliveryBench) -> None:
    values = {"username": Secret("svc-user"), "password": Secret("a-long-and-secret-password")}
    out.keys.shown = Resolved(out.keys.credential_id, "basic", 1, values)
    await out.want(auth="BASIC", credential="shown")
    pair = b64encode(b"svc-user:a-long-and-secret-password").decode()
    out.receiver.answer(400, text="x" * 1010 + "a-long-and-secret-password")
    out.receiver.answer(400, text=f'{{"got": ["{pair}"]}}')
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    heads = [each.response_head for each in await out.attempts(delivery.id)]
    assert not any("a-long" in head or pair[:12] in head for head in heads)


ACCOUNT = {"user": {"email": "zoe@example.com", "id": 7}, "items": [{"pin": 1}, {"pin": 2}]}


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (
            json.dumps(ACCOUNT),
            f'{{"user":{{"email":"{MASK}","id":7}},"items":[{{"pin":"{MASK}"}},{{"pin":"{MASK}"}}]}}',
        ),
        ('{"user": "nobody"}', '{"user":"nobody"}'),
        ("user zoe@example.com", ""),
        ('{"user": {"email": "zoe@example.com"', ""),
        (json.dumps({**ACCOUNT, "more": "x" * 300_000}), ""),
    ],
)
async def test_what_an_endpoint_redacts_is_not_kept_of_its_answers(
    out: DeliveryBench, answer: str, kept: str
) -> None:
    await out.want(redact=["$.user.email", "$..pin"])
    out.receiver.answer(400, text=answer)
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    first, second = await out.attempts(delivery.id)
    assert first.response_head == kept and first.failure_reason == "HTTP_400"
    # "thanks" is no JSON.
    assert second.response_head == ""


async def test_a_token_that_has_ended_is_had_anew_for_the_next_try(out: DeliveryBench) -> None:
    out.keys.shown = Resolved(out.keys.credential_id, "oauth2", 1, {"token": Secret("old")})
    await out.want(auth="OAUTH2", credential="shown")
    out.receiver.answer(401)
    await out.publish()
    async with out.working():
        await out.until(all_are("success"))
    assert out.keys.refreshed == 1


async def test_subscriptions_choose_and_transform_what_goes_out(out: DeliveryBench) -> None:
    await out.want(
        subscription("paid", event_types=["invoice.*"], filter="event.payload.total > 5"),
        subscription("short", event_types=["invoice.paid"], transform={"sum": "${event.payload.total}"}),
        subscription("broken", transform={"sum": "${event.payload.nothing.here}"}),
        subscription("off", is_active=False),
        subscription("elsewhere", deliver_to="gone"),
    )  # fmt: skip
    await out.publish(payload={"total": 7})
    await out.publish(payload={"total": 1})
    async with out.working():
        found = await out.until(all_are("success", 3))
    assert sorted(each.subscription for each in found) == ["paid", "short", "short"]
    bodies = {json.dumps(json.loads(got.body)["data"]) for got in out.receiver.got}
    assert bodies == {'{"total": 7}', '{"sum": 7}', '{"sum": 1}'}


async def test_in_order_nothing_overtakes_what_is_tried_again(out: DeliveryBench) -> None:
    await out.want(delivery={"ordering": "endpoint"})
    out.receiver.answer(500)
    for number in range(5):
        await out.publish(payload={"n": number})
    async with out.working():
        await out.until(all_are("success", 5))
    assert [json.loads(got.body)["data"]["n"] for got in out.receiver.got] == [0, 0, 1, 2, 3, 4]


async def test_by_key_each_keeps_its_order_and_does_not_hold_up_the_others(
    out: DeliveryBench,
) -> None:
    await out.want(
        delivery={"ordering": "key", "key": "event.payload.who", "retries": ["1s", "1s"]}
    )
    out.receiver.answer(500)
    for who, number in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
        await out.publish(payload={"who": who, "n": number})
    async with out.working():
        await out.until(all_are("success", 4))
    seen = [json.loads(got.body)["data"] for got in out.receiver.got]
    held = seen[0]["who"]
    for who in "ab":
        mine = [each["n"] for each in seen if each["who"] == who]
        assert mine == ([0, 0, 1] if who == held else [0, 1])
    assert [each["who"] for each in seen[1:3]] == [{"a": "b", "b": "a"}[held]] * 2


async def test_nothing_goes_to_addresses_inside_and_the_log_names_none(
    out: DeliveryBench,
) -> None:
    await out.want(url="http://127.0.0.1:1/hook", delivery={"retries": ["0.05s"]})
    await out.publish()
    async with out.working():
        (delivery,) = await out.until(lambda f: f[0].ended_at is not None)
    assert (delivery.state, delivery.failure_reason) == ("failed", "REFUSED")
    assert "127.0.0.1" not in repr(await out.attempts(delivery.id))


async def test_a_slow_endpoint_is_seen_under_way_and_a_silent_one_is_cut_off(
    out: DeliveryBench,
) -> None:
    await out.want(delivery={"timeout": "1s"})
    out.receiver.answers = [60.0]
    await out.publish()
    async with out.working():
        await out.until(all_are("sending"))
        (delivery,) = await out.until(all_are("success"))
    first, _ = await out.attempts(delivery.id)
    assert first.failure_reason == "TIMEOUT" and first.response_status == 0


async def test_while_its_secret_cannot_be_had_a_delivery_is_not_lost(out: DeliveryBench) -> None:
    out.keys.fault = NotFound("the credential is revoked")
    await out.publish()
    async with out.working():
        await out.until(lambda f: f[0].state == "retrying")
        out.keys.fault = None
        (delivery,) = await out.until(all_are("success"))
    assert (await out.attempts(delivery.id))[0].failure_reason == "CREDENTIAL_UNAVAILABLE"


async def test_with_a_secret_that_cannot_sign_each_try_says_so_until_there_is_another(
    out: DeliveryBench,
) -> None:
    out.keys.webhook = [Secret("It's a Secret to Everybody")]
    await out.publish()
    async with out.working():
        await out.until(lambda f: f[0].state == "retrying")
        out.keys.webhook = [SECRET]
        (delivery,) = await out.until(all_are("success"))
    first, *_ = await out.attempts(delivery.id)
    assert (first.failure_reason, first.response_status) == ("BAD_SECRET", 0)
    assert len(out.receiver.got) == 1


async def test_an_inactive_endpoint_lets_them_wait(out: DeliveryBench) -> None:
    await out.want(is_active=False)
    await out.publish()
    async with out.working():
        await asyncio.sleep(0.4)
        assert [each.state for each in await out.deliveries()] == ["queued"]
    assert out.receiver.got == []


@pytest.mark.parametrize("place", [BEFORE_SEND, AFTER_SEND], ids=lambda place: place.name)
async def test_who_fails_between_leaves_it_to_be_sent_again(
    out: DeliveryBench, place: Failpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    await out.publish()
    faults = [RuntimeError("the worker broke")]

    def hit(self: Failpoint) -> None:
        if self is place and faults:
            raise faults.pop()

    monkeypatch.setattr(Failpoint, "hit", hit)
    async with out.working():
        (delivery,) = await out.until(all_are("success"))
    ids = {got.headers["webhook-id"] for got in out.receiver.got}
    assert ids == {f"evt_{delivery.id}"}
    assert len(out.receiver.got) == (1 if place is BEFORE_SEND else 2)


async def test_one_key_is_one_event_and_a_batch_is_all_or_nothing(out: DeliveryBench) -> None:
    new = [NewEvent("invoice.paid", {"n": n}, key=f"k{n}") for n in (1, 2, 1)]
    first, second, again = await out.publishing.publish(out.tenant_id, new)
    assert again == first != second
    assert await out.publishing.publish(out.tenant_id, new[:2]) == [first, second]
    assert len(await out.deliveries()) == 2
    with pytest.raises(Exception, match="events"):
        await out.publishing.publish(out.tenant_id, [*new, NewEvent("not a type", {})])
    assert len(await out.deliveries()) == 2
