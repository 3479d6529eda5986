"""Streams of apps: one signed delivery, and each item of it is an event of whose account it is."""

import gc
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.database import Database
from services.chassis.secret import Secret
from services.executor.ingress.intake import MOST_OF_A_TENANT
from services.executor.ingress.streams import Counted
from services.executor.registry.client import Registry
from services.sandbox.app_streams import Happened, app_body, app_headers, send_stream
from tests.integration.executor.ingress_house import House, ingress_house
from tests.integration.executor.running_registry import Document, RunningRegistry, document

PUBLIC = "https://hooks.example.com/tenon"
SECRET = Secret("the app's own")
SLACK, HUBSPOT = ("slack", "main"), ("hubspot", "main")
NOT_FOUND = (404, {"error": "not found"})


def credentials() -> list[Document]:
    plain = b64encode(SECRET.reveal()).decode()
    return [
        document("Credential", "token", type="bearer", values={"token": {"plain": "c2VjcmV0"}}),
        document(
            "Credential", "app-secret", type="webhook_secret", values={"secret": {"plain": plain}}
        ),
    ]


def tenant(slug: str, **spec: object) -> Document:
    return document("Tenant", slug, display_name=slug, **spec)


def integration(provider: str, **spec: object) -> Document:
    return document("Integration", provider, provider=provider, credential="token", **spec)


def owner(provider: str = "slack", lets_in: Sequence[str] = ("bolt", "crux")) -> list[Document]:
    return [
        *credentials(),
        integration(provider),
        document("WebhookEndpoint", f"{provider}-app", integration=provider, secret="app-secret",
                 app="main", tenants=list(lets_in)),
    ]  # fmt: skip


def receiver(
    slug: str, *accounts: str, provider: str = "slack", **endpoint: object
) -> list[Document]:
    steps = [{"name": "say", "integration": provider, "operation": "test_auth"}]
    return [
        tenant(slug),
        *credentials()[:1],
        integration(provider),
        mine(provider, **endpoint),
        *(connection(account, provider) for account in accounts),
        *([document("Connector", "answer", steps=steps)] if provider == "slack" else []),
        *([document("Subscription", "messages", endpoint="mine", connector="answer",
                    event_types=["message"])] if provider == "slack" else []),
    ]  # fmt: skip


def mine(provider: str = "slack", **spec: object) -> Document:
    said = {"integration": provider, "app": "main", "app_owner": "acme"}
    return document("WebhookEndpoint", "mine", **(said | spec))


def connection(account: str, provider: str = "slack", **spec: object) -> Document:
    said = {"integration": provider, "credential": "token", "external_account_id": account}
    return document("Connection", f"of-{account.lower()}", **(said | spec))


@pytest.fixture
async def streams(
    registry_service: RunningRegistry,
    registry: Registry,
    executor_database: Database,
    admin: psycopg.AsyncConnection[Any],
) -> AsyncIterator[House]:
    """An ingress behind a proxy, whose tenant `acme` owns an app of Slack."""
    async with ingress_house(registry_service, registry, executor_database, admin, PUBLIC) as house:
        await house.want(*owner())
        yield house


async def send(
    house: House, *items: Happened, stream: tuple[str, str] = SLACK, **more: Any
) -> tuple[int, dict[str, Any]]:
    path = "/v1/app/{}/{}".format(*stream)
    status, answer = await send_stream(
        stream[0], more.pop("url", PUBLIC + path), items, more.pop("secret", SECRET), house.session,
        through=house.url + path + more.pop("query", ""),
    )  # fmt: skip
    return status, json.loads(answer)


async def taken(house: House, tenant_id: UUID) -> list[tuple[str, str, str]]:
    """Endpoint, account and type of what a tenant has, in the order it came, opened by its key."""
    rows = await house.rows(
        "SELECT e.id, o.name, e.type FROM executor.events e JOIN executor.projected_objects o"
        f" ON (o.tenant_id, o.object_id) = (e.tenant_id, e.endpoint_id)"
        f" WHERE e.tenant_id = '{tenant_id}' ORDER BY e.id"
    )
    found = []
    for event_id, endpoint, kind in rows:
        kept = await house.event(event_id, tenant_id)
        found.append((endpoint, kept.headers.get("tenon-account", ""), kind))
    return found


