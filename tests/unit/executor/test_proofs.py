"""A sender shows what the endpoint asks for; whatever else is shown is one refusal of one cost."""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest

from services.chassis.secret import Secret
from services.executor.ingress import proofs
from services.executor.ingress.proofs import Delivery, NotLetIn, Proof, proof_of, prove, url_token
from services.executor.registry.credentials import Resolved, Values
from services.providers import signatures, signing_keys

NOW = 1_700_000_000.0
HOOK = {"secret": Secret("the secret of a hook")}
OLD = {"secret": Secret("the secret before")}
TOKEN = {"token": Secret("a-bearer-token")}
KEY = {"key": Secret("an-api-key")}
LOGIN = {"username": Secret("ada"), "password": Secret("p:w é")}
BASIC = b64encode("ada:p:w é".encode()).decode()
IN_URL = url_token(HOOK["secret"], "/v1/acme/hook")
RIGHT: Mapping[str, tuple[str, Values, Mapping[str, str], str]] = {
    "SIGNATURE": (
        "webhook_secret",
        HOOK,
        signatures.sign("github_sha256", HOOK["secret"], b"{}", NOW, "x"),
        "",
    ),
    "NONE": ("webhook_secret", HOOK, {}, IN_URL),
    "BEARER": ("bearer", TOKEN, {"authorization": "Bearer a-bearer-token"}, ""),
    "BASIC": ("basic", LOGIN, {"authorization": f"Basic {BASIC}"}, ""),
    "API_KEY": ("api_key", KEY, {"x-api-key": "an-api-key"}, ""),
    "CUSTOM": ("bearer", TOKEN, {"x-hook": "a-bearer-token"}, ""),
}
"""What each way takes: the credential's type and values, headers, and the url's token."""
every_way = pytest.mark.parametrize("auth", RIGHT)


def proof(auth: str, *previous: Values, header: str = "") -> Proof:
    kind, values, _, _ = RIGHT[auth]
    spec = {"auth": auth, "auth_header": header or ("X-Hook" if auth == "CUSTOM" else "")}
    return proof_of(spec, "github_sha256", Resolved(UUID(int=1), kind, 2, values, previous))


def delivery(
    headers: Mapping[str, str], token: str = "", body: bytes = b"{}", endpoint: str = "hook"
) -> Delivery:
    return Delivery("acme", endpoint, headers, body, token)


def is_let_in(asked: Proof, one: Delivery) -> bool:
    try:
        prove(asked, one, NOW)
    except NotLetIn:
        return False
    return True


def test_each_way_lets_in_what_it_asks_for_and_nothing_that_another_asks_for() -> None:
    assert set(RIGHT) == proofs.WAYS
    for asked in RIGHT:
        let_in = {
            way
            for way, (_, _, headers, token) in RIGHT.items()
            if is_let_in(proof(asked), delivery(headers, token))
        }
        assert let_in == {asked}


@every_way
def test_what_is_wrong_by_a_little_is_refused(auth: str) -> None:
    _, _, headers, token = RIGHT[auth]
    (name, value) = next(iter(headers.items()), ("x-none", ""))
    wrong = [
        delivery({}, ""),
        delivery({name: ""}, ""),
        delivery({name: value[:-1]}, token[:-1]),
        delivery({name: value + "x"}, token + "x"),
        delivery({name: f"{value}, {value}"}, token * 2),
        delivery({name: value.swapcase()}, token.swapcase()),
        delivery({name: "\udcff\udc00é"}, "\udcff"),
        delivery({name: "Bearer"}, "="),
    ]
    assert [is_let_in(proof(auth), each) for each in wrong] == [False] * len(wrong)
    # A url has a token where it is asked for, and only there.
    assert not is_let_in(proof(auth), delivery(headers, "" if token else IN_URL))


@every_way
def test_earlier_versions_let_in_too_while_they_count(auth: str) -> None:
    kind, values, headers, token = RIGHT[auth]
    newer = {part: Secret("another one") for part in values}
    spec = {"auth": auth, "auth_header": "X-Hook"} if auth == "CUSTOM" else {"auth": auth}
    for previous, expected in (((OLD, values), True), ((), False)):
        resolved = Resolved(UUID(int=1), kind, 3, newer, previous)
        asked = proof_of(spec, "github_sha256", resolved)
        assert is_let_in(asked, delivery(headers, token)) is expected


