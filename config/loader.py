"""Finds and reads source files within limits; every fault is told, none is raised."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.problems import Mark, Problem, problem

SUFFIXES: Final = (".yaml", ".yml")
LARGEST_FILE: Final = 2**20
"""Bytes."""
LARGEST_SOURCE: Final = 16 * 2**20
"""Bytes of all files of one run."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file's text. `name` is how people are told of it, `root` the source's folder."""

    name: str
    path: Path
    root: Path
    text: str

    @property
    def inner_name(self) -> str:
        """The path inside the source's folder."""
        return shown(self.path.relative_to(self.root))


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    root: Path


def shown(path: Path) -> str:
    """A path as text that can be printed and sent, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def load(paths: Sequence[Path]) -> tuple[list[SourceFile], list[Problem]]:
    """The YAML files at and below `paths`, each once, in the order of their names."""
    problems: list[Problem] = []
    found: dict[str, _Found] = {}
    for path in paths:
        for each in _find(path, problems):
            found.setdefault(os.path.realpath(each.path), each)
    files = _read_all(sorted(found.values(), key=lambda each: each.path), problems)
    return files, problems


def _find(path: Path, problems: list[Problem]) -> Iterator[_Found]:
    if path.is_dir():
        before = len(problems)
        below = list(_walk(path, problems))
        if not below and len(problems) == before:
            problems.append(_fault(path, "nothing found: no *.yaml or *.yml file in this folder"))
        yield from below
    elif not os.path.lexists(path):
        problems.append(_fault(path, "there is no such file or folder"))
    elif path.suffix not in SUFFIXES:
        problems.append(_fault(path, "not a *.yaml or *.yml file"))
    else:
        yield _Found(path, path.parent)


def _walk(root: Path, problems: list[Problem]) -> Iterator[_Found]:
    """Files below a folder; hidden folders, such as .git, are left out."""

    def unreadable(error: OSError) -> None:
        problems.append(_fault(Path(error.filename), f"cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                fault = "a symbolic link to a folder is not followed: name that folder itself"
                problems.append(_fault(Path(folder, name), fault))
        yield from (_Found(Path(folder, n), root) for n in files if n.endswith(SUFFIXES))


def _read_all(found: Sequence[_Found], problems: list[Problem]) -> list[SourceFile]:
    files: list[SourceFile] = []
    left = LARGEST_SOURCE
    for each in found:
        data = _read(each, problems)
        if data is None:
            continue
        left -= len(data)
        if left < 0:
            problems.append(_fault(each.path, "with this file the source is over 16 MiB in all"))
            break
        if (text := _decode(each.path, data, problems)) is not None:
            files.append(SourceFile(shown(each.path), each.path, each.root, text))
    return files


def _read(each: _Found, problems: list[Problem]) -> bytes | None:
    data = b""
    if not is_inside(each.path, each.root):
        message = "a symbolic link that leads out of the source's folder"
    else:
        data, message = read_regular(each.path, LARGEST_FILE, "1 MiB")
    if message:
        problems.append(_fault(each.path, message))
    return None if message else data


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path`, all symbolic links followed, lies in `root`."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def read_regular(path: Path, limit: int, limit_in_words: str) -> tuple[bytes, str]:
    """The bytes of a regular file and no fault, or none and what is wrong with it.

    No more than `limit` bytes are ever read; pipes and devices are not opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b"", "not a regular file"
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        return b"", f"cannot be read: {getattr(error, 'strerror', None) or 'a bad path'}"
    return (data, "") if len(data) <= limit else (b"", f"larger than {limit_in_words}")


def _decode(path: Path, data: bytes, problems: list[Problem]) -> str | None:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problems.append(problem(Mark(shown(path), line, column), "not UTF-8"))
        return None


def _fault(path: Path, message: str) -> Problem:
    return problem(Mark(shown(path)), message)
