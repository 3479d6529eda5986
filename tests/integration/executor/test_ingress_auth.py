"""Senders that cannot sign prove themselves otherwise; who proves nothing learns nothing."""

import json
from base64 import b64encode
from uuid import UUID

import pytest

from services.chassis.invalidation import Invalidation
from services.chassis.secret import Secret
from services.executor.ingress.proofs import url_token
from services.sandbox.sender import webhook_headers
from tests.integration.executor.credential_calls import rotated
from tests.integration.executor.ingress_house import BODY, SECRET, House, wanted
from tests.integration.executor.running_registry import Document, document

PLAIN = {"X-GitHub-Event": "issues"}
TOKEN = url_token(SECRET, "/v1/acme/none")
SHOWN = {
    "none": (f"/none/{TOKEN}", {}),
    "bearer": ("/bearer", {"Authorization": "Bearer sender-token"}),
    "basic": ("/basic", {"Authorization": "Basic " + b64encode(b"ada:sender-pass").decode()}),
    "key": ("/key", {"X-API-Key": "sender-key"}),
    "custom": ("/custom", {"X-Sender": "sender-key"}),
}
"""Where each endpoint is, and what lets its sender in."""


def credential(name: str, kind: str, **values: str) -> Document:
    plain = {part: {"plain": b64encode(one.encode()).decode()} for part, one in values.items()}
    return document("Credential", name, type=kind, values=plain)


def endpoint(name: str, **spec: object) -> Document:
    return document("WebhookEndpoint", name, integration="github", **spec)


@pytest.fixture
async def doors(house: House) -> House:
    """An ingress with an endpoint of each kind beside the one that is signed for."""
    await house.want(
        *wanted(),
        credential("sender-token", "bearer", token="sender-token"),
        credential("sender-login", "basic", username="ada", password="sender-pass"),
        credential("sender-key", "api_key", key="sender-key"),
        endpoint("none", auth="NONE", secret="hook-secret"),
        endpoint("bearer", auth="BEARER", credential="sender-token"),
        endpoint("basic", auth="BASIC", credential="sender-login"),
        endpoint("key", auth="API_KEY", credential="sender-key"),
        endpoint("custom", auth="CUSTOM", credential="sender-key", auth_header="X-Sender"),
        document(
            "WebhookEndpoint", "out", direction="OUTBOUND", url="https://example.com/in",
            secret="hook-secret",
        ),
    )  # fmt: skip
    # Whatever else an outbound one says, nothing comes in by it.
    await house.admin.execute(
        """UPDATE executor.projected_objects SET spec = spec || '{"integration": "github"}'"""
        " WHERE name = 'out'"
    )
    return house


async def test_each_sender_is_let_in_by_what_its_endpoint_asks_for_and_is_counted(
    doors: House,
) -> None:
    for path, headers in SHOWN.values():
        status, answer, _ = await doors.post(f"/v1/acme{path}", BODY, PLAIN | headers)
        assert status == 202
        kept = await doors.event(UUID(json.loads(answer)["event"]))
        assert (kept.body, kept.headers["x-github-event"]) == (BODY, "issues")
        assert "sender" not in str(kept.headers)
        (used,) = doors.uses.drain()
        (use,) = used.uses.values()
        assert (use.uses, use.errors) == (1, 0)
    assert await doors.count("events") == len(SHOWN)


async def test_who_shows_something_else_is_refused_as_by_an_endpoint_that_is_not_there(
    doors: House,
) -> None:
    signed = webhook_headers("issues", BODY, SECRET, "d-1")
    all_shown = {name: value for _, shown in SHOWN.values() for name, value in shown.items()}
    unknown = await doors.post("/v1/acme/nothing", BODY, signed | all_shown)
    assert unknown[:2] == (404, b'{"error": "not found"}')
    refused = [
        *((f"/{name}", signed) for name in SHOWN),
        *((f"{path}x", shown) for path, shown in SHOWN.values()),
        *(
            (path, {n: f"{v}x" for n, v in shown.items()})
            for path, shown in SHOWN.values()
            if shown
        ),
        (f"/hook/{TOKEN}", signed),
        (f"/hook/{url_token(SECRET, '/v1/acme/hook')}", {}),
        (f"/none/{url_token(SECRET, '/v1/acme/hook')}", signed),
        ("/none/%ED%B0%80", signed),
        ("/out", signed),
        (f"/out/{url_token(SECRET, '/v1/acme/out')}", signed),
    ]
    for path, headers in refused:
        assert await doors.post(f"/v1/acme{path}", BODY, headers) == unknown, path
    assert await doors.count("events") == 0
    assert doors.uses.drain() == []


@pytest.mark.parametrize(("overlap_s", "before"), [(3600, 202), (0, 404)], ids=["on", "over"])
async def test_what_was_shown_before_a_rotation_lets_in_as_long_as_it_goes_on(
    doors: House, overlap_s: int, before: int
) -> None:
    await rotated(doors.service, "acme", "sender-token", overlap_s=overlap_s, token=Secret("newer"))
    doors.registry.forget(Invalidation("credential", f"{doors.tenant_id}/sender-token"))
    for shown, status in (("sender-token", before), ("newer", 202), ("neither", 404)):
        headers = PLAIN | {"Authorization": f"Bearer {shown}"}
        assert (await doors.post("/v1/acme/bearer", BODY, headers))[0] == status
