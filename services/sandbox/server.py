"""A local provider that behaves as others' documents say, and misbehaves on demand.

/user, /repos/…     GitHub's API and GitHub Actions', behind a token check
/slack/…            Slack's, behind the same
/jira/…             Jira's, behind the same
/echo, /echo/…      answers with what it got; open to all
/oauth/…            an identity provider (`oauth`), which checks its callers itself
/__faults           GET, POST a Fault, DELETE all
/__calls            GET every call but these, DELETE the log
/__made             GET the messages, dispatches and tickets that were made
/__app_streams      POST a Sending: that is sent, and what is answered to it told (`app_streams`)
/__oauth, /__oauth/…    the identity provider's controls (`oauth_controls`)
"""

import re
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from services.sandbox import jira, slack
from services.sandbox.app_streams import controls as app_stream_controls
from services.sandbox.faults import Fault, Faults, Handler
from services.sandbox.github import GitHub, not_found, refusal
from services.sandbox.identity import Identity
from services.sandbox.oauth import OAuth
from services.sandbox.oauth_controls import controls as oauth_controls
from services.sandbox.state import DEFAULT_REPOS, Comment, RecordedCall, State

_CREDENTIAL_HEADERS: Final = frozenset({"authorization", "x-api-key", "cookie"})
_ECHO: Final = r"echo(?:/.*)?"
_OPEN: Final = re.compile(rf"/{_ECHO}|/oauth/.*")


@dataclass(frozen=True, slots=True)
class Box:
    """A running sandbox: where it listens, and what it saw."""

    url: str
    state: State
    faults: Faults
    identity: Identity

    @property
    def calls(self) -> list[RecordedCall]:
        """Every call so far, oldest first."""
        return list(self.state.calls)

    @property
    def comments(self) -> list[Comment]:
        """Every comment stored."""
        return list(self.state.comments)


@asynccontextmanager
async def sandbox(
    token: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    repos: Mapping[str, int] = DEFAULT_REPOS,
    state_file: Path | None = None,
    identity: Identity | None = None,
) -> AsyncIterator[Box]:
    """Serve on `host:port` (0: any free port) until the block ends."""
    state, faults, identity = State(repos, state_file), Faults(), identity or Identity()
    runner = web.AppRunner(
        _application(token, state, faults, identity),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield Box(f"http://{host}:{runner.addresses[0][1]}", state, faults, identity)
    finally:
        await runner.cleanup()


def _application(token: str, state: State, faults: Faults, identity: Identity) -> web.Application:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/__"):
            return await handler(request)
        authorized = _authorized(request, token)
        state.calls.append(await _recorded(request, authorized=authorized))
        if not authorized and not _OPEN.fullmatch(request.path):
            return _stranger(request)
        return await faults.respond(request, _known(handler))

    app = web.Application(middlewares=[guard])
    oauth = OAuth(identity)
    app.add_routes([*GitHub(state).routes(), *oauth.routes()])
    app.add_routes([*slack.Slack(state).routes(), *jira.Jira(state).routes()])
    app.router.add_route("*", f"/{{path:{_ECHO}}}", _echo(token))
    app.add_routes([*_controls(state, faults), *oauth_controls(identity, oauth)])
    app.add_routes(app_stream_controls())
    return app


def _stranger(request: web.Request) -> web.StreamResponse:
    """The refusal of a call with a wrong token, or with none, in its provider's words."""
    given = "Authorization" in request.headers
    if request.path.startswith(slack.PREFIX):
        return slack.refused("invalid_auth" if given else "not_authed")
    if request.path.startswith(jira.PREFIX):
        return jira.refused(401, "Client must be authenticated to access this resource.")
    return refusal(401, "Bad credentials" if given else "Requires authentication")


def _known(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            return not_found()

    return answer


def _echo(token: str) -> Handler:
    async def echo(request: web.Request) -> web.StreamResponse:
        call = await _recorded(request, authorized=_authorized(request, token))
        return web.json_response(call.as_json())

    return echo


def _controls(state: State, faults: Faults) -> list[web.RouteDef]:
    async def list_faults(_request: web.Request) -> web.Response:
        return web.json_response(faults.pending())

    async def add_fault(request: web.Request) -> web.Response:
        try:
            faults.add(Fault.model_validate_json(await request.read()))
        except ValidationError as error:
            return web.Response(text=error.json(include_url=False), status=400)
        return web.json_response(faults.pending(), status=201)

    async def clear_faults(_request: web.Request) -> web.Response:
        faults.clear()
        return web.Response(status=204)

    async def list_calls(_request: web.Request) -> web.Response:
        return web.json_response([call.as_json() for call in state.calls])

    async def clear_calls(_request: web.Request) -> web.Response:
        state.calls.clear()
        return web.Response(status=204)

    async def list_made(_request: web.Request) -> web.Response:
        made = {name: getattr(state, name) for name in ("messages", "dispatches", "tickets")}
        return web.json_response({k: [asdict(each) for each in v] for k, v in made.items()})

    return [
        web.get("/__faults", list_faults),
        web.post("/__faults", add_fault),
        web.delete("/__faults", clear_faults),
        web.get("/__calls", list_calls),
        web.delete("/__calls", clear_calls),
        web.get("/__made", list_made),
    ]


async def _recorded(request: web.Request, *, authorized: bool) -> RecordedCall:
    body = (await request.read()).decode(errors="replace")
    return RecordedCall(
        method=request.method,
        path=request.path,
        query=dict(request.query),
        headers={
            name.lower(): value
            for name, value in request.headers.items()
            if name.lower() not in _CREDENTIAL_HEADERS
        },
        # Forms of the identity provider are made of secrets and tokens.
        body="" if request.path.startswith("/oauth/") else body,
        authorized=authorized,
    )


def _authorized(request: web.Request, token: str) -> bool:
    """Whether the token came as a bearer token, an API key or a basic password."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    given = {
        "bearer": value.encode(errors="replace"),
        "token": value.encode(errors="replace"),
        "basic": _password(value),
        "": request.headers.get("X-API-Key", "").encode(errors="replace"),
    }
    return compare_digest(given.get(scheme.lower(), b""), token.encode())


def _password(value: str) -> bytes:
    try:
        return b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""
