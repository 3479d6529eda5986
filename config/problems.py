"""Places in source files, and what is wrong there."""

from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["error", "warning"]

MOST_PER_FILE: Final = 100
"""Problems told of one file; whoever has more mends these first."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file; line and column count from 1, line 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong at a place, in words that never repeat a value of the file."""

    file: str
    line: int
    column: int
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {'warning: ' if self.severity == 'warning' else ''}{self.message}"


def problem(mark: Mark, message: str, severity: Severity = "error") -> Problem:
    """A problem at `mark`."""
    return Problem(mark.file, mark.line, mark.column, message, severity)


@dataclass(slots=True)
class Report:
    """Collects one file's problems, up to MOST_PER_FILE."""

    found: list[Problem] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether reading on is of no use to anybody."""
        return len(self.found) > MOST_PER_FILE

    def add(self, mark: Mark, message: str) -> None:
        """Note an error; the one past the last says that there are more."""
        if len(self.found) == MOST_PER_FILE:
            message = "too many problems: the rest of this file was not checked"
        if not self.full:
            self.found.append(problem(mark, message))