async def test_an_item_is_of_whoever_has_its_account_and_of_nobody_else(streams: House) -> None:
    bolt = await streams.want(*receiver("bolt", "T1", "T2"), tenant="bolt")
    crux = await streams.want(*receiver("crux", "T3"), tenant="crux")
    for account in ("T1", "T2", "T3", "T9"):
        status, answer = await send(streams, Happened(account=account, type="message"))
        assert (status, len(answer["events"])) == (202, 1)
    assert await taken(streams, bolt) == [("mine", "T1", "message"), ("mine", "T2", "message")]
    assert await taken(streams, crux) == [("mine", "T3", "message")]
    assert await taken(streams, streams.tenant_id) == [("slack-app", "T9", "message")]
    assert await streams.rows(
        "SELECT tenant_id, connector FROM executor.executions ORDER BY id"
    ) == [(bolt, "answer"), (bolt, "answer"), (crux, "answer")]
    assert streams.counts == {
        Counted("slack", "main", known=True): 3,
        Counted("slack", "main", known=False): 1,
    }
    # What a tenant has lies under its own key, not under another one's.
    ((event_id, key_id),) = await streams.rows(
        f"SELECT id, data_key_id FROM executor.events WHERE tenant_id = '{crux}'"
    )
    assert key_id != (await streams.registry.lease_key(bolt)).data_key_id
    assert json.loads((await streams.event(event_id, crux)).body)["team_id"] == "T3"
    # A redelivery is the same event, whose it may be.
    for account in ("T1", "T9"):
        item = Happened(account=account, type="message")
        first = await send(streams, item)
        assert await send(streams, item) == first
    assert (await streams.count("events"), await streams.count("executions")) == (6, 4)


async def test_items_of_one_delivery_go_to_many_tenants(streams: House) -> None:
    await streams.want(*owner("hubspot", ["*"]))
    bolt = await streams.want(*receiver("bolt", "111", provider="hubspot"), tenant="bolt")
    crux = await streams.want(*receiver("crux", "222", provider="hubspot"), tenant="crux")
    batch = [
        Happened(account=account, type="contact.creation", what={"objectId": 7})
        for account in ("111", "222", "333", "111")
    ]
    status, answer = await send(streams, *batch, stream=HUBSPOT)
    assert (status, len(set(answer["events"]))) == (202, 4)
    assert await taken(streams, bolt) == [("mine", "111", "contact.creation")] * 2
    assert await taken(streams, crux) == [("mine", "222", "contact.creation")]
    assert await taken(streams, streams.tenant_id) == [("hubspot-app", "333", "contact.creation")]
    ((event_id,),) = await streams.rows(
        f"SELECT id FROM executor.events WHERE tenant_id = '{crux}'"
    )
    said = json.loads((await streams.event(event_id, crux)).body)
    assert (said["portalId"], said["objectId"]) == (222, 7)
    # HubSpot counts its attempts in the body: that makes it no other item.
    again = [each.model_copy(update={"what": {"attemptNumber": 1}}) for each in batch]
    assert await send(streams, *again, stream=HUBSPOT) == (status, answer)
    assert await send(streams, stream=HUBSPOT) == (202, {"events": []})
    # Its signature is of the url that HubSpot knows, and not of where the proxy sends it on.
    query, sent = "?from=a%2Fb%20c", PUBLIC + "/v1/app/hubspot/main"
    for wrong in (streams.url + "/v1/app/hubspot/main", sent, sent + "?from=a%2Fb%20d"):
        assert await send(streams, *batch, stream=HUBSPOT, url=wrong, query=query) == NOT_FOUND
    right = await send(streams, *batch, stream=HUBSPOT, url=sent + query, query=query)
    assert right == (status, answer)
    assert await streams.count("events") == 4


