"""What the stand-in remembers: repositories, what was made in it, and every call it got."""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

DEFAULT_REPOS: Mapping[str, int] = {"acme/shop": 45, "Codertocat/Hello-World": 5}
_KEPT_CALLS = 10_000


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One request as it came in, without its credential; `at` is in seconds since the epoch."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str
    authorized: bool
    at: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, object]:
        """The call as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment on issue `number` of `repo` (`owner/name`)."""

    id: int
    repo: str
    number: int
    body: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A workflow that was begun on `ref` of `repo` (`owner/name`)."""

    repo: str
    workflow: str
    ref: str
    inputs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """A message in a channel; `said` is all that came with it."""

    channel: str
    text: str
    said: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Ticket:
    """An issue of a project, with all the fields it was made of."""

    key: str
    project: str
    summary: str
    fields: Mapping[str, object]


class State:
    """Everything of one sandbox; with `file`, comments outlive the process."""

    def __init__(self, repos: Mapping[str, int], file: Path | None = None) -> None:
        self.repos = dict(repos)
        """Repository (`owner/name`) → how many issues it has had, numbered from 1."""
        self.changes: dict[tuple[str, int], int] = {}
        """Issue → how many changes of its repository there were with its last one."""
        self.transferred: set[tuple[str, int]] = set()
        """Issues that went to another repository, where nothing is told of them."""
        self.calls: deque[RecordedCall] = deque(maxlen=_KEPT_CALLS)
        self._file = file
        self.dispatches: list[Dispatch] = []
        self.messages: list[Message] = []
        self.tickets: list[Ticket] = []
        self.comments: list[Comment] = []
        if file is not None and file.exists():
            self.comments = [Comment(**each) for each in json.loads(file.read_text("utf-8"))]

    def has_issue(self, repo: str, number: int) -> bool:
        """Whether the repository has an issue of this number."""
        there = 1 <= number <= self.repos.get(repo, 0)
        return there and (repo, number) not in self.transferred

    def change_issue(self, repo: str, number: int) -> None:
        """Change an issue, later than all before."""
        newest = max((at for (of, _), at in self.changes.items() if of == repo), default=0)
        self.changes[repo, number] = newest + 1

    def comments_on(self, repo: str, number: int) -> list[Comment]:
        """The issue's comments, oldest first."""
        return [c for c in self.comments if (c.repo, c.number) == (repo, number)]

    def add_comment(self, repo: str, number: int, body: str) -> Comment:
        """Keep a new comment, on disk too where there is a file."""
        comment = Comment(len(self.comments) + 1, repo, number, body)
        self.comments.append(comment)
        if self._file is not None:
            fresh = self._file.with_suffix(".new")
            fresh.write_text(json.dumps([asdict(c) for c in self.comments]), "utf-8")
            fresh.replace(self._file)
        return comment
