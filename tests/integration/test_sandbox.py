"""The stand-in behaves as GitHub's documents say, and our client understands it, faults and all."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.chassis.egress import ConnectFailed, Egress, ResponseLost, parse_allow
from services.chassis.secret import Secret
from services.providers.auth import Credential
from services.providers.calls import Call, Integration
from services.providers.catalog import Catalog
from services.providers.client import AnswerNotJson, ProviderClient, ProviderResponse
from services.providers.signatures import SignatureRefused, verify
from services.providers.urls import UnsafePath
from services.sandbox.faults import Fault, FaultKind
from services.sandbox.sender import send_webhook
from services.sandbox.server import Box, sandbox

TOKEN = "canary-token"
SHOP = {"owner": "acme", "repo": "shop"}
COMMENTS = "/repos/acme/shop/issues/7/comments"


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with sandbox(TOKEN) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[ProviderClient]:
    async with Egress(parse_allow("127.0.0.1:*")) as egress:
        yield ProviderClient(egress, Catalog.load())


def github(box: Box, token: str = TOKEN) -> Integration:
    return Integration("github", box.url, SHOP, Credential("bearer", {"token": Secret(token)}))


async def comment(client: ProviderClient, box: Box, **options: float) -> ProviderResponse:
    return await client.operate(
        github(box),
        "create_issue_comment",
        params={"issue_number": 7},
        body={"body": "Hello"},
        timeout_s=options.get("timeout_s"),
    )


async def test_verify_says_whose_token_it_is(box: Box, client: ProviderClient) -> None:
    answer = await client.operate(github(box), "get_authenticated_user")
    assert answer.failure is None
    assert answer.json()["login"] == "tenon-sandbox"  # type: ignore[index]


async def test_a_wrong_token_is_an_auth_failure(box: Box, client: ProviderClient) -> None:
    answer = await client.operate(github(box, "stale"), "get_authenticated_user")
    assert answer.failure is not None
    assert (answer.status, answer.failure.kind) == (401, "auth")
    assert answer.failure.message == "Bad credentials"


async def test_what_is_absent_is_not_found(box: Box, client: ProviderClient) -> None:
    for path in ("/repos/acme/gone/issues", "/repos/acme/shop/issues/46", "/nowhere"):
        answer = await client.send(github(box), Call("GET", path))
        assert answer.failure is not None
        assert (answer.failure.kind, answer.failure.message) == ("not_found", "Not Found")


async def test_pages_follow_the_link_header_to_the_end(box: Box, client: ProviderClient) -> None:
    numbers: list[int] = []
    async for page in client.pages(github(box), "list_issues", query={"per_page": 20}):
        issues = page.json()
        assert isinstance(issues, list)
        numbers += [issue["number"] for issue in issues]
    assert numbers == list(range(45, 0, -1))
    assert [call.query["per_page"] for call in box.calls] == ["20"] * 3


async def test_links_are_githubs(box: Box, client: ProviderClient) -> None:
    call = Call("GET", "/repos/acme/shop/issues", query={"per_page": 20, "page": 2})
    link = (await client.send(github(box), call)).headers["link"]
    assert [part.rsplit("rel=")[1] for part in link.split(", ")] == [
        '"prev"',
        '"next"',
        '"last"',
        '"first"',
    ]


async def test_pages_stop_at_a_failure(box: Box, client: ProviderClient) -> None:
    listing = client.pages(github(box), "list_issues", query={"per_page": 20})
    assert (await anext(listing)).failure is None
    box.faults.add(Fault(path="/repos/*", kind="status", status=502))
    last = await anext(listing)
    assert last.failure is not None
    assert last.failure.kind == "transient"
    with pytest.raises(StopAsyncIteration):
        await anext(listing)


async def test_a_failure_is_the_last_page_even_when_it_names_another(
    client: ProviderClient,
) -> None:
    async def fail(_request: web.Request) -> web.Response:
        return web.Response(status=500, headers={"Link": '<?page=2>; rel="next"'})

    app = web.Application()
    app.router.add_get("/repos/acme/shop/issues", fail)
    async with TestServer(app) as server:
        there = Integration(
            "github",
            f"http://127.0.0.1:{server.port}",
            SHOP,
            Credential("bearer", {"token": Secret(TOKEN)}),
        )
        pages = [page.status async for page in client.pages(there, "list_issues")]
    assert pages == [500]


async def test_a_comment_is_stored_and_seen(box: Box, client: ProviderClient) -> None:
    assert (await comment(client, box)).status == 201
    seen = await client.send(github(box), Call("GET", COMMENTS))
    assert [each["body"] for each in seen.json()] == ["Hello"]  # type: ignore[attr-defined]
    issue = await client.send(github(box), Call("GET", "/repos/{owner}/{repo}/issues/7"))
    assert issue.json()["comments"] == 1  # type: ignore[index]


async def test_a_comment_without_text_is_invalid(box: Box, client: ProviderClient) -> None:
    answer = await client.send(github(box), Call("POST", COMMENTS, body={"text": "Hello"}))
    assert answer.failure is not None
    assert (answer.status, answer.failure.kind) == (422, "invalid")
    assert box.comments == []


async def test_the_generic_provider_says_what_it_sent(box: Box, client: ProviderClient) -> None:
    credentials = [
        Credential("bearer", {"token": Secret(TOKEN)}),
        Credential("api_key", {"key": Secret(TOKEN)}),
        Credential("basic", {"username": Secret("me"), "password": Secret(TOKEN)}),
        Credential(),
    ]
    call = Call("PUT", "/echo", query={"q": "a b"}, headers={"X-Trace": "1"}, body={"n": 1})
    echoes = [
        (await client.send(Integration("http", box.url, credential=each), call)).json()
        for each in credentials
    ]
    assert [each["authorized"] for each in echoes] == [True, True, True, False]  # type: ignore[index]
    echo = echoes[0]
    assert isinstance(echo, dict)
    assert (echo["method"], echo["query"], echo["body"]) == ("PUT", {"q": "a b"}, '{"n":1}')
    assert echo["headers"]["x-trace"] == "1"
    assert TOKEN not in str(echoes)
    assert TOKEN not in str(box.calls)


async def test_the_echo_answers_below_its_path_too(box: Box, client: ProviderClient) -> None:
    below = Integration("http", f"{box.url}/echo")
    for path in ("/", "/orders/7"):
        echo = (await client.send(below, Call("POST", path, body={"n": 1}))).json()
        assert isinstance(echo, dict)
        assert echo["path"] == f"/echo{path}"
    beside = await client.send(Integration("http", box.url), Call("GET", "/echoes"))
    assert beside.status == 401


async def test_a_call_that_would_leave_is_never_sent(box: Box, client: ProviderClient) -> None:
    for path in ("//evil.example/", "/..%2f..%2fetc", "@evil.example"):
        with pytest.raises(UnsafePath):
            await client.send(github(box), Call("GET", path))
    assert box.calls == []


@pytest.mark.parametrize("status", [403, 429])
async def test_a_secondary_limit_says_how_long_and_did_nothing(
    box: Box, client: ProviderClient, status: int
) -> None:
    box.faults.add(Fault(path=COMMENTS, kind="rate_limit", status=status, retry_after=7))
    failure = (await comment(client, box)).failure
    assert failure is not None
    assert (failure.kind, failure.retry_after_s, failure.refused) == ("rate_limited", 7, True)
    assert box.comments == []
    assert (await comment(client, box)).failure is None


async def test_a_limit_without_retry_after_waits_a_minute(box: Box, client: ProviderClient) -> None:
    box.faults.add(Fault(path=COMMENTS, kind="rate_limit", status=403))
    failure = (await comment(client, box)).failure
    assert failure is not None
    assert failure.retry_after_s == 60


async def test_a_fault_lasts_its_times_for_its_method(box: Box, client: ProviderClient) -> None:
    box.faults.add(Fault(path="/repos/*", method="POST", kind="status", status=503, times=2))
    assert (await client.send(github(box), Call("GET", COMMENTS))).status == 200
    statuses = [(await comment(client, box)).status for _ in range(3)]
    assert statuses == [503, 503, 201]


async def test_a_slow_answer_still_comes(box: Box, client: ProviderClient) -> None:
    box.faults.add(Fault(path=COMMENTS, kind="slow", delay_s=0.2))
    clock = asyncio.get_running_loop()
    began = clock.time()
    assert (await comment(client, box)).status == 201
    assert clock.time() - began >= 0.2


@pytest.mark.parametrize("kind", ["truncate", "reset", "hang", "slow"])
async def test_an_answer_that_is_lost_leaves_what_was_done(
    box: Box, client: ProviderClient, kind: FaultKind
) -> None:
    box.faults.add(Fault(path=COMMENTS, kind=kind, delay_s=60))
    with pytest.raises(ResponseLost):
        await comment(client, box, timeout_s=0.5)
    assert [each.body for each in box.comments] == ["Hello"]
    assert len(box.calls) == 1


async def test_a_truncated_answer_had_its_status(box: Box, client: ProviderClient) -> None:
    box.faults.add(Fault(path=COMMENTS, kind="truncate"))
    with pytest.raises(ResponseLost) as lost:
        await comment(client, box)
    assert lost.value.status == 201


async def test_a_sandbox_that_is_gone_was_never_reached(client: ProviderClient) -> None:
    async with sandbox(TOKEN) as box:
        gone = github(box)
    with pytest.raises(ConnectFailed):
        await client.operate(gone, "get_authenticated_user")


async def test_an_answer_that_is_no_json_says_so() -> None:
    for body in (b"<html>", b'{"a": NaN}', b"\xff", b"[" * 99_999):
        with pytest.raises(AnswerNotJson):
            ProviderResponse("", 200, {}, body, None).json()
    assert ProviderResponse("", 204, {}, b" ", None).json() is None


async def test_faults_and_calls_are_reached_over_http(box: Box) -> None:
    async with aiohttp.ClientSession(box.url) as session:
        fault = {"path": "/echo", "kind": "status", "status": 500, "times": 1}
        async with session.post("/__faults", json=fault) as answer:
            assert answer.status == 201
        async with session.post("/__faults", json={**fault, "kind": "sad"}) as answer:
            assert answer.status == 400
        async with session.get("/echo") as answer:
            assert answer.status == 500
        async with session.get("/__faults") as answer:
            assert await answer.json() == []
        async with session.get("/__calls") as answer:
            assert [call["path"] for call in await answer.json()] == ["/echo"]
        await session.delete("/__calls")
    assert box.calls == []


async def test_a_sent_webhook_is_signed_over_its_bytes(box: Box) -> None:
    payload, secret = b'{"action": "opened",  "n": "\xc3\xa9"}', Secret("hook")
    status, _ = await send_webhook(f"{box.url}/echo", "issues", payload, secret, "delivery-1")
    assert status == 200
    call = box.calls[0]
    assert call.body.encode() == payload
    assert call.headers["x-github-event"] == "issues"
    assert call.headers["x-github-delivery"] == "delivery-1"
    assert call.headers["user-agent"].startswith("GitHub-Hookshot/")
    assert call.headers["content-type"] == "application/json"
    verify("github_sha256", [secret], call.headers, payload, 0)
    with pytest.raises(SignatureRefused):
        verify("github_sha256", [secret], call.headers, payload + b" ", 0)


async def test_the_command_serves_remembers_and_stops(
    tmp_path: Path, client: ProviderClient
) -> None:
    for expected in (1, 2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.sandbox", "--state", str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        token = Path(ready["token_file"])
        assert token.stat().st_mode & 0o777 == 0o600
        await assert_client_is_known(ready)
        there = Integration(
            "github", ready["url"], SHOP, Credential("bearer", {"token": Secret(token.read_text())})
        )
        await client.send(there, Call("POST", COMMENTS, body={"body": "Hello"}))
        comments = (await client.send(there, Call("GET", COMMENTS))).json()
        assert isinstance(comments, list)
        assert len(comments) == expected
        os.kill(process.pid, signal.SIGTERM)
        assert await process.wait() == 0


async def assert_client_is_known(ready: dict[str, str]) -> None:
    secret = Path(ready["client_secret_file"])
    assert secret.stat().st_mode & 0o777 == 0o600
    client = {"client_id": ready["client_id"], "client_secret": secret.read_text()}
    form = {"grant_type": "client_credentials", **client}
    async with (
        aiohttp.ClientSession(ready["url"]) as session,
        session.post("/oauth/token", data=form) as answer,
    ):
        assert answer.status == 200


async def test_a_port_in_use_is_said_without_a_traceback(tmp_path: Path, box: Box) -> None:
    port = box.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.sandbox", "--state", str(tmp_path), "--port", port),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    assert b"in use" in told
    assert b"Traceback" not in told


async def test_the_sender_command_says_whether_it_was_accepted(tmp_path: Path, box: Box) -> None:
    (tmp_path / "payload").write_bytes(b'{"zen": 1}')
    (tmp_path / "secret").write_text("hook\n")
    box.faults.add(Fault(path="/echo", kind="status", status=401, times=1))
    for code in (1, 0):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.sandbox.sender", "--url", f"{box.url}/echo"),
            *("--event", "ping", "--payload", str(tmp_path / "payload")),
            *("--secret-file", str(tmp_path / "secret")),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == code
        assert json.loads(out)["status"] == (200 if code == 0 else 401)
    assert len({call.headers["x-github-delivery"] for call in box.calls}) == 2
    verify("github_sha256", [Secret("hook")], box.calls[0].headers, b'{"zen": 1}', 0)


def at(box: Box, provider: str, place: str, **config: object) -> Integration:
    kinds = {"jira": Credential("basic", {"username": Secret("a"), "password": Secret(TOKEN)})}
    bearer = Credential("bearer", {"token": Secret(TOKEN)})
    return Integration(provider, f"{box.url}{place}", config, kinds.get(provider, bearer))


async def test_slack_says_in_the_body_what_became_of_a_call(
    box: Box, client: ProviderClient
) -> None:
    slack = at(box, "slack", "/slack")
    assert (await client.operate(slack, "test_auth")).failure is None
    answer = await client.operate(slack, "post_message", body={"channel": "#ops", "text": "Hi"})
    assert answer.failure is None
    assert answer.json()["ok"] is True  # type: ignore[index]
    assert [(each.channel, each.text) for each in box.state.messages] == [("#ops", "Hi")]
    answer = await client.operate(slack, "post_message", body={"text": "Hi"})
    assert answer.failure is not None
    assert (answer.status, answer.failure.kind) == (200, "not_found")
    stranger = Integration(
        "slack", slack.base_url, {}, Credential("bearer", {"token": Secret("x")})
    )
    answer = await client.operate(stranger, "test_auth")
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.message) == ("auth", "invalid_auth")
    box.faults.add(
        Fault(
            path="/slack/*", kind="status", status=200, body={"ok": False, "error": "ratelimited"}
        )
    )
    answer = await client.operate(slack, "post_message", body={"channel": "#ops", "text": "Hi"})
    assert answer.failure is not None
    assert answer.failure.kind == "rate_limited"
    assert len(box.state.messages) == 1


async def test_a_workflow_is_dispatched_on_a_ref(box: Box, client: ProviderClient) -> None:
    actions = at(box, "github_actions", "", **SHOP, workflow_id="build.yml")
    answer = await client.operate(actions, "dispatch_workflow", body={"ref": "main"})
    assert (answer.status, answer.failure) == (204, None)
    (begun,) = box.state.dispatches
    assert (begun.repo, begun.workflow, begun.ref) == ("acme/shop", "build.yml", "main")
    answer = await client.operate(actions, "dispatch_workflow", body={})
    assert answer.failure is not None
    assert (answer.status, answer.failure.kind) == (422, "invalid")


async def test_jira_names_the_fields_that_are_wrong(box: Box, client: ProviderClient) -> None:
    jira = at(box, "jira", "/jira")
    assert (await client.operate(jira, "get_myself")).failure is None
    good = {"project": {"key": "SHOP"}, "issuetype": {"name": "Epic"}, "summary": "Release 1"}
    for key in ("SHOP-1", "SHOP-2"):
        answer = await client.operate(jira, "create_issue", body={"fields": good})
        assert answer.status == 201
        assert answer.json()["key"] == key  # type: ignore[index]
    empty = {"type": "doc", "version": 1, "content": [{"type": "text", "text": ""}]}
    wrong = {**good, "summary": "", "description": empty}
    answer = await client.operate(jira, "create_issue", body={"fields": wrong})
    assert answer.failure is not None
    assert answer.failure.kind == "invalid"
    assert answer.failure.message is not None
    assert "summary: You must specify" in answer.failure.message
    assert "description: " in answer.failure.message


async def test_it_sends_an_apps_stream_when_it_is_told_to(box: Box) -> None:
    item = {"account": "33", "type": "contact.creation"}
    url = f"{box.url}/echo/hooks"
    asked = {"provider": "hubspot", "url": url, "secret": "hook", "items": [item, item]}
    async with aiohttp.ClientSession(box.url) as session:
        async with session.post("/__app_streams", json=asked) as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, 200)
        async with session.post("/__app_streams", json=asked | {"provider": "none"}) as answer:
            assert (answer.status, "hook" in await answer.text()) == (400, False)
    (call,) = box.calls
    assert [each["portalId"] for each in json.loads(call.body)] == [33, 33]
    verify("hubspot_v3", [Secret("hook")], call.headers, call.body.encode(), time.time(), url)
