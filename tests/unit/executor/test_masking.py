"""What people see of an answer: names and shapes, and no secret."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import MASK, Secret
from services.executor.executions.masking import LONGEST_SENTENCE, masked, sentence, without

SECRETS = [Secret("sesame-open"), Secret("4711"), Secret(""), Secret(b"\xff\xfe")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (
            {"title": "A bug", "n": 3, "ok": True, "none": None},
            {"title": "A bug", "n": 3, "ok": True, "none": None},
        ),
        (
            {"password": "x", "api_key": 1, "Authorization": {"a": 1}},
            {"password": MASK, "api_key": MASK, "Authorization": MASK},
        ),
        ({"token": None}, {"token": None}),
        ({"a": "sesame-open"}, {"a": MASK}),
        ({"a": "so sesame-open it is"}, {"a": MASK}),
        ({"a": ["x", "sesame-open"]}, {"a": ["x", MASK]}),
        ({"sesame-open": 1}, {MASK: 1}),
        ({"pin": 4711}, {"pin": MASK}),
        ({"a": "ghp_0123456789abcdef0123456789abcdef0123"}, {"a": MASK}),
        ({"a": "https://u:p@host/"}, {"a": MASK}),
        ({"a": "x" * 65}, {"a": "x" * 64 + "…"}),
        ({"a": "x" * 100 + "sesame-open"}, {"a": MASK}),
        ({"a": "nul\x00 and \ud800 and \x1b[31m"}, {"a": "nul  and   and  [31m"}),
        ({"a": b"bytes"}, {"a": MASK}),
    ],
)
def test_a_value_is_shown_masked(value: Any, shown: Any) -> None:
    assert masked(value, SECRETS) == shown


def test_depth_and_length_are_bounded() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = {"a": deep}
    assert len(json.dumps(masked(deep, []))) < 200
    assert masked(list(range(60)), []) == [*range(50), "…"]
    assert masked({str(n): n for n in range(60)}, [])["…"] == "…"  # type: ignore[index,call-overload]


def test_a_sentence_holds_no_secret_and_one_line() -> None:
    assert sentence("it said sesame-open", SECRETS) == MASK
    assert "ghp_" + "a" * 36 not in sentence("it said ghp_" + "a" * 36, SECRETS)
    assert sentence("two\nlines\x00", SECRETS) == "two lines "
    assert len(sentence("x" * 1000, SECRETS)) == LONGEST_SENTENCE + 1


@given(
    st.recursive(
        st.text() | st.just("sesame-open") | st.integers() | st.none(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text() | st.just("a sesame-open"), inner)
        ),
        max_leaves=20,
    )
)
def test_no_secret_is_ever_shown(value: Any) -> None:
    shown = json.dumps(masked(value, SECRETS))
    assert "sesame-open" not in shown and "\\u0000" not in shown


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ({"a": "x" * 500, "token": "kept", "n": 1.5}, {"a": "x" * 500, "token": "kept", "n": 1.5}),
        ({"a": [{"b": "so sesame-open it is"}]}, {"a": [{"b": MASK}]}),
        ({"x": {"sesame-open!": 1}}, {"x": {MASK: 1}}),
        ({"a": 4711, "b": "4711", "c": "room 4711"}, {"a": MASK, "b": MASK, "c": "room 4711"}),
        ({"a": None, "b": True, "c": ""}, {"a": None, "b": True, "c": ""}),
    ],
)
def test_values_in_full_give_no_secret_away(value: Any, given: Any) -> None:
    assert without(value, SECRETS) == given
