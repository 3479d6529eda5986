"""The pages of the ingress for browsers: a connect link is opened, a provider sends its visitor
back. Both lead on at once; where they do not, a plain page says in a sentence what it came to.

A link that was opened leaves a cookie, so that only the same browser can end what it began: else an
account could be connected by a forged address (RFC 6749, section 10.12).
"""

import hashlib
from html import escape
from typing import Final

from aiohttp import web

from services.executor.registry.connecting import RegistryConnecting, Returning

LINK: Final = "/connect/"
CALLBACK: Final = "/oauth/callback"
COOKIE_S: Final = 600
"""As long as the registry holds an authorisation open."""
# The prefix binds the cookie to this host, over TLS (RFC 6265bis, section 4.1.3.2).
COOKIE: Final = "__Host-tenon-oauth-"
LONGEST: Final = 4096
"""Of a parameter; codes of real providers stay well under it (RFC 6749 sets no size)."""

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The addresses here hold codes and links: nobody keeps them, and nobody is told them."""

ENDS: Final = {
    "connected": "The account is connected. You can close this page.",
    "waits": "The account will be connected as soon as somebody has approved it.",
    "denied": "The account was not connected, because access was denied.",
    "failed": "The account could not be connected. Ask for a new link.",
}
FAULTS: Final = {
    400: "This address is not whole. Open the link again.",
    404: "This link is used, or too old. Ask for a new one.",
    503: "This cannot be done just now. Open the link again in a minute.",
}
_OTHER: Final = "Something went wrong on our side. Open the link again in a minute."


def routes(registry: RegistryConnecting) -> list[web.RouteDef]:
    """The two addresses."""

    async def opened(request: web.Request) -> web.Response:
        link = await registry.open_link(request.match_info["token"])
        answer = _onward(link.url)
        answer.set_cookie(
            _cookie(link.state),
            link.browser,
            max_age=COOKIE_S,
            path="/",
            secure=True,
            httponly=True,
            samesite="Lax",
        )
        return answer

    async def returned(request: web.Request) -> web.Response:
        returning = _returning(request)
        ended = await registry.relay(returning)
        answer = _onward(ended.return_url) if ended.return_url else page(200, ENDS[ended.status])
        answer.del_cookie(_cookie(returning.state), path="/", secure=True)
        return answer

    # A HEAD, as mail scanners send, would begin an authorisation for nobody.
    return [
        web.get(LINK + "{token}", opened, allow_head=False),
        web.get(CALLBACK, returned, allow_head=False),
    ]


def is_page(request: web.Request) -> bool:
    """Whether it is people who read the answer."""
    return request.path.startswith((LINK, CALLBACK))


def fault_page(status: int) -> web.Response:
    """What people read of a fault."""
    return page(status, FAULTS.get(status, _OTHER))


def page(status: int, sentence: str) -> web.Response:
    """One sentence."""
    text = f"<!doctype html><meta charset=utf-8><title>Tenon</title><p>{escape(sentence)}</p>\n"
    return web.Response(status=status, text=text, content_type="text/html", headers=HEADERS)


def _onward(url: str) -> web.Response:
    return web.Response(status=302, headers={**HEADERS, "Location": url})


def _returning(request: web.Request) -> Returning:
    state, code, error, issuer = (_given(request, name) for name in _PARAMETERS)
    browser = request.cookies.get(_cookie(state), "")
    return Returning(state, code, error, issuer, browser[:LONGEST])


_PARAMETERS: Final = ("state", "code", "error", "iss")


def _given(request: web.Request, name: str) -> str:
    """A parameter, once (RFC 6749, section 3.1); empty where it is not there."""
    found = request.query.getall(name, [""])
    if len(found) > 1 or len(found[0]) > LONGEST:
        raise web.HTTPBadRequest
    return found[0]


def _cookie(state: str) -> str:
    """Of each authorisation one: two tabs do not put each other out."""
    return COOKIE + hashlib.sha256(state.encode()).hexdigest()[:16]
