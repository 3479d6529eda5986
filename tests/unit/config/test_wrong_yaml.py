"""Whatever is wrong with a file is told with its exact place, all at once, and no value repeated."""

import os
import time
from pathlib import Path

import pytest

from config.reading import Reading, read
from services.chassis import sealed_box
from services.chassis.sealed_box import Purpose
from services.chassis.secret import Secret

CANARY = "hunter2canary"


def read_text(folder: Path, text: str | bytes) -> Reading:
    path = folder / "wrong.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read([folder])


def document(kind: str, spec: str, metadata: str = "{name: one, tenant: acme}") -> str:
    """Four lines of envelope; the spec begins on line 5."""
    return f"apiVersion: tenon/v1\nkind: {kind}\nmetadata: {metadata}\nspec:\n{spec}"


def places(reading: Reading, severity: str = "error") -> list[tuple[int, int]]:
    return [(each.line, each.column) for each in reading.problems if each.severity == severity]


def words(reading: Reading) -> str:
    return "\n".join(map(str, reading.problems))


CREDENTIAL = "  type: bearer\n  values:\n"
SEAL = sealed_box.seal(
    sealed_box.new_pair()[1], 1, Purpose("acme", "Credential", "one", "token"), Secret("swordfish")
)

CASES: dict[str, tuple[str | bytes, list[tuple[int, int, str]]]] = {
    "unknown field": (
        document("Integration", "  provder: github\n"),
        [(4, 1, "provider is required"), (5, 3, "unknown field (did you mean provider?)")],
    ),
    "unknown field in a step": (
        document(
            "Connector",
            "  steps:\n    - name: a\n      integration: github\n      metod: GET\n",
        ),
        [(8, 7, "did you mean method?")],
    ),
    "unknown kind": (
        document("Conector", "  steps: []\n"),
        [(2, 7, "did you mean Connector?")],
    ),
    "unknown part of the envelope": (
        document("Tenant", "  enabled: true\n", "{name: acme}") + "status: {}\n",
        [(6, 1, "unknown field")],
    ),
    "other version": (
        document("Tenant", "  enabled: true\n", "{name: acme}").replace("tenon/v1", "v1"),
        [(1, 13, "apiVersion must be tenon/v1")],
    ),
    "text for a flag": (
        document("Tenant", '  enabled: "true"\n', "{name: acme}"),
        [(5, 12, "must be true or false, not text")],
    ),
    "yes for a flag": (
        document("Tenant", "  enabled: yes\n", "{name: acme}"),
        [(5, 12, "write true or false")],
    ),
    "yes for a text": (
        document("Tenant", "  display_name: yes\n", "{name: acme}"),
        [(5, 17, "put it in quotes")],
    ),
    "number for a text": (
        document("Tenant", "  display_name: 42\n", "{name: acme}"),
        [(5, 17, "must be text, not a whole number")],
    ),
    "date for a text": (
        document("Tenant", "  display_name: 2026-01-01\n", "{name: acme}"),
        [(5, 17, "put it in quotes")],
    ),
    "a list for a mapping": (
        document("Tenant", "  - enabled\n", "{name: acme}"),
        [(4, 1, "must be a mapping, not a list")],
    ),
    "a text for a list": (
        document("Connector", "  steps: none\n"),
        [(5, 10, "must be a list, not text")],
    ),
    "a text for settings": (
        document("Integration", "  provider: github\n  config: none\n"),
        [(6, 11, "config must be a mapping")],
    ),
    "a bare number for a duration": (
        document(
            "Connector",
            "  steps:\n    - {name: a, integration: b, timeout: 30, retry: {max_attempts: many}}\n",
        ),
        [(6, 42, "must be a duration such as 30s"), (6, 68, "must be a whole number, not text")],
    ),
    "too large a number": (
        document(
            "Connector",
            "  steps:\n    - {name: a, integration: b, retry: {max_attempts: 99999999999999}}\n",
        ),
        [(6, 55, "at most 2147483647")],
    ),
    "null": (
        document("Integration", "  provider: github\n  base_url:\n  config: ~\n"),
        [(6, 3, "leave it out"), (7, 3, "leave it out")],
    ),
    "empty text": (
        document("Integration", '  provider: github\n  base_url: ""\n'),
        [(6, 13, "base_url is empty")],
    ),
    "no choice": (
        document("Integration", f"  provider: github\n  environment: sandbx {CANARY}\n"),
        [(6, 16, "must be one of production, sandbox, development")],
    ),
    "too long": (
        document("Tenant", f"  display_name: {'x' * 256}\n", "{name: acme}"),
        [(5, 17, "is longer than 255")],
    ),
    "bad name": (
        document("Tenant", "  enabled: true\n", "{name: Acme}"),
        [(3, 18, "name must be 1 to 63 lower-case letters")],
    ),
    "a name with the whole path": (
        document("Integration", "  provider: github\n  credential: tenants/acme/github\n"),
        [(6, 15, "must be the name of a Credential")],
    ),
    "no tenant": (
        document("Integration", "  provider: github\n", "{name: github}"),
        [(3, 1, "tenant is missing")],
    ),
    "a Tenant of another tenant": (
        document("Tenant", "  enabled: true\n", "{name: acme, tenant: globex}"),
        [(3, 32, "a Tenant's tenant is its own name")],
    ),
    "nothing but a kind": (
        "kind: Tenant\n",
        [(1, 1, "apiVersion is missing"), (1, 1, "metadata is missing"), (1, 1, "spec is missing")],
    ),
    "secret in plain text": (
        document("Credential", f"{CREDENTIAL}    token: {CANARY}\n"),
        [(7, 12, "a value in the file itself is refused")],
    ),
    "secret in plain text under another form": (
        document("Credential", f"{CREDENTIAL}    token: {{value: {CANARY}}}\n"),
        [(7, 5, "a value in the file itself is refused")],
    ),
    "secret without a name": (
        document("Credential", f"  type: bearer\n  values: {CANARY}\n"),
        [(6, 11, "must be a mapping of names to {env: NAME}, {file: path} or {sealed: text}")],
    ),
    "secret as a key": (
        document("Credential", f"  type: bearer\n  values: {{token:{CANARY}}}\n"),
        [(6, 12, "not the name of a secret part")],
    ),
    "secret as a field": (
        document(
            "Credential", f"  type: bearer\n  {CANARY}: x\n{CREDENTIAL[15:]}    t: {{env: T}}\n"
        ),
        [(6, 3, "unknown field")],
    ),
    "secret as a list": (
        document("Credential", f"{CREDENTIAL}    token: [{CANARY}]\n"),
        [(7, 5, "a value in the file itself is refused")],
    ),
    "secret as a variable's name": (
        document("Credential", f"{CREDENTIAL}    token: {{env: '{CANARY}!'}}\n"),
        [(7, 18, "not the name of an environment variable")],
    ),
    "sealed secret": (
        document("Credential", f"{CREDENTIAL}    token: {{sealed: {CANARY}}}\n"),
        [(7, 21, "not what `tenon seal` prints")],
    ),
    "sealed secret of two lines, cut": (
        document(
            "Credential", f"{CREDENTIAL}    token:\n      {{sealed: {SEAL[:60]}\n      {CANARY}}}\n"
        ),
        [(8, 16, "not what `tenon seal` prints")],
    ),
    "sealed secret of another form": (
        document(
            "Credential", f"{CREDENTIAL}    token: {{sealed: {SEAL.replace('-1.', '-2.')}}}\n"
        ),
        [(7, 21, "not what `tenon seal` prints")],
    ),
    "sealed secret as a list": (
        document("Credential", f"{CREDENTIAL}    token: {{sealed: [{CANARY}]}}\n"),
        [(7, 13, "must be text, as in {env: NAME}, {file: path} or {sealed: text}")],
    ),
    "two forms at once": (
        document("Credential", f"{CREDENTIAL}    token: {{env: T, sealed: {SEAL}}}\n"),
        [(7, 5, "a secret is {env: NAME}, {file: path} or {sealed: text}")],
    ),
    "secret file out of the folder": (
        document("Credential", f"{CREDENTIAL}    token: {{file: ../{CANARY}}}\n"),
        [(7, 19, "leads out of the source's folder")],
    ),
    "tab": ("kind: Tenant\nmetadata:\n\tname: acme\n", [(3, 1, "a tab")]),
    "tab after spaces": ("kind: Tenant\nmetadata:\n  \tname: acme\n", [(3, 3, "a tab")]),
    "bad indentation": ("a:\n    b: 1\n  c: 2\n", [(3, 3, "not YAML")]),
    "colon in a value": (f"a: b: {CANARY}\n", [(1, 5, "not YAML")]),
    "key twice": (
        document("Tenant", f"  display_name: a\n  display_name: {CANARY}\n", "{name: acme}"),
        [(6, 3, "this key is given twice, first on line 5")],
    ),
    "alias": (
        document("Tenant", "  display_name: &n a\n  enabled: *n\n", "{name: acme}"),
        [(5, 17, "anchors are refused"), (6, 12, "aliases are refused")],
    ),
    "merge key": (
        document("Tenant", "  <<: {enabled: true}\n", "{name: acme}"),
        [(5, 3, "merge keys (<<) are refused")],
    ),
    "tag": (
        document("Tenant", f"  display_name: !!python/object:x {CANARY}\n", "{name: acme}"),
        [(5, 17, "tags are refused")],
    ),
    "key that is no text": (
        document("Tenant", "  enabled: true\n", "{name: acme, labels: {1: a, on: b, [c]: d}}"),
        [
            (3, 33, "a key must be text"),
            (3, 39, "a key must be text"),
            (3, 46, "must be text, not"),
        ],
    ),
    "ambiguous word in a body": (
        document("Integration", "  provider: github\n  config: {a: [on, 012, .inf], b: 1e999}\n"),
        [
            (6, 16, "put it in quotes"),
            (6, 20, "put it in quotes"),
            (6, 25, "put it in quotes"),
            (6, 35, "too large"),
        ],
    ),
    "whole number that would lose digits": (
        document("Integration", "  provider: github\n  config: {id: 9007199254740993}\n"),
        [(6, 16, "put it in quotes")],
    ),
    "NUL in a text": (
        document("Tenant", '  display_name: "a\\0b"\n', "{name: acme}"),
        [(5, 17, "NUL")],
    ),
    "not printable": (b"a: 1\nb: \x01\n", [(2, 4, "does not permit")]),
    "not UTF-8": (b"a: 1\nb: \xff\n", [(2, 4, "not UTF-8")]),
    "empty": ("", [(0, 0, "nothing found")]),
    "only comments": ("# nothing\n---\n", [(0, 0, "nothing found")]),
    "a list of documents": ("- kind: Tenant\n", [(1, 1, "a document is a mapping with")]),
    "too deep": (f"a: {'[' * 60}{']' * 60}\n", [(1, 43, "more than 40 levels")]),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_yaml_is_told_at_its_place_and_nothing_is_repeated(tmp_path: Path, name: str) -> None:
    text, expected = CASES[name]
    reading = read_text(tmp_path, text)
    assert places(reading) == [(line, column) for line, column, _ in expected], words(reading)
    errors = [each for each in reading.problems if each.severity == "error"]
    for problem, (_, _, fragment) in zip(errors, expected, strict=True):
        assert fragment in problem.message
        assert problem.file == str(tmp_path / "wrong.yaml")
    assert not reading.is_good
    assert CANARY not in words(reading)


def test_every_document_and_file_is_read_on_after_a_fault(tmp_path: Path) -> None:
    one = document("Tenant", "  enabld: true\n", "{name: acme}")
    (tmp_path / "a.yaml").write_text(f"{one}---\n{one.replace('acme', 'globex')}")
    (tmp_path / "b.yml").write_text("a: [\n")
    reading = read([tmp_path])
    assert [(Path(p.file).name, p.line) for p in reading.problems] == [
        ("a.yaml", 5),
        ("a.yaml", 11),
        ("b.yml", 2),
    ]


def test_the_same_object_twice_names_both_places(tmp_path: Path) -> None:
    tenant = document("Tenant", "  enabled: true\n", "{name: acme}")
    (tmp_path / "a.yaml").write_text(tenant)
    (tmp_path / "b.yaml").write_text(f"# again\n{tenant}")
    (problem,) = read([tmp_path]).problems
    assert (Path(problem.file).name, problem.line, problem.column) == ("b.yaml", 2, 1)
    assert f"given twice, first at {tmp_path / 'a.yaml'}:1" in problem.message


def test_the_same_name_in_another_tenant_or_kind_is_another_object(tmp_path: Path) -> None:
    spec = "  provider: http\n"
    one, two = (document("Integration", spec, f"{{name: a, tenant: {t}}}") for t in ("x", "y"))
    three = document("Connector", "  steps: [{name: s, integration: a}]\n", "{name: a, tenant: x}")
    assert read_text(tmp_path, f"{one}---\n{two}---\n{three}").is_good


def test_a_reference_to_what_is_not_there_is_only_a_warning(tmp_path: Path) -> None:
    wanted = document("Integration", "  provider: github\n  credential: token\n")
    other = document(
        "Credential", f"{CREDENTIAL}    token: {{env: T}}\n", "{name: token, tenant: b}"
    )
    reading = read_text(tmp_path, f"{wanted}---\n{other}")
    assert reading.is_good
    assert places(reading, "warning") == [(6, 15)]
    assert "no Credential of tenant acme in these files has this name" in words(reading)


def test_twenty_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(20 * 2**20)
    began = time.process_time()
    (problem,) = read([tmp_path]).problems
    assert str(problem) == f"{path}: larger than 1 MiB"
    assert time.process_time() - began < 0.5


def test_more_than_sixteen_megabytes_in_all_are_refused(tmp_path: Path) -> None:
    filler = b"# " + b"x" * (2**20 - 3) + b"\n"
    for number in range(17):
        (tmp_path / f"{number:02}.yaml").write_bytes(filler)
    reading = read([tmp_path])
    assert [p.message for p in reading.problems if Path(p.file).name == "16.yaml"] == [
        "with this file the source is over 16 MiB in all"
    ]


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    began = time.process_time()
    reading = read_text(tmp_path, "\n".join(levels))
    assert time.process_time() - began < 1
    assert places(reading)[:3] == [(1, 5), (2, 5), (2, 10)]
    assert len(reading.problems) <= 101


def test_a_file_full_of_faults_is_told_of_only_so_long(tmp_path: Path) -> None:
    spec = "".join(f"  unknown{number}: 1\n" for number in range(50_000))
    began = time.process_time()
    reading = read_text(tmp_path, document("Tenant", spec, "{name: acme}"))
    assert time.process_time() - began < 3
    assert len(reading.problems) == 101
    assert "too many problems" in words(reading)


def test_links_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text(document("Tenant", "  enabled: true\n", "{name: acme}"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "link.yaml").symlink_to(outside)
    (source / "loop.yaml").symlink_to(source / "loop.yaml")
    (source / "folder").symlink_to(tmp_path)
    os.mkfifo(source / "pipe.yaml")
    found = {Path(p.file).name: p.message for p in read([source, tmp_path / "no.yaml"]).problems}
    assert found == {
        "folder": "a symbolic link to a folder is not followed: name that folder itself",
        "link.yaml": "a symbolic link that leads out of the source's folder",
        "loop.yaml": "cannot be read: Too many levels of symbolic links",
        "pipe.yaml": "not a regular file",
        "no.yaml": "there is no such file or folder",
    }


def test_an_empty_folder_and_a_file_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a: 1")
    found = [p.message for p in read([tmp_path, tmp_path / "notes.txt"]).problems]
    assert found == [
        "nothing found: no *.yaml or *.yml file in this folder",
        "not a *.yaml or *.yml file",
    ]
