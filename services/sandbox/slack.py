"""The part of Slack's Web API that Tenon uses, as Slack's documents describe it.

It answers 200 whatever became of a call: `ok` says that.
"""

from aiohttp import web

from services.sandbox.state import Message, State

PREFIX = "/slack"
_LONGEST = 40_000


class Slack:
    """The handlers, over one state; an integration's base URL ends in /slack."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """All routes, to be served behind the token check."""
        return [
            web.get(f"{PREFIX}/auth.test", self.whose_token),
            web.post(f"{PREFIX}/auth.test", self.whose_token),
            web.post(f"{PREFIX}/chat.postMessage", self.post_message),
        ]

    async def whose_token(self, _request: web.Request) -> web.Response:
        """auth.test: whose token it is."""
        return _answer(user="tenon-sandbox", user_id="U1", team="Tenon Sandbox", team_id="T1")

    async def post_message(self, request: web.Request) -> web.Response:
        """chat.postMessage: a message with a channel and a text, or with blocks."""
        try:
            given = await request.json()
        except ValueError:
            return refused("invalid_json")
        if not isinstance(given, dict):
            return refused("json_not_object")
        channel, text = given.get("channel"), given.get("text")
        if not isinstance(channel, str) or not channel:
            return refused("channel_not_found")
        if not (isinstance(text, str) and text) and not given.get("blocks"):
            return refused("no_text")
        if isinstance(text, str) and len(text) > _LONGEST:
            return refused("msg_too_long")
        message = Message(channel, text or "", given)
        self._state.messages.append(message)
        ts = f"1767225600.{len(self._state.messages):06}"
        return _answer(channel=channel, ts=ts, message={"type": "message", "text": message.text})


def refused(error: str) -> web.Response:
    """An error as Slack says it, with status 200."""
    return web.json_response({"ok": False, "error": error})


def _answer(**said: object) -> web.Response:
    return web.json_response({"ok": True, **said})
