"""What documents say of each other: no object twice, and what they refer to."""

from collections.abc import Sequence

from config.documents import Document
from config.problems import Mark, Problem, problem


def duplicates(documents: Sequence[Document]) -> list[Problem]:
    """An error at every document but the first of those that name the same object."""
    first: dict[tuple[str, str, str], Mark] = {}
    problems = []
    for each in sorted(documents, key=lambda document: document.mark):
        key = (each.tenant, each.kind, each.name)
        if key in first:
            there = first[key]
            message = f"{each.kind} {each.name} of tenant {each.tenant} is given twice"
            problems.append(problem(each.mark, f"{message}, first at {there.file}:{there.line}"))
        first.setdefault(key, each.mark)
    return problems


def missing(documents: Sequence[Document]) -> list[Problem]:
    """A warning at every reference to an object that none of the documents is."""
    known = {(each.tenant, each.kind, each.name) for each in documents}
    return [
        problem(each.mark_at(path), _absent(each.tenant, kind), "warning")
        for each in documents
        for path, kind, name in each.references
        if (each.tenant, kind, name) not in known
    ]


def _absent(tenant: str, kind: str) -> str:
    return f"no {kind} of tenant {tenant} in these files has this name; plan asks the registry"