async def test_without_a_public_url_what_signs_it_is_not_let_in(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.want(*owner(), *owner("hubspot")[2:])
    url, item = house.url + "/v1/app/hubspot/main", Happened(account="1", type="x")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert await send(house, item, stream=HUBSPOT, url=url) == NOT_FOUND
    warnings = [each for each in caplog.messages if "TENON_EXECUTOR_PUBLIC_URL" in each]
    assert len(warnings) == 1
    assert (await send(house, item))[0] == 202


async def test_the_owner_says_who_is_let_in_and_two_who_claim_an_account_get_nothing(
    streams: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def who_gets_one() -> list[UUID]:
        ids = [streams.tenant_id, bolt, dorn]
        before = [len(await taken(streams, each)) for each in ids]
        assert (await send(streams, Happened(account="T1", type="message")))[0] == 202
        after = [len(await taken(streams, each)) for each in ids]
        return [each for each, was, now in zip(ids, before, after, strict=True) if now > was]

    bolt = await streams.want(*receiver("bolt"), tenant="bolt")
    dorn = await streams.want(*receiver("dorn", "T1"), tenant="dorn")
    assert await who_gets_one() == [streams.tenant_id]
    # Not let in, it cannot even disturb those who are.
    await streams.want(*receiver("bolt", "T1"), tenant="bolt")
    assert await who_gets_one() == [bolt]
    assert "more than one endpoint" not in caplog.text
    await streams.want(*owner(lets_in=["*"]))
    assert await who_gets_one() == [streams.tenant_id]
    assert "more than one endpoint" in caplog.text
    # What is only switched off is not for others to take.
    await streams.want(connection("T1", is_active=False), tenant="bolt")
    assert await who_gets_one() == [streams.tenant_id]
    await streams.want(connection("T1", external_account_id="T4"), tenant="bolt")
    assert await who_gets_one() == [dorn]


async def test_what_is_off_receives_nothing_and_nothing_is_lost(streams: House) -> None:
    bolt = await streams.want(*receiver("bolt", "T1"), tenant="bolt")
    off_and_on: list[tuple[Document, Document]] = [
        (mine(is_active=False), mine(is_active=True)),
        (integration("slack", is_active=False), integration("slack", is_active=True)),
        (connection("T1", is_active=False), connection("T1", is_active=True)),
        (tenant("bolt", enabled=False), tenant("bolt", enabled=True)),
    ]
    for count, (off, on) in enumerate(off_and_on, start=1):
        await streams.want(off, tenant="bolt")
        assert (await send(streams, Happened(account="T1", type="message")))[0] == 202
        await streams.want(on, tenant="bolt")
        assert await taken(streams, streams.tenant_id) == [("slack-app", "T1", "message")] * count
    assert await taken(streams, bolt) == []
    assert (await send(streams, Happened(account="T1", type="message")))[0] == 202
    assert await taken(streams, bolt) == [("mine", "T1", "message")]


async def test_a_stream_has_one_owner(streams: House) -> None:
    squatting = [tenant("crux"), *owner()]
    with pytest.raises(AssertionError, match="owns the stream"):
        await streams.service.apply("crux", *squatting)
    # Not by way of another provider either.
    await streams.service.apply("crux", tenant("crux"), *owner("stripe"))
    moved = document("Integration", "stripe", provider="slack", credential="token")
    with pytest.raises(AssertionError, match="owns the stream"):
        await streams.service.apply("crux", moved)
    assert (await send(streams, Happened(account="T1", type="message")))[0] == 202


async def test_whoever_comes_by_a_stream_is_believed_by_those_alone_who_name_them(
    streams: House,
) -> None:
    bolt = await streams.want(*receiver("bolt", "111", provider="hubspot"), tenant="bolt")
    # There before the app's real owner, letting in who did not ask.
    crux = await streams.want(tenant("crux"), *owner("hubspot", ["*"]), tenant="crux")
    forged = Happened(account="111", type="contact.creation")
    assert (await send(streams, forged, stream=HUBSPOT))[0] == 202
    assert await taken(streams, bolt) == []
    assert await taken(streams, crux) == [("hubspot-app", "111", "contact.creation")]
    # Nor does a claim disturb those who hear of another owner's stream.
    dorn = await streams.want(
        *receiver("dorn", "111", provider="hubspot", app_owner="crux"), tenant="dorn"
    )
    assert (await send(streams, forged, stream=HUBSPOT))[0] == 202
    assert [len(await taken(streams, each)) for each in (bolt, dorn)] == [0, 1]


async def test_whoever_cannot_show_the_secret_hears_what_strangers_hear(streams: House) -> None:
    await streams.want(*receiver("bolt", "T1"), tenant="bolt")
    item = Happened(account="T1", type="message")
    assert await send(streams, item, secret=Secret("guessed")) == NOT_FOUND
    for stream in (("slack", "other"), ("stripe", "main"), ("nobody", "main")):
        body = app_body("slack", [item])
        url = PUBLIC + "/v1/app/{}/{}".format(*stream)
        headers = app_headers("slack", url, body, SECRET)
        path = "/v1/app/{}/{}".format(*stream)
        assert (await streams.post(path, body, headers))[:2] == (404, b'{"error": "not found"}')
    body = app_body("slack", [item])
    headers = app_headers("slack", "", body, SECRET)
    for path in ("/v1/acme/slack-app", "/v1/bolt/mine", "/v1/app/slack/%00"):
        assert (await streams.post(path, body, headers))[0] == 404
    assert await streams.count("events") == 0


async def test_slack_hears_its_challenge_and_what_is_no_item_is_the_owners_whole(
    streams: House,
) -> None:
    body = b'{"type": "url_verification", "challenge": "3eZbrw1aB"}'
    headers = app_headers("slack", "", body, SECRET)
    status, answer, _ = await streams.post("/v1/app/slack/main", body, headers)
    assert (status, answer) == (200, b"3eZbrw1aB")
    assert (await streams.post("/v1/app/slack/main", body, {}))[0] == 404
    assert await streams.count("events") == 0
    for body in (b"command=%2Fdeploy&team_id=T1", b'["odd"]', b"null"):
        headers = app_headers("slack", "", body, SECRET) | {"content-type": "text/plain"}
        status, answer, _ = await streams.post("/v1/app/slack/main", body, headers)
        assert status == 202
        ((_, account, kind),) = (await taken(streams, streams.tenant_id))[-1:]
        assert (account, kind) == ("", "unknown")
        (event_id,) = json.loads(answer)["events"]
        assert (await streams.event(UUID(event_id))).body == body


async def test_a_tenant_over_its_quota_holds_nobody_up(streams: House) -> None:
    poor = receiver("bolt", "T1")
    poor[0] = tenant("bolt", limits={"work_per_hour": 1})
    bolt = await streams.want(*poor, tenant="bolt")
    crux = await streams.want(*receiver("crux", "T2"), tenant="crux")
    for account in ("T1", "T1", "T2"):
        assert (await send(streams, Happened(account=account, type="message")))[0] == 202
    assert await taken(streams, bolt) == [("mine", "T1", "message")]
    assert await taken(streams, crux) == [("mine", "T2", "message")]
    assert await taken(streams, streams.tenant_id) == [("slack-app", "T1", "message")]


async def test_a_filter_that_takes_its_time_holds_no_delivery_of_many_items_up(
    streams: House,
) -> None:
    steps = [{"name": "say", "integration": "hubspot", "operation": "get_account"}]
    accounts = [str(1000 + n) for n in range(80)]
    await streams.want(*owner("hubspot"))
    bolt = await streams.want(
        *receiver("bolt", *accounts, provider="hubspot"),
        document("Connector", "answer", steps=steps),
        # Whatever goes through a list waits for a process that is let go no further than it may.
        document("Subscription", "odd", endpoint="mine", connector="answer",
                 filter="[1, 3, 5, 7, 9].exists(each, event.payload.objectId % 10 == each)"),
        tenant="bolt",
    )  # fmt: skip
    batch = [
        Happened(account=account, type="contact.creation", what={"objectId": n})
        for n, account in enumerate([*accounts, *["1000"] * 20])
    ]
    status, answer = await send(streams, *batch, stream=HUBSPOT)
    assert (status, len(answer["events"])) == (202, 100)
    # In the order in which the provider tells it.
    assert [account for _, account, _ in await taken(streams, bolt)] == [
        each.account for each in batch
    ]
    assert await streams.count("executions") == 50


async def test_a_tenant_with_too_much_under_way_makes_only_its_own_come_again(
    streams: House, caplog: pytest.LogCaptureFixture
) -> None:
    await streams.want(*owner("hubspot"))
    bolt = await streams.want(*receiver("bolt", "111", provider="hubspot"), tenant="bolt")
    crux = await streams.want(*receiver("crux", "222", provider="hubspot"), tenant="crux")
    batch = [Happened(account=account, type="contact.creation") for account in ("111", "222")]
    rooms = [streams.inbound.room(bolt) for _ in range(MOST_OF_A_TENANT)]
    for room in rooms:
        room.__enter__()
    assert (await send(streams, *batch, stream=HUBSPOT))[0] == 429
    assert [len(await taken(streams, each)) for each in (bolt, crux)] == [0, 1]
    rooms += [streams.inbound.room(crux) for _ in range(MOST_OF_A_TENANT)]
    for room in rooms[MOST_OF_A_TENANT:]:
        room.__enter__()
    assert (await send(streams, *batch, stream=HUBSPOT))[0] == 429
    gc.collect()
    # Two are refused, and the provider hears of one.
    assert "never retrieved" not in caplog.text
    for room in rooms:
        room.__exit__(None, None, None)
    assert (await send(streams, *batch, stream=HUBSPOT))[0] == 202
    assert [len(await taken(streams, each)) for each in (bolt, crux)] == [1, 1]
    assert await taken(streams, streams.tenant_id) == []