@pytest.mark.parametrize("auth", ["BEARER", "BASIC"])
def test_the_name_of_a_scheme_has_no_case_and_may_stand_apart(auth: str) -> None:
    scheme, _, value = RIGHT[auth][2]["authorization"].partition(" ")
    for said in (scheme.lower(), scheme.upper(), f"{scheme}  "):
        assert is_let_in(proof(auth), delivery({"authorization": f"{said} {value}"}))
    assert not is_let_in(proof(auth), delivery({"authorization": value}))


def test_a_key_may_come_in_a_header_of_another_name() -> None:
    asked = proof("API_KEY", header="X-Token")
    assert is_let_in(asked, delivery({"x-token": "an-api-key"}))
    assert not is_let_in(asked, delivery({"x-api-key": "an-api-key"}))


def test_the_token_of_a_url_is_its_own_and_as_documented() -> None:
    digest = hmac.new(b"the secret of a hook", b"/v1/acme/hook", hashlib.sha256).digest()
    written = b64encode(digest[:16], altchars=b"-_").decode().rstrip("=")
    assert (IN_URL, len(IN_URL)) == (written, 22)
    assert not is_let_in(proof("NONE"), delivery({}, IN_URL, endpoint="other"))


def test_what_was_projected_before_there_was_a_choice_is_signed() -> None:
    resolved = Resolved(UUID(int=1), "webhook_secret", 1, HOOK)
    asked = proof_of({"secret": "hook"}, "github_sha256", resolved)
    assert is_let_in(asked, delivery(RIGHT["SIGNATURE"][2]))


@every_way
def test_a_credential_of_no_use_lets_nobody_in(auth: str) -> None:
    spec = {"auth": auth}
    for kind, values in (("bearer", {}), ("oauth2", TOKEN), ("webhook_secret", {})):
        resolved = Resolved(UUID(int=1), kind, 1, values)
        assert not proof_of(spec, "github_sha256", resolved).known


@every_way
def test_every_refusal_costs_a_digest_of_the_body(
    auth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, digested = b"a long body", list[bytes]()

    def counted(made: Callable[..., Any]) -> Callable[..., Any]:
        def digest(key: bytes, message: bytes, how: object) -> Any:
            digested.append(message)
            return made(key, message, how)

        return digest

    for name in ("digest", "new"):
        monkeypatch.setattr(hmac, name, counted(getattr(hmac, name)))
    for headers in ({}, {"x-hub-signature-256": "sha256=" + "0" * 64}, {"authorization": "x"}):
        digested.clear()
        assert not is_let_in(proof(auth), delivery(headers, "", body))
        assert digested.count(body) == 1


def test_no_url_is_made_from_a_key_that_everybody_may_know() -> None:
    public = Secret(signing_keys.public_key(signing_keys.new_private_key()))
    resolved = Resolved(UUID(int=1), "webhook_secret", 1, {"secret": public})
    assert not proof_of({"auth": "NONE"}, "github_sha256", resolved).known


def test_a_sender_with_a_pair_is_let_in_by_its_public_key_alone() -> None:
    pair, other = signing_keys.new_private_key(), signing_keys.new_private_key()
    public = Secret(signing_keys.public_key(pair))
    resolved = Resolved(UUID(int=1), "webhook_secret", 1, {"secret": public})
    asked = proof_of({"auth": "SIGNATURE"}, "standard_webhooks", resolved)
    for signer, expected in ((pair, True), (other, False)):
        headers = signatures.sign("standard_webhooks", signer, b"{}", NOW, "m")
        assert is_let_in(asked, delivery(headers)) is expected


@every_way
def test_a_refusal_verifies_what_came_of_asymmetric_signatures(
    auth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time would tell which endpoints have a public key, and so that they are there."""
    verified = list[int]()
    counted = signing_keys.verified

    def counting(keys: Sequence[Any], given: Sequence[bytes], message: bytes) -> list[bool]:
        verified.append(len(keys) * len(given))
        return counted(keys, given, message)

    monkeypatch.setattr(signatures, "verified", counting)
    word = "v1a," + b64encode(bytes(64)).decode()
    for stamp in ("1700000000", "no time"):
        verified.clear()
        headers = {"webhook-id": "m", "webhook-timestamp": stamp, "webhook-signature": word}
        assert not is_let_in(proof(auth), delivery(headers))
        assert verified == [1]
