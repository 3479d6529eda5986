"""Controls of the identity provider for whoever runs in another process.

/__oauth           GET the settings, families and requests, without tokens; POST settings to change
/__oauth/issue     POST {account, scope}: the tokens, as if the account had consented
/__oauth/revoke    POST {account}: as if its owner had removed the app
"""

from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from services.sandbox.faults import Handler
from services.sandbox.grants import Refused
from services.sandbox.identity import Identity
from services.sandbox.oauth import OAuth


class _Account(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str


class _Issue(_Account):
    scope: str = ""


_CHANGES = TypeAdapter(dict[str, object])


def controls(identity: Identity, oauth: OAuth) -> list[web.RouteDef]:
    """The routes, to be served without any check."""

    async def show(_request: web.Request) -> web.Response:
        return web.json_response(identity.as_json())

    async def change(request: web.Request) -> web.Response:
        identity.change(**_CHANGES.validate_json(await request.read()))
        return web.json_response(identity.as_json())

    async def issue(request: web.Request) -> web.Response:
        asked = _Issue.model_validate_json(await request.read())
        return oauth.given(request, identity.issue(asked.account, asked.scope))

    async def revoke(request: web.Request) -> web.Response:
        asked = _Account.model_validate_json(await request.read())
        return web.json_response({"revoked": identity.revoke_family(asked.account)})

    return [
        web.get("/__oauth", show),
        web.post("/__oauth", _explained(change)),
        web.post("/__oauth/issue", _explained(issue)),
        web.post("/__oauth/revoke", _explained(revoke)),
    ]


def _explained(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValidationError as error:
            return web.Response(text=error.json(include_url=False), status=400)
        except Refused as refused:
            return web.Response(text=refused.description, status=400)

    return answer
