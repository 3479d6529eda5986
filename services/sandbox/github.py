"""The part of GitHub's REST API that Tenon uses, as GitHub's documents describe it."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from services.sandbox.state import Comment, Dispatch, State

_BEGUN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_MADE: Final = "2026-01-01T00:00:00Z"
_LOGIN: Final = "tenon-sandbox"
_MAX_PER_PAGE: Final = 100
_DEFAULT_PER_PAGE: Final = 30
_WORKFLOW: Final = r"/repos/{owner}/{repo}/actions/workflows/{workflow:[0-9]+|[^/]+\.ya?ml}"


class GitHub:
    """The handlers, over one state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """All routes, to be served behind the token check."""
        issue = "/repos/{owner}/{repo}/issues/{number:[0-9]+}"
        return [
            web.get("/user", self.user),
            web.get("/repos/{owner}/{repo}/issues", self.list_issues),
            web.get(issue, self.get_issue),
            web.get(issue + "/comments", self.list_comments),
            web.post(issue + "/comments", self.create_comment),
            web.post(_WORKFLOW + "/dispatches", self.dispatch),
        ]

    async def user(self, _request: web.Request) -> web.Response:
        """GET /user."""
        return web.json_response({**_user(), "name": "Tenon Sandbox", "created_at": _MADE})

    async def list_issues(self, request: web.Request) -> web.Response:
        """GET issues in pages with a Link header; the newest first, unless asked otherwise."""
        repo = _repo(request)
        if repo not in self._state.repos:
            return not_found()
        numbers = range(1, self._state.repos[repo] + 1)
        there = [self._issue(repo, n) for n in numbers if self._state.has_issue(repo, n)]
        return _page(request, _listed(request.query, there))

    async def get_issue(self, request: web.Request) -> web.Response:
        """GET one issue."""
        repo, number = _repo(request), int(request.match_info["number"])
        if not self._state.has_issue(repo, number):
            return not_found()
        count = len(self._state.comments_on(repo, number))
        return web.json_response({**self._issue(repo, number), "comments": count})

    async def list_comments(self, request: web.Request) -> web.Response:
        """GET an issue's comments, oldest first, in pages."""
        repo, number = _repo(request), int(request.match_info["number"])
        if not self._state.has_issue(repo, number):
            return not_found()
        return _page(request, [_comment(c) for c in self._state.comments_on(repo, number)])

    def _issue(self, repo: str, number: int) -> dict[str, object]:
        return _issue(repo, number, self._state.changes.get((repo, number), 0))

    async def create_comment(self, request: web.Request) -> web.Response:
        """POST a comment: 201, or 422 without a text."""
        repo, number = _repo(request), int(request.match_info["number"])
        if not self._state.has_issue(repo, number):
            return not_found()
        try:
            given = await request.json()
        except ValueError:
            return refusal(400, "Problems parsing JSON")
        text = given.get("body") if isinstance(given, dict) else None
        if not isinstance(text, str) or not text:
            return refusal(422, "Validation Failed")
        comment = _comment(self._state.add_comment(repo, number, text))
        return web.json_response(comment, status=201, headers={"Location": str(comment["url"])})

    async def dispatch(self, request: web.Request) -> web.Response:
        """POST that a workflow is to run: 204, or 422 without a ref."""
        repo = _repo(request)
        if repo not in self._state.repos:
            return not_found()
        try:
            given = await request.json()
        except ValueError:
            return refusal(400, "Problems parsing JSON")
        ref = given.get("ref") if isinstance(given, dict) else None
        if not isinstance(ref, str) or not ref:
            return refusal(422, 'Invalid request.\n\n"ref" wasn\'t supplied.')
        workflow, inputs = request.match_info["workflow"], given.get("inputs") or {}
        self._state.dispatches.append(Dispatch(repo, workflow, ref, inputs))
        return web.Response(status=204)


def refusal(status: int, message: str) -> web.Response:
    """An error as GitHub words it."""
    return web.json_response(
        {
            "message": message,
            "documentation_url": "https://docs.github.com/rest",
            "status": str(status),
        },
        status=status,
    )


def not_found() -> web.Response:
    """What GitHub says of all that is absent or hidden."""
    return refusal(404, "Not Found")


def _page(request: web.Request, items: list[dict[str, object]]) -> web.Response:
    size = min(max(_number(request.query, "per_page", _DEFAULT_PER_PAGE), 1), _MAX_PER_PAGE)
    page = max(_number(request.query, "page", 1), 1)
    last = max(-(-len(items) // size), 1)
    pages = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
    shown = {
        rel: target
        for rel, target in pages.items()
        if (target < page if rel in ("prev", "first") else page < target <= last) and target >= 1
    }
    links = ", ".join(f'<{_url(request, page=t)}>; rel="{rel}"' for rel, t in shown.items())
    body = items[(page - 1) * size : page * size]
    return web.json_response(body, headers={"Link": links} if links else {})


def _url(request: web.Request, *, page: int) -> str:
    return f"{request.url.origin()}{request.path}?{urlencode({**request.query, 'page': page})}"


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _repo(request: web.Request) -> str:
    return f"{request.match_info['owner']}/{request.match_info['repo']}"


def _listed(query: Mapping[str, str], issues: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are asked for, in the order that is."""
    state, since = query.get("state", "open"), query.get("since", "")
    found = [
        each for each in issues if state in ("all", each["state"]) and each["updated_at"] >= since
    ]
    by_update = query.get("sort") == "updated"
    newest_first = query.get("direction", "desc") != "asc"
    return sorted(
        found,
        key=lambda issue: (issue["updated_at"] if by_update else "", issue["number"]),
        reverse=newest_first,
    )


def _user() -> dict[str, object]:
    return {"login": _LOGIN, "id": 1, "type": "User", "site_admin": False}


def _issue(repo: str, number: int, change: int) -> dict[str, object]:
    # Changes are a minute apart, and none of them is older than an issue.
    updated_at = (_BEGUN + timedelta(minutes=change)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": _id(repo, number),
        "number": number,
        "title": f"Issue {number} of {repo}" + (f", changed {change}" if change else ""),
        "body": f"What happened in {repo}.",
        "state": "open",
        "locked": False,
        "user": _user(),
        "labels": [{"name": "bug"}] if number % 2 else [],
        "html_url": f"https://github.com/{repo}/issues/{number}",
        "created_at": _MADE,
        "updated_at": updated_at,
    }


def _comment(comment: Comment) -> dict[str, object]:
    api = f"https://api.github.com/repos/{comment.repo}/issues/comments/{comment.id}"
    page = f"https://github.com/{comment.repo}/issues/{comment.number}"
    return {
        "id": comment.id,
        "url": api,
        "html_url": f"{page}#issuecomment-{comment.id}",
        "body": comment.body,
        "user": _user(),
        "created_at": _MADE,
        "updated_at": _MADE,
    }


def _id(repo: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{repo}#{number}".encode()).digest()[:4], "big")
