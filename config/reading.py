"""All documents of some files and folders: read, put in order, held against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.documents import Document, read_source
from config.loader import load
from config.order import position
from config.problems import Problem
from config.references import duplicates, missing


@dataclass(frozen=True, slots=True)
class Reading:
    """All documents by tenant, kind and name, and all that is wrong with them by place."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]

    @property
    def is_good(self) -> bool:
        """No errors; warnings may be there."""
        return all(each.severity != "error" for each in self.problems)


def read(paths: Sequence[Path]) -> Reading:
    """Everything at and below `paths`, read and checked; secrets themselves are not read."""
    sources, problems = load(paths)
    documents: list[Document] = []
    for source in sources:
        found, faults = read_source(source)
        documents += found
        problems += faults
    documents.sort(key=lambda each: (each.tenant, position(each.kind), each.name))
    problems += duplicates(documents)
    problems += missing(documents)
    return Reading(tuple(documents), tuple(sorted(problems)))
