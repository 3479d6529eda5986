"""Keyrings as people write them: what each line means, and which are refused without showing them."""

import pytest

from services.chassis.secret import Secret
from services.registry.keys.keyrings import KeyringError, extended, parse

ONE, TWO = "1a" * 32, "2B" * 32
KEY_ONE, KEY_TWO = Secret(bytes.fromhex(ONE)), Secret(bytes.fromhex(TWO))


def test_a_line_for_each_version() -> None:
    text = f"# made in May\n\n1:{ONE}\r\n  12 : {TWO}  \n"
    assert parse(text) == {1: KEY_ONE, 12: KEY_TWO}


@pytest.mark.parametrize("text", [ONE, f"{ONE}\n", f"# the key\n\n  {ONE}\n\n"])
def test_a_bare_line_is_version_1(text: str) -> None:
    assert parse(text) == {1: KEY_ONE}


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n"])
def test_a_keyring_may_be_empty(text: str) -> None:
    assert parse(text) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"1:{ONE[:-1]}", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"1:{ONE}0", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"1:{'zz' * 32}", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"one:{ONE}", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"-1:{ONE}", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"1:{ONE} # mine", "line 1 must be a version, a colon and 64 hexadecimal digits"),
        (f"0:{ONE}", "line 1 must have a version from 1 to 2147483647"),
        (f"2147483648:{ONE}", "line 1 must have a version from 1 to 2147483647"),
        (f"1:{ONE}\n\n01:{TWO}", "line 3 has the version of a line before it"),
        (
            f"{ONE}\n2:{TWO}",
            "line 1 must begin with a version and a colon, since there are other lines",
        ),
    ],
)
def test_a_faulty_line_is_told_by_its_number_and_never_shown(text: str, fault: str) -> None:
    with pytest.raises(KeyringError) as caught:
        parse(text)
    assert str(caught.value) == fault


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(KeyringError) as caught:
        parse(f"canary\n1:{ONE}\n0:{TWO}\n")
    assert [line.split()[:2] for line in str(caught.value).splitlines()] == [
        ["line", "1"],
        ["line", "3"],
    ]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("text", [f"# kept\n1:{ONE}", f"# kept\n{ONE}"])
def test_what_stood_there_stays_when_a_line_is_added(text: str, end: str) -> None:
    longer = extended(text + end, 2, KEY_TWO)
    assert parse(longer) == {1: KEY_ONE, 2: KEY_TWO}
    assert longer.startswith("# kept\n1:")
    assert parse(extended("", 1, KEY_ONE)) == {1: KEY_ONE}
