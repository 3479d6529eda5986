"""A provider that asks whether an url is ours hears its own words, where its manifest says so."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.executor.ingress.proofs import url_token
from services.providers.catalog import Catalog
from services.providers.manifest import Challenge
from services.sandbox.sender import webhook_headers
from tests.integration.executor.ingress_house import SECRET, House, wanted
from tests.integration.executor.running_registry import document

SLACKS = Challenge(by="body", field="challenge", when={"type": "url_verification"})
DROPBOXES = Challenge(by="query", field="challenge")
METAS = Challenge(
    by="query",
    field="hub.challenge",
    when={"hub.mode": "subscribe"},
    token="hub.verify_token",
)
NOT_FOUND = (404, '{"error": "not found"}')
OURS = url_token(SECRET, "/v1/acme/hook")
METAS_WORDS = {"hub.mode": "subscribe", "hub.challenge": "11", "hub.verify_token": OURS}


def asking(house: House, challenge: Challenge) -> House:
    """The same house, with a GitHub that asks like this."""
    catalog = Catalog.load()
    github = catalog.get("github")
    assert github.webhook is not None
    webhook = github.webhook.model_copy(update={"challenge": challenge})
    asks = github.model_copy(update={"webhook": webhook})
    house.inbound._catalog = replace(catalog, manifests={**catalog.manifests, "github": asks})
    return house


async def asked(house: House, path: str, query: dict[str, str]) -> tuple[int, str]:
    async with house.session.get(f"{house.url}/v1{path}", params=query) as answer:
        if answer.status == 200:
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer.status, await answer.text()


async def test_a_challenge_in_a_signed_body_is_answered_and_is_no_event(house: House) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "3eZ<b>"}).encode()
    assert (await house.send(body))[0] == 202
    asking(house, SLACKS)
    signed = webhook_headers("issues", body, SECRET, "d-2")
    status, answer, headers = await house.post("/v1/acme/hook", body, signed)
    assert (status, answer, headers["x-content-type-options"]) == (200, b"3eZ<b>", "nosniff")
    assert headers["content-type"].startswith("text/plain")
    assert (await house.post("/v1/acme/hook", body, {}))[0] == 404
    assert (await house.post("/v1/acme/hook", body + b" ", signed))[0] == 404
    assert await asked(house, "/acme/hook", {"type": "url_verification", "challenge": "x"}) == (
        NOT_FOUND
    )
    assert await house.count("events") == 1
    assert (await house.send())[0] == 202


async def test_a_challenge_in_a_query_is_answered_of_endpoints_that_are_there(
    house: House,
) -> None:
    words = {"challenge": "a <b> & c"}
    assert await asked(house, "/acme/hook", words) == NOT_FOUND
    asking(house, DROPBOXES)
    assert await asked(house, "/acme/hook", words) == (200, "a <b> & c")
    for path in ("/acme/nothing", "/acme/off", "/acme/mute", "/nobody/hook", f"/acme/hook/{OURS}"):
        assert await asked(house, path, words) == NOT_FOUND
    for said in ({}, {"challenge": ""}, {"challenge": "a\nb"}):
        assert await asked(house, "/acme/hook", said) == NOT_FOUND
    async with house.session.head(f"{house.url}/v1/acme/hook", params=words) as answer:
        assert answer.status == 405
    assert await house.count("events") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"hub.verify_token": OURS[:-1]},
        {"hub.verify_token": url_token(SECRET, "/v1/acme/off")},
        {"hub.verify_token": ""},
        {"hub.mode": "unsubscribe"},
    ],
)
async def test_where_a_token_is_said_it_is_the_urls_own(house: House, wrong: Any) -> None:
    asking(house, METAS)
    assert await asked(house, "/acme/hook", METAS_WORDS | wrong) == NOT_FOUND
    absent = {name: said for name, said in METAS_WORDS.items() if name not in wrong}
    assert await asked(house, "/acme/hook", absent) == NOT_FOUND
    assert await asked(house, "/acme/hook", METAS_WORDS) == (200, "11")


async def test_an_url_that_is_the_secret_answers_with_its_token_alone(house: House) -> None:
    spec = {"integration": "github", "auth": "NONE", "secret": "hook-secret"}
    await house.want(*wanted(), document("WebhookEndpoint", "none", **spec))
    asking(house, DROPBOXES)
    token = url_token(SECRET, "/v1/acme/none")
    assert await asked(house, f"/acme/none/{token}", {"challenge": "x"}) == (200, "x")
    for path in ("/acme/none", f"/acme/none/{OURS}"):
        assert await asked(house, path, {"challenge": "x"}) == NOT_FOUND
