import base64
import contextlib
import dataclasses
import hmac
import itertools
import string
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import sealed_box
from services.chassis.envelope import Unsealable
from services.chassis.errors import InvalidArgument
from services.chassis.sealed_box import NotASeal, NotASealingKey, Purpose, TooLarge
from services.chassis.secret import Secret

PRIVATE, PUBLIC = sealed_box.new_pair()
PURPOSE = Purpose("acme", "Credential", "github", "token")
SEALED = sealed_box.seal(PUBLIC, 7, PURPOSE, Secret("swordfish"))
HEAD, _, TEXT = SEALED.rpartition(".")
BODY = base64.urlsafe_b64decode(TEXT + "=" * (-len(TEXT) % 4))

words = st.text(st.characters(codec="utf-8"))


def text_of(body: bytes) -> str:
    return f"{HEAD}.{base64.urlsafe_b64encode(body).decode().rstrip('=')}"


@given(st.builds(Purpose, words, words, words, words), st.binary(max_size=2000))
def test_what_was_sealed_opens_for_its_purpose_alone(purpose: Purpose, plaintext: bytes) -> None:
    sealed = sealed_box.seal(PUBLIC, 3, purpose, Secret(plaintext))
    assert sealed_box.version_of(sealed) == 3
    assert sealed_box.open_box(PRIVATE, purpose, sealed).reveal() == plaintext
    if purpose != PURPOSE:
        with pytest.raises(Unsealable):
            sealed_box.open_box(PRIVATE, PURPOSE, sealed)


@pytest.mark.parametrize("plaintext", [b"", b"\x00\xff\n", b"x" * sealed_box.LARGEST])
def test_nothing_and_bytes_and_the_largest_can_be_sealed(plaintext: bytes) -> None:
    sealed = sealed_box.seal(PUBLIC, 999_999_999, PURPOSE, Secret(plaintext))
    assert sealed_box.open_box(PRIVATE, PURPOSE, sealed).reveal() == plaintext


def test_more_than_the_largest_cannot() -> None:
    too_large = Secret(b"x" * (sealed_box.LARGEST + 1))
    with pytest.raises(TooLarge, match="at most 64 KiB"):
        sealed_box.seal(PUBLIC, 1, PURPOSE, too_large)
    sealed = base64.urlsafe_b64encode(bytes(48 + sealed_box.LARGEST + 3)).decode().rstrip("=")
    with pytest.raises(NotASeal):
        sealed_box.version_of(f"tenon-seal-1.1.{sealed}")


def test_equal_secrets_seal_to_unlike_texts() -> None:
    again = sealed_box.seal(PUBLIC, 7, PURPOSE, Secret("swordfish"))
    at = len(HEAD) + 1
    assert all(again[i : i + 8] != SEALED[i : i + 8] for i in range(at, len(SEALED) - 8))


@pytest.mark.parametrize("field", ["tenant", "kind", "name", "part"])
def test_a_seal_opens_for_no_other_purpose(field: str) -> None:
    with pytest.raises(Unsealable):
        sealed_box.open_box(PRIVATE, dataclasses.replace(PURPOSE, **{field: "other"}), SEALED)


def test_words_of_a_purpose_do_not_run_together() -> None:
    moved = Purpose("acm", "eCredential", "github", "token")
    with pytest.raises(Unsealable):
        sealed_box.open_box(PRIVATE, moved, SEALED)


def test_another_key_does_not_open() -> None:
    other, _ = sealed_box.new_pair()
    with pytest.raises(Unsealable) as refused:
        sealed_box.open_box(other, PURPOSE, SEALED)
    assert "swordfish" not in str(refused.value) and TEXT not in str(refused.value)


@pytest.mark.parametrize("bit", range(len(BODY) * 8))
def test_no_bit_can_be_changed(bit: int) -> None:
    changed = bytearray(BODY)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Unsealable):
        sealed_box.open_box(PRIVATE, PURPOSE, text_of(bytes(changed)))


@pytest.mark.parametrize("length", range(len(SEALED)))
def test_nothing_can_be_cut_off(length: int) -> None:
    with pytest.raises((NotASeal, Unsealable)):
        sealed_box.open_box(PRIVATE, PURPOSE, SEALED[:length])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "swordfish",
        SEALED.replace("tenon-seal-1", "tenon-seal-2"),
        SEALED.replace("tenon-seal-1", "Tenon-seal-1"),
        f"tenon-seal-1.0.{TEXT}",
        f"tenon-seal-1.07.{TEXT}",
        f"tenon-seal-1.-7.{TEXT}",
        f"tenon-seal-1.7_0.{TEXT}",
        f"tenon-seal-1.٧.{TEXT}",
        f"tenon-seal-1.1000000000.{TEXT}",
        f"tenon-seal-1..{TEXT}",
        f"tenon-seal-1.{TEXT}",
        f" {SEALED}",
        f"{SEALED}\n",
        f"{SEALED}=",
        f"{SEALED}.",
        f"{SEALED}A",
        f"{SEALED[:40]} {SEALED[40:]}",
        f"{SEALED[:40]}+{SEALED[41:]}",
        f"{SEALED[:40]}é{SEALED[41:]}",
        text_of(BODY[:47]),
        f"{HEAD}.",
    ],
    # Each process that runs tests seals anew: the texts cannot name them.
    ids=itertools.count(),
)
def test_what_is_no_seal_is_told_without_its_text(text: str) -> None:
    for read in (sealed_box.version_of, lambda t: sealed_box.open_box(PRIVATE, PURPOSE, t)):
        with pytest.raises(NotASeal) as refused:
            read(text)
        assert refused.value.code == "NOT_A_SEAL" and isinstance(refused.value, InvalidArgument)
        assert str(refused.value) == "not what `tenon seal` prints"


