import copy
import dataclasses
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from services.chassis.secret import Secret

CLEAR = "correct-horse-battery"
SECRET = Secret(CLEAR)


@dataclasses.dataclass(frozen=True)
class Holder:
    token: Secret


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        "{}".format,
        "{:>40}".format,
        "%s".__mod__,
        lambda it: f"{it!r:40}",
        lambda it: repr([it]),
    ],
)
def test_no_way_of_showing_a_secret_shows_its_value(show: Callable[[object], str]) -> None:
    assert CLEAR not in show(SECRET)
    assert "Secret(•••)" in show(SECRET)


def test_what_holds_a_secret_does_not_show_it_either() -> None:
    assert CLEAR not in repr(Holder(SECRET))


def test_a_secret_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("here").warning("using %s", SECRET)
    assert caplog.messages == ["using Secret(•••)"]


@pytest.mark.parametrize(
    "take",
    [
        pickle.dumps,
        lambda it: pickle.dumps(it, protocol=0),
        copy.copy,
        copy.deepcopy,
        json.dumps,
        vars,
        list,
        bytes,
        dataclasses.asdict,
        lambda it: dataclasses.asdict(Holder(it)),
        hash,
        lambda it: {it},
    ],
)
def test_no_copy_of_the_value_can_be_taken_by_accident(take: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refused:
        take(SECRET)
    assert CLEAR not in str(refused.value)


def test_reveal_gives_back_what_was_put_in() -> None:
    assert Secret("grün").reveal() == "grün".encode()
    assert Secret("grün").reveal_text() == "grün"
    assert Secret(b"\xff\x00").reveal() == b"\xff\x00"


def test_bytes_that_are_no_text_are_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="not UTF-8") as refused:
        Secret(b"secret-\xff").reveal_text()
    assert "secret-" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("value", [None, 12345678, bytearray(b"x"), ["x"]])
def test_only_bytes_and_text_become_secrets(value: Any) -> None:
    with pytest.raises(TypeError, match="bytes or text"):
        Secret(value)


def test_secrets_are_equal_by_value_and_to_nothing_else() -> None:
    assert Secret("a") == Secret(b"a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_comparison_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return True

    monkeypatch.setattr("hmac.compare_digest", watched)
    assert Secret("a") == Secret("b")
    assert compared == [(b"a", b"b")]
