"""Where a document says a secret stands, and getting it from there.

No message repeats what a document says here: a secret written in place of a variable's or a file's
name would be shown.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from config.loader import is_inside, read_regular
from config.nodes import Entry, Fields, Scalar
from config.problems import Mark, Report
from services.chassis.sealed_box import LARGEST, NotASeal, version_of
from services.chassis.secret import Secret

FORMS: Final = "{env: NAME}, {file: path} or {sealed: text}"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A place of a secret; of a sealed one `at` is the seal itself.

    `root` is the folder a file must stand in; None for an absolute path.
    """

    form: Literal["env", "file", "sealed"]
    at: str
    root: Path | None
    mark: Mark


def read_secret_ref(entry: Entry, report: Report, folder: Path, root: Path) -> SecretRef | None:
    """The reference in a node, or None with a problem.

    `folder` is the document's own, `root` the source's.
    """
    form = _only_entry(entry)
    if form is None or form.key not in ("env", "file", "sealed"):
        report.add(entry.place, f"a secret is {FORMS}; a value in the file itself is refused")
    elif not (isinstance(form.node, Scalar) and form.node.kind == "text"):
        report.add(form.place, f"must be text, as in {FORMS}")
    elif form.key == "env":
        return _variable(form.node, report)
    elif form.key == "sealed":
        return _sealed(form.node, report)
    else:
        return _file(form.node, report, folder, root)
    return None


def _only_entry(entry: Entry) -> Entry | None:
    node = entry.node
    return node.entries[0] if isinstance(node, Fields) and len(node.entries) == 1 else None


def _variable(node: Scalar, report: Report) -> SecretRef | None:
    if not _VARIABLE.fullmatch(node.text):
        report.add(node.mark, "not the name of an environment variable")
        return None
    return SecretRef("env", node.text, None, node.mark)


def _sealed(node: Scalar, report: Report) -> SecretRef | None:
    # A long text may be folded over several lines.
    seal = "".join(node.text.split())
    try:
        version_of(seal)
    except NotASeal as error:
        report.add(node.mark, error.message)
        return None
    return SecretRef("sealed", seal, None, node.mark)


def _file(node: Scalar, report: Report, folder: Path, root: Path) -> SecretRef | None:
    if not node.text or "\0" in node.text:
        report.add(node.mark, "not a path")
        return None
    if Path(node.text).is_absolute():
        return SecretRef("file", node.text, None, node.mark)
    path = _without_dots(folder / node.text)
    if not path.is_relative_to(_without_dots(root)):
        report.add(node.mark, "this path leads out of the source's folder: give an absolute one")
        return None
    return SecretRef("file", str(path), root, node.mark)


def _without_dots(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps every `..`


def fetch(ref: SecretRef, environment: Mapping[str, str]) -> tuple[Secret | None, str]:
    """The secret of a variable or a file and no fault, or None and what is wrong."""
    value, fault = _FETCH[ref.form](ref, environment)
    if not fault and not value:
        fault = "the secret named here is empty"
    return (None, fault) if fault else (Secret(value), "")


def _from_variable(ref: SecretRef, environment: Mapping[str, str]) -> tuple[bytes, str]:
    if ref.at not in environment:
        return b"", "the environment variable named here is not set"
    return os.fsencode(environment[ref.at]), ""


def _from_file(ref: SecretRef, _environment: Mapping[str, str]) -> tuple[bytes, str]:
    path = Path(ref.at)
    if ref.root is not None and not is_inside(path, ref.root):
        return b"", "the file named here leads out of the source's folder by a symbolic link"
    data, fault = read_regular(path, LARGEST, "64 KiB")
    if fault:
        return b"", f"the file named here: {fault}"
    return without_line_break(data), ""


def without_line_break(data: bytes) -> bytes:
    """What a file holds, less the one line break that editors end it with: no part of a secret."""
    return data.removesuffix(b"\n").removesuffix(b"\r")


_FETCH: Final = {"env": _from_variable, "file": _from_file}
