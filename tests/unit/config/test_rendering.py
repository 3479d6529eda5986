"""What people and programs read of a run; no value of a secret, no word a terminal would obey."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tenon.registry.v1 import config_service_pb2

from config.documents import SPECS
from config.problems import Mark, Problem
from config.reading import read
from config.reconcile import Exit, Outcome, problems_of, taken, worst
from config.render import as_json, is_secret, show_plan, show_problems, show_revision
from config.resolve import Batch, resolve_secrets
from services.chassis.errors import InvalidArgument, TenonError, Violation
from services.chassis.rules import Risk

Change = config_service_pb2.Change
FieldChange = config_service_pb2.FieldChange
FINGERPRINT = "f1f1f1f1"

PLAN = config_service_pb2.Plan(
    tenant="acme",
    base_revision=3,
    plan_hash="0123456789abcdef",
    unchanged=4,
    changes=[
        Change(
            kind="Credential",
            name="token",
            action=Change.ACTION_UPDATE,
            risk=Risk.HIGH.value,  # type: ignore[arg-type]
            fields=[
                FieldChange(
                    path="spec.values.token", before=f'"{FINGERPRINT}"', after=f'"{FINGERPRINT}2"'
                ),
                FieldChange(path="spec.values", after=f'{{"key": "{FINGERPRINT}"}}'),
                FieldChange(path="spec", before=f'{{"values": "{FINGERPRINT}"}}'),
            ],
        ),
        Change(
            kind="Integration",
            name="github",
            action=Change.ACTION_CREATE,
            risk=Risk.LOW.value,  # type: ignore[arg-type]
            fields=[
                FieldChange(path="spec.provider", before='""', after='"github"'),
            ],
        ),
        Change(
            kind="Integration",
            name="web",
            action=Change.ACTION_UPDATE,
            risk=Risk.MEDIUM.value,  # type: ignore[arg-type]
            fields=[
                FieldChange(path="spec.base_url", before='"a"', after='"b"', owner="rpc"),
                FieldChange(path="metadata.labels", before='{"a": "1"}'),
            ],
        ),
    ],
)


def shown(plan: config_service_pb2.Plan, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    show_plan(Console(file=stream, force_terminal=terminal, width=40), plan)
    return stream.getvalue()


def test_a_plan_is_told_object_by_object_without_any_fingerprint() -> None:
    assert shown(PLAN) == (
        "tenant acme at revision 3\n"
        "  ~ update Credential token  high risk\n"
        "      spec.values.token: (secret, changed)\n"
        "      spec.values: (secret, set)\n"
        "      spec: (secret, removed)\n"
        "  + create Integration github\n"
        '      spec.provider: "github"\n'
        "  ~ update Integration web  medium risk\n"
        '      spec.base_url: "a" → "b"  (was set by rpc)\n'
        '      metadata.labels: {"a": "1"} → (default)\n'
        "  3 to change, 4 unchanged; plan 0123456789ab\n"
    )


def test_a_plan_says_what_it_needs_before_it_takes_effect() -> None:
    plan = config_service_pb2.Plan()
    plan.CopyFrom(PLAN)
    plan.needs_approval.policies.extend(["four-eyes", "two"])
    plan.needs_approval.approvals = 2
    said = "  needs 2 approvals of others before it takes effect (policy four-eyes, two)\n"
    assert shown(plan).endswith(said)
    plan.needs_approval.self_approval = True
    assert "needs 2 approvals before it" in shown(plan)


def test_an_apply_that_waits_says_how_to_go_on() -> None:
    name = "tenants/acme/pendingRevisions/1"
    pending = config_service_pb2.PendingRevision(
        name=name, approvals_needed=1, policies=["four-eyes"]
    )
    pending.expire_time.FromJsonString("2026-01-02T03:04:05Z")
    outcome = taken(PLAN, config_service_pb2.ApplyConfigResponse(revision=3, pending=pending))
    assert outcome.exit is Exit.BLOCKED and outcome.revision is None
    stream = io.StringIO()
    show_revision(Console(file=stream, width=40), outcome)
    assert stream.getvalue() == (
        f"tenant acme: not applied; it waits as {name}\n"
        "  until 2026-01-02 03:04 UTC for 1 approval of people who may, but its author "
        "(policy four-eyes)\n"
        f"  look at it: tenon revisions show {name}\n"
        f"  approve it: tenon approve {name}\n"
    )
    assert json.loads(as_json([outcome], [], Exit.BLOCKED))["tenants"][0]["pending"]["name"] == name


def test_colours_are_for_terminals_only() -> None:
    assert "\x1b[" in shown(PLAN, terminal=True)
    assert "\x1b[" not in shown(PLAN)


def test_an_empty_plan_says_so() -> None:
    plan = config_service_pb2.Plan(tenant="acme", base_revision=7, unchanged=9)
    assert shown(plan) == "tenant acme: nothing to do (revision 7, 9 unchanged)\n"


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    stream = io.StringIO()
    problem = Problem("a\x1b[2J\n.yaml", 1, 1, "[red]markup[/red] \x07:smile:")
    show_problems(Console(file=stream), [problem])
    assert stream.getvalue() == "a�[2J�.yaml:1:1: [red]markup[/red] �:smile:\n"


def test_json_is_one_document_with_everything_but_secrets() -> None:
    problem = Problem("a.yaml", 2, 3, "wrong")
    outcomes = [
        Outcome("acme", Exit.OK, PLAN, revision=4),
        Outcome("globex", Exit.STALE, problems=(problem,)),
    ]
    text = as_json(outcomes, [], Exit.STALE)
    assert FINGERPRINT not in text
    document = json.loads(text)
    assert document["exit"] == 5
    assert document["problems"] == [
        {"file": "a.yaml", "line": 2, "column": 3, "message": "wrong", "severity": "error"}
    ]
    acme, globex = document["tenants"]
    assert globex == {"tenant": "globex", "exit": 5}
    assert (acme["base_revision"], acme["plan_hash"], acme["revision"]) == (3, PLAN.plan_hash, 4)
    credential, _, integration = acme["changes"]
    assert credential["fields"][0] == {"path": "spec.values.token", "secret": "(secret, changed)"}
    assert integration["fields"][0] == {
        "path": "spec.base_url",
        "before": "a",
        "after": "b",
        "owner": "rpc",
    }


@pytest.mark.parametrize("kind", SPECS)
def test_only_credentials_hold_secrets(kind: str) -> None:
    assert is_secret(kind, "spec") is (kind == "Credential")
    assert not is_secret(kind, "metadata.labels")
    assert not is_secret(kind, "spec.display_name")
    assert is_secret("KindOfTomorrow", "spec.display_name")


def test_the_worst_code_counts() -> None:
    order = [Exit.ERROR, Exit.STALE, Exit.OVER_BUDGET, Exit.BLOCKED, Exit.CHANGES, Exit.OK]
    assert [worst(order[at:]) for at in range(len(order))] == order
    assert worst([]) is Exit.OK


EXAMPLES = Path(__file__).parents[3] / "config/examples/acme"
ENVIRONMENT = {
    "ACME_GITHUB_TOKEN": "canary-token",
    "ACME_GITHUB_WEBHOOK_SECRET": "canary-secret",
    "ACME_NOTIFY_KEY": "canary-key",
}


def batch() -> Batch:
    (found,), problems = resolve_secrets(read([EXAMPLES]).documents, ENVIRONMENT)
    assert problems == []
    return found


@pytest.mark.parametrize(
    ("field", "file", "line", "message"),
    [
        ("Connector/triage#spec.steps[1].operation", "triage.yaml", 25, "operation: is wrong"),
        ("Connector/triage#spec.steps[1].retry.base", "triage.yaml", 23, "base: is wrong"),
        ("Connector/triage#spec.steps[2].body.title", "triage.yaml", 42, "title: is wrong"),
        ("Credential/notify-key#spec.values.token", "credentials.yaml", 26, "token: is wrong"),
        ("Tenant/acme#", "tenant.yaml", 1, "is wrong"),
    ],
)
def test_a_violation_of_the_registry_is_told_at_its_place_in_yaml(
    field: str, file: str, line: int, message: str
) -> None:
    error = InvalidArgument("no", violations=[Violation(field, "is wrong")])
    (problem,) = problems_of(batch(), error)
    assert (Path(problem.file).name, problem.line, problem.message) == (file, line, message)


def test_what_has_no_place_is_told_of_the_tenant() -> None:
    wanted = batch()
    strange = InvalidArgument("no", violations=[Violation("Connector/other#spec", "is wrong")])
    assert problems_of(wanted, strange)[0].message == "Connector/other#spec: is wrong"
    assert str(problems_of(wanted, TenonError("try later"))[0]) == "tenant acme: try later"


def test_no_word_of_the_registry_repeats_a_secret() -> None:
    wanted = batch()
    said = [
        InvalidArgument("no", violations=[Violation("Tenant/acme#spec", "has canary-token")]),
        InvalidArgument("no", violations=[Violation("canary-secret", "is wrong")]),
        TenonError("canary-key is wrong"),
    ]
    told = "\n".join(str(each) for error in said for each in problems_of(wanted, error))
    assert "canary" not in told


def test_a_mark_of_a_whole_file_has_no_line() -> None:
    assert str(Problem(Mark("a").file, 0, 0, "gone")) == "a: gone"
