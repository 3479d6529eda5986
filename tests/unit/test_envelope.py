import dataclasses
import hashlib
import hmac
import os
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import envelope
from services.chassis.envelope import KeyPlace, Place, Unsealable
from services.chassis.secret import Secret

KEY = Secret(bytes(range(32)))
TENANT, ROW, VERSION, DATA_KEY, OTHER = (UUID(int=n) for n in range(1, 6))
PLACE = Place(TENANT, "credentials", ROW, "value", VERSION, DATA_KEY)
KEY_PLACE = KeyPlace(TENANT, DATA_KEY, "main", 7)
SEALED = envelope.seal(KEY, PLACE, b"swordfish")
WRAPPED = envelope.wrap(KEY, KEY_PLACE, envelope.new_key())

uuids = st.uuids()
places = st.builds(Place, uuids, st.text(), uuids, st.text(), uuids, uuids)
keys = st.binary(min_size=32, max_size=32).map(Secret)


@given(keys, places, st.binary(max_size=2000))
def test_what_was_sealed_opens_with_its_key_at_its_place(
    key: Secret, place: Place, plaintext: bytes
) -> None:
    sealed = envelope.seal(key, place, plaintext)
    assert envelope.open_sealed(key, place, sealed).reveal() == plaintext
    assert len(sealed) == len(plaintext) + 61


def test_a_wrapped_key_unwraps() -> None:
    data_key = envelope.new_key()
    wrapped = envelope.wrap(KEY, KEY_PLACE, data_key)
    assert envelope.unwrap(KEY, KEY_PLACE, wrapped) == data_key
    assert data_key.reveal() not in wrapped


def test_equal_plaintexts_seal_to_unlike_bytes() -> None:
    again = envelope.seal(KEY, PLACE, b"swordfish")
    assert all(again[at : at + 8] != SEALED[at : at + 8] for at in range(1, len(SEALED) - 8))


@pytest.mark.parametrize("bit", range(len(SEALED) * 8))
def test_no_bit_can_be_changed(bit: int) -> None:
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, bytes(changed))


@pytest.mark.parametrize("length", range(len(SEALED)))
def test_nothing_can_be_cut_off(length: int) -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, SEALED[:length])


def test_nothing_can_be_added() -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, SEALED + b"\x00")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_unsealable_and_nothing_else(sealed: bytes) -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, b"\x01" + sealed)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": OTHER},
        {"table": "connections"},
        {"row": OTHER},
        {"column": "other"},
        {"version": OTHER},
        {"data_key": OTHER},
        {"table": "credentialsv", "column": "alue"},
        {"row": VERSION, "version": ROW},
    ],
)
def test_a_value_opens_at_no_other_place(change: dict[str, Any]) -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, dataclasses.replace(PLACE, **change), SEALED)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": OTHER},
        {"data_key": OTHER},
        {"wrapping_key": "spare"},
        {"wrapping_version": 8},
        {"tenant": DATA_KEY, "data_key": TENANT},
    ],
)
def test_a_wrapped_key_unwraps_at_no_other_place(change: dict[str, Any]) -> None:
    with pytest.raises(Unsealable):
        envelope.unwrap(KEY, dataclasses.replace(KEY_PLACE, **change), WRAPPED)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(envelope.new_key(), PLACE, SEALED)
    with pytest.raises(Unsealable):
        envelope.unwrap(envelope.new_key(), KEY_PLACE, WRAPPED)


def test_a_wrapped_key_is_never_a_payload_nor_a_payload_a_key() -> None:
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, WRAPPED)
    with pytest.raises(Unsealable):
        envelope.unwrap(KEY, KEY_PLACE, SEALED)
    assert PLACE.associated_data()[:12] != KEY_PLACE.associated_data()[:12]


def test_the_key_is_committed_to_and_not_only_the_tag() -> None:
    """Right message key, right tag, another key's commitment: must not open."""
    nonce = os.urandom(12)
    message_key, _ = envelope._message_keys(KEY, nonce)
    _, foreign = envelope._message_keys(envelope.new_key(), nonce)
    body = AESGCM(message_key).encrypt(nonce, b"swordfish", PLACE.associated_data())
    with pytest.raises(Unsealable):
        envelope.open_sealed(KEY, PLACE, b"\x01" + nonce + foreign + body)


