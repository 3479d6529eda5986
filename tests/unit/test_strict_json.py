"""JSON that somebody else wrote is read as the standard has it, or refused without repeating it."""

import pytest

from services.chassis import strict_json


def test_json_is_read() -> None:
    assert strict_json.parse(b' {"a": [1, 2.5, null, "\xc3\xa9"]} ') == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"canary",
        b"NaN",
        b'{"a": -Infinity}',
        b"\xff",
        b"[" * 100_000,
        b"9" * 5000,
        b"1 2",
    ],
)
def test_what_is_not_json_is_refused_and_not_repeated(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not JSON$") as refused:
        strict_json.parse(body)
    assert refused.value.__cause__ is None
