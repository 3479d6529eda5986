"""What the audit log keeps of a value fails closed."""

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from tenon.registry.v1 import wanted_pb2

from services.chassis.secret import MASK
from services.providers.catalog import Catalog
from services.registry.audit.masks import Masks
from services.registry.messages.config import SCHEMAS, to_declared
from services.registry.wanted.plan import NOTHING, FieldChange, make_plan

MASKS = Masks(SCHEMAS, Catalog.load())
MARK = "0123456789abcdef" * 4


def kept(kind: str, path: str, value: Any, provider: str = "github") -> str | None:
    return MASKS.kept(kind, FieldChange(path, NOTHING, value), provider).get("after")


@pytest.mark.parametrize(
    ("kind", "path", "value", "shown"),
    [
        # What the contract types.
        ("Integration", "spec.base_url", "https://a.example", '"https://a.example"'),
        ("Integration", "spec.is_active", False, "false"),
        ("Integration", "spec.is_active", NOTHING, None),
        ("Connector", "spec.max_retries", 3, "3"),
        ("Connector", "spec.steps[0].integration", "github", '"github"'),
        ("Connector", "spec.steps[2].retry.max_attempts", 4, "4"),
        ("Connector", "spec.schedule.every", "60s", '"60s"'),
        ("Subscription", "spec.event_types", ["a", "b"], '["a", "b"]'),
        ("Integration", "spec.base_url", "https://u:p4ss@a.example", f'"https://u:{MASK}@a.example"'),
        # A setting that the manifest declares, and one that it does not.
        ("Integration", "spec.config.owner", "acme", '"acme"'),
        ("Integration", "spec.config.other", "acme", f'"{MASK}"'),
        ("Integration", "spec.config.owner", 12, f'"{MASK}"'),
        ("Integration", "spec.config", {"owner": "a", "x": {"y": 1}},
         f'{{"owner": "a", "x": {{"y": "{MASK}"}}}}'),
        # Templates, maps and free JSON; numbers and booleans too.
        ("Connector", "spec.steps[0].path", "/a?b=c", f'"{MASK}"'),
        ("Connector", "spec.steps[0].headers.X-A", "s3cret", f'"{MASK}"'),
        ("Connector", "spec.steps[0].body.pin", 1234, f'"{MASK}"'),
        ("Connector", "spec.steps[0].body.on", True, f'"{MASK}"'),
        ("Connector", "spec.steps[0].body", {"deep": [{"pin": 0}]},
         f'{{"deep": [{{"pin": "{MASK}"}}]}}'),
        ("Connector", "spec.schedule.input.pin", 1234, f'"{MASK}"'),
        ("Subscription", "spec.filter", "event.id == 1", f'"{MASK}"'),
        ("Tenant", "metadata.annotations.note", "s3cret", f'"{MASK}"'),
        ("Tenant", "spec.limits.max_running_per_provider.github", 3, f'"{MASK}"'),
        ("Tenant", "spec.limits.max_running", 3, "3"),
        # Secrets by fingerprint; what nobody knows, not at all.
        ("Credential", "spec.values.token", MARK, '"fingerprint 0123456789ab"'),
        ("Connector", "spec.nothing", "s3cret", f'"{MASK}"'),
        ("Stranger", "spec.x", "s3cret", f'"{MASK}"'),
        ("Stranger", "x", 5, f'"{MASK}"'),
        ("Key", "name", "ci", '"ci"'),
        ("Key", "digest", "abc", f'"{MASK}"'),
    ],
)  # fmt: skip
def test_only_what_is_typed_is_kept(kind: str, path: str, value: Any, shown: str | None) -> None:
    assert kept(kind, path, value) == shown


def test_settings_of_an_unknown_provider_are_hidden() -> None:
    for provider in ("", "nobody"):
        assert kept("Integration", "spec.config.owner", "acme", provider) == f'"{MASK}"'


SECRET = "canary-9f2c"
NUMBER = 918273645

leaves = st.sampled_from([SECRET, NUMBER, float(NUMBER) + 0.5])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(
            st.sampled_from(["a", "pin", "b.c", "x[0]"]), inner, min_size=1, max_size=2
        )
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["a", "owner_id", "d.e"]), trees, min_size=1, max_size=3)
texts = st.dictionaries(st.sampled_from(["A", "b-c", "d.e"]), st.just(SECRET), min_size=1)
FREE: dict[str, Any] = {
    "path": st.just(f"/a/{SECRET}"),
    "condition": st.just(f"event.id == '{SECRET}'"),
    "body": trees,
    "headers": texts,
    "query": texts,
    "path_params": texts,
}


@given(
    step=st.fixed_dictionaries({}, optional=FREE),
    config=objects,
    schedule=objects,
    meta=texts,
    mapping=st.sampled_from(["source", "transform"]),
    before=st.booleans(),
)
def test_a_secret_in_a_free_place_is_in_no_event(
    step: dict[str, Any],
    config: dict[str, Any],
    schedule: dict[str, Any],
    meta: dict[str, str],
    mapping: str,
    before: bool,
) -> None:
    said = {
        "connector": {
            "steps": [{"name": "one", **step}],
            "schedule": {"input": schedule},
            "output": [{"target": "t", mapping: SECRET, "default": schedule}],
        },
        "integration": {"provider": "github", "config": config},
        "subscription": {"filter": SECRET},
    }
    for kind, spec in said.items():
        meta_of = {"name": "n", "labels": meta, "annotations": meta}
        document = {"metadata": meta_of, kind: spec}
        declared = to_declared(ParseDict(document, wanted_pb2.Resource()))
        plan = make_plan("acme", "git", 0, [declared], {}, {}, SCHEMAS)
        for change in plan.changes:
            for field in change.fields:
                turned = FieldChange(field.path, field.after, field.before)
                words = str(MASKS.kept(change.after.kind, turned if before else field, "github"))
                assert SECRET not in words and str(NUMBER) not in words


def test_a_credential_s_value_is_hidden_wherever_it_stands() -> None:
    resource = wanted_pb2.Resource()
    resource.metadata.name = "token"
    resource.credential.values["token"].plain = SECRET.encode()
    declared = to_declared(resource)
    shown = kept("Integration", "spec.display_name", f"ours {SECRET} here")
    assert declared.secrets and shown == f'"ours {MASK} here"'
