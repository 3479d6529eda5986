"""Wrong YAML through the real command: told with its place, exit 1, nothing changed, no secret shown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.family import Family

CANARY: Final = "hunter2-hunter2-hunter2"
HEAD: Final = (
    "apiVersion: tenon/v1\nkind: {kind}\nmetadata: {{name: {name}, tenant: acme}}\nspec:\n"
)
INTEGRATION: Final = HEAD.format(kind="Integration", name="extra")
SUBSCRIPTION: Final = HEAD.format(kind="Subscription", name="extra")
CREDENTIAL: Final = HEAD.format(kind="Credential", name="extra")
GOOD: Final = (
    "apiVersion: tenon/v1\nkind: Tenant\nmetadata: {name: acme}\nspec: {display_name: Changed}\n"
)
"""What the file beside the wrong one wants, and must not get."""


@dataclass(frozen=True)
class Wrong:
    """Files with a fault, and the line that must tell it."""

    files: Mapping[str, str]
    told: str


def wrong(text: str, told: str) -> Wrong:
    return Wrong({"wrong.yaml": text}, told)


CASES: Final = {
    "unknown field": wrong(
        INTEGRATION + "  provider: http\n  base_ulr: https://a.example\n",
        r"wrong\.yaml:6:3: unknown field \(did you mean base_url\?\)",
    ),
    "wrong type": wrong(
        INTEGRATION + "  provider: http\n  is_active: maybe\n",
        r"wrong\.yaml:6:14: must be true or false",
    ),
    "secret in plain text": wrong(
        CREDENTIAL + f"  type: bearer\n  values:\n    token: {CANARY}\n",
        r"wrong\.yaml:7:12: a secret is \{env: NAME\}, \{file: path\} or \{sealed: text\}",
    ),
    "secret that is nowhere": wrong(
        CREDENTIAL + "  type: bearer\n  values:\n    token: {env: NOT_SET_ANYWHERE}\n",
        r"wrong\.yaml:7:18: the environment variable named here is not set",
    ),
    "the same twice": Wrong(
        {
            "one.yaml": INTEGRATION + "  provider: http\n",
            "two.yaml": INTEGRATION + "  provider: http\n",
        },
        r"two\.yaml:1:1: Integration extra of tenant acme is given twice, first at .*one\.yaml:1",
    ),
    "reference to nothing": wrong(
        SUBSCRIPTION + "  endpoint: github-events\n  event_types: [push]\n  connector: nowhere\n",
        r"wrong\.yaml:7:14: connector.* there is no Connector of this name",
    ),
    "reference into another tenant": wrong(
        SUBSCRIPTION
        + "  endpoint: zinc/github-events\n  event_types: [push]\n  connector: triage\n",
        r"wrong\.yaml:5:13: must be the name of a WebhookEndpoint",
    ),
    "expression that cannot be read": wrong(
        SUBSCRIPTION
        + "  endpoint: github-events\n  event_types: [push]\n  connector: triage\n  filter: event.type ==\n",
        r"wrong\.yaml:8:11: filter.* mismatched input",
    ),
    "tabs": wrong(INTEGRATION + "\tprovider: http\n", r"wrong\.yaml:5:1: a tab"),
    "20 MB": wrong(INTEGRATION + "#" * 20_000_000, r"wrong\.yaml: larger than 1 MiB"),
    "bomb of aliases": wrong(
        INTEGRATION
        + "  provider: http\n  config:\n    a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        r"wrong\.yaml:7:9: anchors are refused",
    ),
    "no YAML at all": wrong("spec: {\n", r"wrong\.yaml:2:1: not YAML"),
}


@pytest.mark.parametrize("command", ["plan", "apply"])
@pytest.mark.parametrize("case", CASES)
def test_wrong_yaml_is_told_with_its_place_and_changes_nothing(
    family: Family, tmp_path: Path, case: str, command: str
) -> None:
    for name, text in {**CASES[case].files, "tenant.yaml": GOOD}.items():
        (tmp_path / name).write_text(text)
    before = family.changed_by_calls()
    done = family.tenon(command, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert re.search(CASES[case].told, done.stderr.replace("\n", "")), said
    assert len(said) < 20_000
    assert CANARY not in said
    assert "Traceback" not in said
    assert family.changed_by_calls() == before


def test_all_faults_are_told_at_once(family: Family, tmp_path: Path) -> None:
    for name in ("unknown field", "wrong type", "tabs"):
        (tmp_path / f"{name.replace(' ', '-')}.yaml").write_text(CASES[name].files["wrong.yaml"])
    done = family.tenon("plan", tmp_path)
    assert done.returncode == 1
    assert [
        name in done.stderr for name in ("unknown-field.yaml:6", "wrong-type.yaml:6", "tabs.yaml:5")
    ] == [True] * 3
