"""What signs deliveries agrees with the libraries of Standard Webhooks and Svix, both ways."""

import base64
import json
import time
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook

from services.chassis.errors import FailedPrecondition
from services.chassis.secret import Secret
from services.executor.deliveries.requests import SCHEME, signed
from services.providers.signatures import verify
from services.providers.signing_keys import new_private_key, new_secret, public_key

BODIES = 1000
LIBRARIES = pytest.mark.parametrize("library", [Webhook, SvixWebhook])
LONGEST = 400
ALPHABET = (0x00, 0x20, 0x22, 0x2E, 0x5C, 0x61, 0xE9, 0x20AC, 0x1F600)


def secret(random: Random) -> Secret:
    """One with 24 to 64 bytes, as the standard wants them."""
    key = random.randbytes(random.randrange(24, 65))
    return Secret("whsec_" + base64.b64encode(key).decode())


def body(random: Random) -> bytes:
    """Any JSON, since their library reads what it has verified."""
    text = "".join(map(chr, random.choices(ALPHABET, k=random.randrange(LONGEST))))
    return json.dumps({"data": text}, ensure_ascii=random.random() < 0.5).encode()


@LIBRARIES
def test_their_library_verifies_what_we_sign_by_each_of_the_secrets(library: Any) -> None:
    random, now = Random(11), time.time()
    for _ in range(BODIES):
        secrets, sent = [secret(random), secret(random)], body(random)
        headers = signed(UUID(int=random.getrandbits(128), version=4), sent, secrets, now)
        for each in secrets:
            library(each.reveal_text()).verify(sent, headers)
        with pytest.raises(WebhookVerificationError):
            library(secret(random).reveal_text()).verify(sent, headers)
        with pytest.raises(WebhookVerificationError):
            library(secrets[0].reveal_text()).verify(sent + b" ", headers)


@LIBRARIES
def test_we_verify_what_their_library_signs(library: Any) -> None:
    random, now = Random(12), datetime.now(UTC)
    for number in range(BODIES):
        theirs, sent = secret(random), body(random)
        message_id = f"msg_{number}"
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": library(theirs.reveal_text()).sign(message_id, now, sent.decode()),
        }
        verify(SCHEME, [secret(random), theirs], headers, sent, now.timestamp())


@LIBRARIES
def test_both_write_the_same_signature(library: Any) -> None:
    random, now = Random(13), datetime.now(UTC)
    for _ in range(BODIES):
        ours, sent = secret(random), body(random)
        headers = signed(
            UUID(int=random.getrandbits(128), version=4), sent, [ours], now.timestamp()
        )
        theirs = library(ours.reveal_text()).sign(headers["webhook-id"], now, sent.decode())
        assert headers["webhook-signature"] == theirs


def test_without_a_secret_nothing_is_signed() -> None:
    with pytest.raises(FailedPrecondition):
        signed(UUID(int=1), b"{}", [], 0.0)


def test_while_keys_overlap_each_receiver_finds_the_signature_it_can_check() -> None:
    shared, older, pair = new_secret(), new_private_key(), new_private_key()
    headers = signed(UUID(int=7), b'{"n": 1}', [pair, older, shared], now := time.time())
    versions = [word.partition(",")[0] for word in headers["webhook-signature"].split(" ")]
    assert versions == ["v1a", "v1a", "v1"]
    Webhook(shared.reveal_text()).verify(b'{"n": 1}', headers)
    for each in (pair, older):
        verify(SCHEME, [Secret(public_key(each))], headers, b'{"n": 1}', now)


def test_what_was_no_secret_once_does_not_bar_its_successor() -> None:
    good = new_secret()
    for bad in (Secret("not base64!"), Secret(public_key(new_private_key()))):
        headers = signed(UUID(int=7), b'{"n": 1}', [good, bad], time.time())
        Webhook(good.reveal_text()).verify(b'{"n": 1}', headers)


def test_a_public_key_signs_nothing() -> None:
    with pytest.raises(FailedPrecondition, match="public"):
        signed(UUID(int=7), b"{}", [Secret(public_key(new_private_key()))], time.time())
