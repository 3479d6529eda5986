"""API keys as text."""

from services.chassis.secret import Secret
from services.registry.access.key_text import ALPHABET, FORM, digest, key_id_of, new_key

PEPPER = Secret(b"pepper")


def test_a_key_is_found_by_its_id_and_opened_by_its_whole_text() -> None:
    key = new_key("live", PEPPER)
    text = key.text.reveal_text()
    assert FORM.fullmatch(text) and text.startswith(f"tnk_live_{key.key_id}_")
    assert key_id_of(text) == key.key_id
    assert digest(text, PEPPER) == key.digest
    assert digest(text, Secret(b"other")) != key.digest
    assert text not in repr(key)


def test_any_one_letter_wrong_is_seen_without_a_look_up() -> None:
    text = new_key("live", PEPPER).text.reveal_text()
    for place, letter in enumerate(text):
        other = next(each for each in ALPHABET if each != letter)
        assert key_id_of(text[:place] + other + text[place + 1 :]) is None
    for wrong in ("", text[:-1], text + "0", f" {text}", text.upper(), "ü" * len(text)):
        assert key_id_of(wrong) is None


def test_no_two_keys_are_the_same() -> None:
    made = [new_key("live", PEPPER) for _ in range(200)]
    assert len({key.key_id for key in made}) == len({key.digest for key in made}) == 200