def test_one_seal_has_one_text() -> None:
    """Base64 leaves bits over in the last letter; another letter would mean the same bytes."""
    sealed = sealed_box.seal(PUBLIC, 7, PURPOSE, Secret("x" * 5))
    assert len(sealed.rpartition(".")[2]) % 4 == 3
    good = []
    for letter in f"{string.ascii_letters}{string.digits}-_":
        with contextlib.suppress(NotASeal):
            sealed_box.version_of(sealed[:-1] + letter)
            good.append(letter)
    assert len(good) == 16 and sealed[-1] in good


@given(st.text(max_size=200))
def test_any_text_is_refused_as_it_should_be(text: str) -> None:
    for each in (text, f"tenon-seal-1.1.{text}"):
        with pytest.raises((NotASeal, Unsealable)):
            sealed_box.open_box(PRIVATE, PURPOSE, each)


@given(st.binary(min_size=48, max_size=200))
def test_any_bytes_are_unsealable_and_nothing_else(body: bytes) -> None:
    with pytest.raises(Unsealable):
        sealed_box.open_box(PRIVATE, PURPOSE, text_of(body))


def test_the_public_key_is_kept_as_text() -> None:
    text = sealed_box.sealing_key_text(12, PUBLIC)
    assert text.startswith("tenon-sealing-key-1.12.") and text.count(".") == 2
    assert sealed_box.sealing_key_of(text) == (12, PUBLIC)
    for wrong in (text[:-1], f"{text}AAAA", text.replace(".12.", ".0."), SEALED, "", f"{text}\n"):
        with pytest.raises(NotASealingKey, match="tenon seal --print-key"):
            sealed_box.sealing_key_of(wrong)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), b"\x01" + bytes(31), bytes(33)])
def test_nothing_is_sealed_to_what_is_no_key(public: bytes) -> None:
    """Zero and one are points of low order: what is sealed to them anybody could open."""
    with pytest.raises(NotASealingKey):
        sealed_box.seal(public, 1, PURPOSE, Secret("swordfish"))


@pytest.mark.parametrize("version", [0, -1, 1_000_000_000])
def test_nothing_is_sealed_to_a_version_that_cannot_be_written(version: int) -> None:
    with pytest.raises(NotASealingKey):
        sealed_box.seal(PUBLIC, version, PURPOSE, Secret("swordfish"))


INFO: Final = (
    b"\0\0\0\x0ctenon/seal/1\0\0\0\x04acme\0\0\0\x0aCredential\0\0\0\x06github\0\0\0\x05token"
)


def test_any_implementation_of_hpke_opens_a_seal() -> None:
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    private = X25519PrivateKey.from_private_bytes(PRIVATE.reveal())
    assert PURPOSE.info() == INFO
    assert suite.decrypt(BODY, private, INFO) == b"swordfish"
    assert opened(PRIVATE.reveal(), BODY, INFO, aead_id=2, key_bytes=32) == b"swordfish"


def test_the_opening_written_out_here_is_that_of_the_rfc() -> None:
    """RFC 9180 A.1.1, sequence number 0; all its vectors have associated data, a seal has none."""
    private = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"
    body = (
        "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )
    found = opened(
        bytes.fromhex(private),
        bytes.fromhex(body),
        b"Ode on a Grecian Urn",
        aead_id=1,
        key_bytes=16,
        associated=b"Count-0",
    )
    assert found == b"Beauty is truth, truth beauty"


def opened(
    private: bytes,
    body: bytes,
    info: bytes,
    *,
    aead_id: int,
    key_bytes: int,
    associated: bytes = b"",
) -> bytes:
    """RFC 9180 §4.1, §5.1 and §5.2, step by step: base mode, X25519, HKDF-SHA256, AES-GCM."""
    kem = b"KEM" + bytes([0, 0x20])
    suite = b"HPKE" + bytes([0, 0x20, 0, 1, 0, aead_id])

    def extract(of: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + of + label + ikm, "sha256")

    def expand(of: bytes, prk: bytes, label: bytes, text: bytes, length: int) -> bytes:
        message = length.to_bytes(2, "big") + b"HPKE-v1" + of + label + text + b"\x01"
        return hmac.digest(prk, message, "sha256")[:length]

    own, enc = X25519PrivateKey.from_private_bytes(private), body[:32]
    context = enc + own.public_key().public_bytes_raw()
    shared = own.exchange(X25519PublicKey.from_public_bytes(enc))
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", context, 32)
    schedule = b"\0" + extract(suite, b"", b"psk_id_hash", b"")
    schedule += extract(suite, b"", b"info_hash", info)
    prk = extract(suite, secret, b"secret", b"")
    key = expand(suite, prk, b"key", schedule, key_bytes)
    nonce = expand(suite, prk, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(nonce, body[32:], associated)
