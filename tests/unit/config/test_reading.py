"""Good YAML becomes the contract's messages; nothing at all becomes a traceback."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tenon.registry.v1 import wanted_pb2

from config.documents import SPECS, read_source
from config.loader import SourceFile, load
from config.order import KINDS
from config.problems import Problem
from config.reading import read
from config.resolve import resolve_secrets
from config.walk import mark_at
from services.chassis import sealed_box
from services.chassis.rules import FieldRule, schema_of
from services.chassis.secret import Secret

EXAMPLES = Path(__file__).parents[3] / "config/examples/acme"


def source_of(text: str) -> SourceFile:
    return SourceFile("a.yaml", Path("/nowhere/a.yaml"), Path("/nowhere"), text)


def test_the_examples_are_good_and_refer_to_nothing_that_is_missing() -> None:
    reading = read([EXAMPLES])
    assert reading.problems == ()
    assert [each.kind for each in reading.documents] == [
        *("Tenant", "Credential", "Credential", "Credential", "Integration", "Integration"),
        *("Connector", "WebhookEndpoint", "Subscription"),
    ]


def test_a_document_is_the_message_that_the_contract_says() -> None:
    text = """
apiVersion: tenon/v1
kind: Connector
metadata: {name: c, tenant: acme, labels: {team: "1"}, annotations: {a.b/c: "yes"}}
spec:
  is_active: false
  steps:
    - name: one
      integration: web
      method: POST
      path: /
      headers: {X-Trace: a}
      body: {flag: true, list: [1, 2.5, null, text, "12"]}
      timeout: 1.5m
      retry: {max_attempts: 2, base: 0.25s, cap: 1h}
      idempotent: true
"""
    (document,), problems = read_source(source_of(text))
    assert problems == []
    wanted = wanted_pb2.Resource()
    wanted.metadata.name, wanted.metadata.tenant = "c", "acme"
    wanted.metadata.labels["team"] = "1"
    wanted.metadata.annotations["a.b/c"] = "yes"
    wanted.origin.file, wanted.origin.line = "a.yaml", 2
    wanted.connector.is_active = False
    step = wanted.connector.steps.add(
        name="one", integration="web", method="POST", path="/", idempotent=True
    )
    step.headers["X-Trace"] = "a"
    step.body.struct_value.update({"flag": True, "list": [1, 2.5, None, "text", "12"]})
    step.timeout.seconds = 90
    step.retry.max_attempts = 2
    step.retry.base.nanos = 250_000_000
    step.retry.cap.seconds = 3600
    assert document.resource == wanted


def test_an_absent_flag_is_absent_and_not_false() -> None:
    text = "apiVersion: tenon/v1\nkind: Tenant\nmetadata: {name: acme}\nspec: {}\n"
    (document,), problems = read_source(source_of(text))
    assert problems == []
    assert document.resource.WhichOneof("spec") == "tenant"
    assert not document.resource.tenant.HasField("enabled")
    assert document.tenant == "acme"


def test_every_kind_of_the_contract_has_a_place_in_the_order() -> None:
    assert set(KINDS) == set(SPECS)


def test_what_is_referred_to_comes_before_what_refers_to_it() -> None:
    def referred(rules: tuple[FieldRule, ...]) -> set[str]:
        found = {each.constraint.reference for each in rules if each.constraint.reference}
        return found.union(*(referred(each.fields) for each in rules))

    for kind, field in SPECS.items():
        for target in referred(schema_of(field.message_type)) - {kind}:
            assert KINDS.index(target) < KINDS.index(kind), f"{kind} refers to {target}"


def test_every_secret_of_the_contract_lies_where_resolving_puts_it() -> None:
    def paths(rules: tuple[FieldRule, ...], path: str) -> list[str]:
        found = [f"{path}.{r.name} {r.many}" for r in rules if r.shape == "secret"]
        return found + [p for r in rules for p in paths(r.fields, f"{path}.{r.name} {r.many}")]

    every = [p for f in SPECS.values() for p in paths(schema_of(f.message_type), "spec")]
    assert every
    assert all(re.fullmatch(r"spec(\.\w+ one)*\.\w+ map", each) for each in every), every


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("spec.steps[1].integration", 9),
        ("spec.steps[1].timeout", 8),
        ("spec.steps[1].body.a[0]", 10),
        ("spec.steps[1].body.a[7]", 10),
        ("spec.steps[5].name", 5),
        ("spec.description", 4),
        ("elsewhere", 1),
        ("", 1),
    ],
)
def test_a_path_is_found_at_its_place_or_at_the_nearest_around_it(path: str, line: int) -> None:
    text = """apiVersion: tenon/v1
kind: Connector
metadata: {name: c, tenant: acme}
spec:
  steps:
    - name: one
      integration: web
    - name: two
      integration: web
      body: {a: [x]}
"""
    (document,), _ = read_source(source_of(text))
    assert document.mark_at(path).line == line


def test_a_file_found_twice_is_read_once() -> None:
    files, problems = load([EXAMPLES, EXAMPLES / "tenant.yaml", EXAMPLES])
    assert problems == []
    assert [f.inner_name for f in files] == sorted(p.name for p in EXAMPLES.glob("*.yaml"))


SECRETS = """apiVersion: tenon/v1
kind: Credential
metadata: {name: c, tenant: acme}
spec:
  type: basic
  values:
    username: {env: WHO}
    password: {file: keys/password}
