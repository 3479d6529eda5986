"""The part of Jira Cloud's REST API that Tenon uses, as Atlassian's documents describe it."""

from collections.abc import Mapping

from aiohttp import web

from services.sandbox.state import State, Ticket

PREFIX = "/jira"
_API = f"{PREFIX}/rest/api/3"
_LONGEST_SUMMARY = 255


class Jira:
    """The handlers, over one state; an integration's base URL ends in /jira."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """All routes, to be served behind the token check."""
        return [
            web.get(f"{_API}/myself", self.myself),
            web.post(f"{_API}/issue", self.create_issue),
        ]

    async def myself(self, _request: web.Request) -> web.Response:
        """GET the account whose token it is."""
        return web.json_response({"accountId": "1", "displayName": "Tenon Sandbox"})

    async def create_issue(self, request: web.Request) -> web.Response:
        """POST an issue: 201, or 400 with what is wrong by field."""
        try:
            given = await request.json()
        except ValueError:
            return refused(400, "There was an error parsing JSON.")
        fields = given.get("fields") if isinstance(given, dict) else None
        if not isinstance(fields, dict):
            return refused(400, "one of 'fields' or 'update' required")
        if errors := _errors(fields):
            return refused(400, **errors)
        project = fields["project"]["key"]
        number = 1 + sum(ticket.project == project for ticket in self._state.tickets)
        key = f"{project}-{number}"
        self._state.tickets.append(Ticket(key, project, fields["summary"], fields))
        made = {"id": str(10_000 + len(self._state.tickets)), "key": key}
        return web.json_response({**made, "self": f"{request.url}/{made['id']}"}, status=201)


def refused(status: int, *messages: str, **errors: str) -> web.Response:
    """An error as Jira says it: sentences, and what is wrong with which field."""
    return web.json_response({"errorMessages": list(messages), "errors": errors}, status=status)


def _errors(fields: Mapping[str, object]) -> dict[str, str]:
    summary = fields.get("summary")
    found = {}
    if not _named(fields.get("project"), "key"):
        found["project"] = "valid project is required"
    if not _named(fields.get("issuetype"), "name"):
        found["issuetype"] = "Specify a valid issue type"
    if not isinstance(summary, str) or not summary.strip():
        found["summary"] = "You must specify a summary of the issue."
    elif len(summary) > _LONGEST_SUMMARY or "\n" in summary:
        found["summary"] = "The summary is invalid."
    if "description" in fields and not _is_document(fields["description"]):
        found["description"] = "Operation value must be an Atlassian Document"
    return found


def _named(value: object, by: str) -> bool:
    return isinstance(value, dict) and bool(value.get(by)) and isinstance(value[by], str)


def _is_document(value: object) -> bool:
    """Whether it is a node of an Atlassian Document; a text node is never empty."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    if value["type"] == "text":
        return isinstance(value.get("text"), str) and bool(value["text"])
    inner = value.get("content", [])
    return isinstance(inner, list) and all(map(_is_document, inner))
