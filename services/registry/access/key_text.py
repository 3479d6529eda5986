"""API keys: `tnk_<env>_<id>_<secret>_<crc>`, kept only as a keyed hash.

Base62 so that a double click takes it whole; the CRC tells a typing error from a wrong key without
a look-up; the id finds the row, and only the whole text, hashed under the pepper, opens it.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

from services.chassis.secret import Secret

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43  # 256 bits in base62
CRC_LENGTH: Final = 6
LOCAL: Final = "local"
"""The environment of a deployment that names none."""
ENVIRONMENT: Final = re.compile(r"[a-z0-9]{1,16}")
FORM: Final = re.compile(
    rf"tnk_([a-z0-9]{{1,16}})_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}_([0-9A-Za-z]{{{CRC_LENGTH}}})"
)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that has just been made; its text is shown once."""

    key_id: str
    text: Secret
    digest: bytes
    last4: str


def new_key(environment: str, pepper: Secret) -> NewKey:
    """A fresh key."""
    key_id = _random(ID_LENGTH)
    body = f"tnk_{environment}_{key_id}_{_random(SECRET_LENGTH)}"
    text = f"{body}_{_crc(body)}"
    return NewKey(key_id, Secret(text), digest(text, pepper), text[-4:])


def key_id_of(text: str) -> str | None:
    """The id in a well-formed key with a right checksum; None for anything else."""
    match = FORM.fullmatch(text)
    if match is None or _crc(text[: -CRC_LENGTH - 1]) != match.group(3):
        return None
    return match.group(2)


def digest(text: str, pepper: Secret) -> bytes:
    """The keyed hash under which a key is kept: HMAC-SHA256."""
    return hmac.new(pepper.reveal(), text.encode(), hashlib.sha256).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _crc(body: str) -> str:
    number, letters = zlib.crc32(body.encode()), ""
    for _ in range(CRC_LENGTH):
        number, rest = divmod(number, len(ALPHABET))
        letters = ALPHABET[rest] + letters
    return letters