"""


def test_secrets_are_read_only_when_asked_for_and_lose_one_line_break(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SECRETS)
    reading = read([tmp_path])
    assert reading.is_good
    assert reading.documents[0].resource.credential.values["password"].plain == b""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/password").write_bytes(b"pass word\n\n")
    (batch,), problems = resolve_secrets(reading.documents, {"WHO": "me"})
    assert problems == []
    values = batch.resources[0].credential.values
    assert (values["username"].plain, values["password"].plain) == (b"me", b"pass word\n")
    assert reading.documents[0].resource.credential.values["password"].plain == b""


SEAL = sealed_box.seal(
    sealed_box.new_pair()[1],
    7,
    sealed_box.Purpose("acme", "Credential", "c", "password"),
    Secret(b"x" * sealed_box.LARGEST),
)
HALF = len(SEAL) // 2


@pytest.mark.parametrize(
    "written",
    [
        f"{{sealed: {SEAL}}}",
        f"{{sealed: {SEAL[:HALF]}\n      {SEAL[HALF:]}}}",
        f"\n      sealed: >-\n        {SEAL[:HALF]}\n        {SEAL[HALF:]}",
        f'\n      sealed: "{SEAL[:HALF]}\\\n        {SEAL[HALF:]}"',
    ],
    ids=["one line", "plain", "folded", "quoted"],
)
def test_a_sealed_secret_goes_out_as_it_is_however_its_lines_are_broken(
    tmp_path: Path, written: str
) -> None:
    text = SECRETS.replace("{file: keys/password}", written)
    (tmp_path / "c.yaml").write_text(text)
    reading = read([tmp_path])
    assert reading.problems == ()
    (batch,), problems = resolve_secrets(reading.documents, {"WHO": "me"})
    assert problems == []
    values = batch.resources[0].credential.values
    assert (values["username"].plain, values["username"].sealed) == (b"me", "")
    assert (values["password"].plain, values["password"].sealed) == (b"", SEAL)
    assert [secret.reveal() for secret in batch.kept] == [b"me"]


def test_a_source_may_be_named_by_a_path_with_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "source/keys").mkdir(parents=True)
    (tmp_path / "source/c.yaml").write_text(SECRETS)
    (tmp_path / "source/keys/password").write_text("p")
    monkeypatch.chdir(tmp_path / "here")
    reading = read([Path("../source")])
    assert reading.problems == ()
    assert resolve_secrets(reading.documents, {"WHO": "me"})[1] == []


def test_a_secret_that_is_not_there_is_told_at_its_place_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SECRETS)
    (tmp_path / "keys").symlink_to("/etc")
    _, problems = resolve_secrets(read([tmp_path / "c.yaml"]).documents, {"WHO": ""})
    assert [(p.line, p.column, p.message) for p in problems] == [
        (7, 21, "the secret named here is empty"),
        (8, 22, "the file named here leads out of the source's folder by a symbolic link"),
    ]
    (tmp_path / "keys").unlink()
    _, problems = resolve_secrets(read([tmp_path]).documents, {})
    assert [p.message for p in problems] == [
        "the environment variable named here is not set",
        "the file named here: cannot be read: No such file or directory",
    ]


WORDS = st.sampled_from(
    [
        "apiVersion",
        "tenon/v1",
        "kind",
        "metadata",
        "name",
        "tenant",
        "spec",
        "labels",
        "steps",
        "Connector",
        "Credential",
        "values",
        "env",
        "file",
        "Tenant",
        "provider",
        "config",
        "body",
        "timeout",
        "30s",
        "on",
        "~",
        "1",
        "true",
        "a",
        "[]",
        "{}",
        "-",
        "&",
        "*",
        "!",
        "<<",
        "|",
        ">",
        "%",
    ]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner, max_size=6)
    ),
    max_leaves=20,
)
ENVELOPES = st.fixed_dictionaries(
    {
        "apiVersion": st.just("tenon/v1"),
        "kind": st.sampled_from(KINDS),
        "metadata": st.just({"name": "n", "tenant": "n"}) | TREES,
        "spec": st.fixed_dictionaries(
            {},
            optional={
                field.name: TREES | st.lists(st.dictionaries(WORDS, TREES, max_size=4), max_size=3)
                for kind in SPECS.values()
                for field in schema_of(kind.message_type)
            },
        ),
    }
)


def outcome_of(text: str) -> None:
    documents, problems = read_source(source_of(text))
    assert all(isinstance(each, Problem) for each in problems)
    assert documents or problems
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    for each in problems:
        assert str(each).isprintable()
        assert each.line <= len(lines)
    for document in documents:
        assert document.resource.SerializeToString()
        assert mark_at(document.marks, "spec.nothing.of[3].the.kind").line > 0


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    outcome_of(text.encode("utf-8", "replace").decode())


@settings(deadline=None)
@given(st.lists(WORDS | st.sampled_from([":", ": ", "\n", "\n  ", "\t", "'", '"', ",", "#"])))
def test_any_words_of_ours_are_read_or_refused(words: list[str]) -> None:
    outcome_of("".join(words))


@settings(max_examples=300, deadline=None)
@given(TREES | ENVELOPES)
def test_any_tree_is_read_or_refused(tree: object) -> None:
    outcome_of(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False))


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.yaml"
    path.write_bytes(data)
    reading = read([path])
    assert reading.documents or reading.problems