def test_the_error_tells_neither_key_nor_text() -> None:
    with pytest.raises(Unsealable) as refused:
        envelope.open_sealed(KEY, PLACE, SEALED[:-1])
    assert str(refused.value) == "the sealed value does not open here"
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_a_mistake_of_ours(length: int) -> None:
    short = Secret(b"k" * length)
    with pytest.raises(ValueError, match="32 bytes"):
        envelope.seal(short, PLACE, b"")
    with pytest.raises(ValueError, match="32 bytes"):
        envelope.wrap(KEY, KEY_PLACE, short)


def test_what_stands_in_a_database_today_opens_tomorrow() -> None:
    """Pinned: a change of any byte here orphans every sealed value in the world."""
    assert PLACE.associated_data().hex() == (
        "0000000f" + b"tenon/payload/1".hex()
        + "00000010" + "00" * 15 + "01"
        + "0000000b" + b"credentials".hex()
        + "00000010" + "00" * 15 + "02"
        + "00000005" + b"value".hex()
        + "00000010" + "00" * 15 + "03"
        + "00000010" + "00" * 15 + "04"
    )  # fmt: skip
    assert KEY_PLACE.associated_data().hex() == (
        "00000013" + b"tenon/wrapped-key/1".hex()
        + "00000010" + "00" * 15 + "01"
        + "00000010" + "00" * 15 + "04"
        + "00000004" + b"main".hex()
        + "00000008" + "0000000000000007"
    )  # fmt: skip
    assert envelope.open_sealed(KEY, PLACE, bytes.fromhex(PINNED_SEALED)).reveal() == b"swordfish"
    assert envelope.unwrap(KEY, KEY_PLACE, bytes.fromhex(PINNED_WRAPPED)).reveal() == b"d" * 32
    assert envelope.derive(KEY, "executor/1", b"a").reveal().hex() == PINNED_DERIVED
    assert envelope.fingerprint(KEY, "credential", "github", b"swordfish") == PINNED_FINGERPRINT


def test_derivation_is_hkdf_sha256_of_rfc_5869() -> None:
    info = envelope.length_prefixed(b"tenon/derived-key/1", b"executor/1", b"a")
    extracted = hmac.digest(b"\x00" * 32, KEY.reveal(), hashlib.sha256)
    expected = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    assert envelope.derive(KEY, "executor/1", b"a").reveal() == expected


def test_derived_keys_differ_by_key_purpose_and_each_part_of_the_context() -> None:
    contexts: list[tuple[str, list[bytes]]] = [
        *(("p", []), ("p", [b""]), ("p", [b"ab"]), ("p", [b"a", b"b"]), ("pa", [b"b"]), ("q", [])),
    ]
    derived = [envelope.derive(KEY, purpose, *parts).reveal() for purpose, parts in contexts]
    derived.append(envelope.derive(envelope.new_key(), "p").reveal())
    assert len(set(derived)) == len(derived)
    assert all(len(key) == 32 for key in derived)


def test_fingerprints_tell_equal_values_of_one_thing_and_of_no_other() -> None:
    def taken(
        key: Secret = KEY,
        kind: str = "credential",
        name: str = "github",
        value: bytes = b"swordfish",
    ) -> str:
        return envelope.fingerprint(key, kind, name, value)

    assert taken() == taken()
    others = [
        taken(key=envelope.new_key()),
        taken(kind="endpoint"),
        taken(name="gitlab"),
        taken(value=b"swordfisH"),
        taken(kind="credentialg", name="ithub"),
    ]
    assert len({taken(), *others}) == 6
    assert len(taken()) == 64


def test_no_key_is_given_out_twice() -> None:
    assert len({envelope.new_key().reveal() for _ in range(100)}) == 100


PINNED_SEALED = (
    "01000102030405060708090a0ba88435cbeffb4f0d80202464005baabce17ce0ec74275f1184850f"
    "8d3481195a5ea0f59905e167929db581b001c7bae421c9d8ffe9b1df941f"
)
PINNED_WRAPPED = (
    "01000102030405060708090a0ba88435cbeffb4f0d80202464005baabce17ce0ec74275f1184850f"
    "8d3481195a49b3fe8f05e36a859121dda8e09f96f14a6adac64f794c565c4db6e0017eb2b3225bca"
    "8fbfa2acca6d8f655f4e5fdccb"
)
PINNED_DERIVED = "d9d468524d25e9d2235cdb9e7f5a2e0993248a4378a61db3c9c9ce16a04c6615"
PINNED_FINGERPRINT = "5cd4edfb691d5077213d5957634375b8ef0ce4393da64673b99543e7fea4e09c"
