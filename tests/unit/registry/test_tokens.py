"""A token says who somebody is, or nothing: every attack comes to the same."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.chassis.settings import SettingsError
from services.registry.access.issuers import Issuer, read_issuers
from services.registry.access.jwks import Keys
from services.registry.access.tokens import LARGEST, Identity, Tokens
from tests.tokens import AUDIENCE, ISSUER, TokenIssuer, jwk, segment

OURS = TokenIssuer()
STRANGER = TokenIssuer()


def trusting(*published: bytes) -> Tokens:
    """Checks tokens of the one issuer, which publishes these sets one after the other."""
    left = list(published or [OURS.published()])

    async def fetch() -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    issuer = Issuer.model_construct(issuer=ISSUER, audience=AUDIENCE, jwks="", kind="user")
    return Tokens([(issuer, Keys(ISSUER, fetch))])


async def identify(token: str) -> Identity | None:
    return await trusting().identify(token)


@pytest.mark.parametrize(
    "issuer",
    [
        TokenIssuer(),
        TokenIssuer(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        TokenIssuer(rsa.generate_private_key(65537, 2048), "RS256"),
    ],
    ids=lambda issuer: issuer.algorithm,
)
async def test_a_token_says_who_it_is(issuer: TokenIssuer) -> None:
    ends = int(time.time()) + 100
    token = issuer.token("ada", name="Ada", email="ada@acme.example", jti="t-1", exp=ends)
    found = await trusting(issuer.published()).identify(token)
    assert found is not None
    assert (found.kind, found.issuer, found.subject) == ("user", ISSUER, "ada")
    assert (found.display_name, found.email) == ("Ada", "ada@acme.example")
    assert found.session == "token t-1"
    assert found.expires_at is not None
    assert ends <= found.expires_at.timestamp() <= ends + 60


async def test_a_token_without_an_id_is_named_by_its_hash() -> None:
    token = OURS.token(jti="a b\n")
    found = await identify(token)
    assert found is not None
    assert found.session == f"token {hashlib.sha256(token.encode()).hexdigest()[:16]}"


async def test_a_clock_may_be_off_by_a_little() -> None:
    now = time.time()
    assert await identify(OURS.token(exp=now - 10, nbf=now + 10, iat=now + 10)) is not None


async def test_several_audiences_may_hold_ours() -> None:
    assert await identify(OURS.token(aud=["other", AUDIENCE])) is not None


def signed(header: dict[str, Any] | bytes, claims: object, issuer: TokenIssuer = OURS) -> str:
    """A token with any header, rightly signed."""
    body = f"{segment(header)}.{segment(claims)}"
    assert isinstance(issuer.key, ed25519.Ed25519PrivateKey)
    return f"{body}.{segment(issuer.key.sign(body.encode()))}"


def forged_with_public_key(algorithm: str, secret: bytes) -> str:
    body = f"{segment({'alg': algorithm, 'kid': 'one', 'typ': 'JWT'})}.{segment(OURS.claims())}"
    return f"{body}.{segment(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def twice(name: str) -> str:
    """A token whose claims, or header, say something twice."""
    claims = json.dumps(OURS.claims())[:-1] + f', "{name}": "root"}}'
    return signed({"alg": "EdDSA", "kid": "one"}, claims.encode())


RIGHT = {"alg": "EdDSA", "kid": "one"}
PUBLIC = OURS.key.public_key()
PEM = PUBLIC.public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
RAW = PUBLIC.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
HOUR = 3600
TWO_HEADERS = b'{"alg":"none","alg":"EdDSA","kid":"one"}'

ATTACKS: dict[str, Callable[[], str]] = {
    "none": lambda: f"{segment({'alg': 'none'})}.{segment(OURS.claims())}.",
    "none, signed": lambda: f"{segment({'alg': 'none', 'kid': 'one'})}.{segment(OURS.claims())}.AA",
    "NoNe": lambda: f"{segment({'alg': 'NoNe', 'kid': 'one'})}.{segment(OURS.claims())}.AA",
    "hs256, public key as pem": lambda: forged_with_public_key("HS256", PEM),
    "hs256, public key as bytes": lambda: forged_with_public_key("HS256", RAW),
    "hs256, published key": lambda: forged_with_public_key("HS256", OURS.published()),
    "hmac called eddsa": lambda: forged_with_public_key("EdDSA", PEM),
    "no algorithm": lambda: signed({"kid": "one"}, OURS.claims()),
    "another algorithm": lambda: signed({**RIGHT, "alg": "ES256"}, OURS.claims()),
    "wrong audience": lambda: OURS.token(aud="other"),
    "no audience": lambda: OURS.token(aud=None),
    "audience in part": lambda: OURS.token(aud=AUDIENCE[:-1]),
    "wrong issuer": lambda: OURS.token(iss="https://evil.example"),
    "no issuer": lambda: OURS.token(iss=None),
    "issuers": lambda: signed(RIGHT, OURS.claims() | {"iss": [ISSUER]}),
    "expired": lambda: OURS.token(exp=time.time() - HOUR),
    "no end": lambda: OURS.token(exp=None),
    "an end that is none": lambda: OURS.token(exp="never"),
    "an end beyond time": lambda: OURS.token(exp=1e30),
    "not yet": lambda: OURS.token(nbf=time.time() + HOUR),
    "issued later": lambda: OURS.token(iat=time.time() + HOUR),
    "no subject": lambda: OURS.token(sub=None),
    "an empty subject": lambda: OURS.token(sub=""),
    "a subject that is none": lambda: signed(RIGHT, OURS.claims() | {"sub": 7}),
    "a subject too long": lambda: OURS.token(sub="x" * 501),
    "a subject with a line": lambda: OURS.token(sub="ada\nroot"),
    "unknown key": lambda: signed({**RIGHT, "kid": "two"}, OURS.claims()),
    "a key's id that is none": lambda: signed({**RIGHT, "kid": ["one"]}, OURS.claims()),
    "a key's id as a path": lambda: signed({**RIGHT, "kid": "../../dev/null"}, OURS.claims()),
    "a stranger's key": lambda: STRANGER.token(),
    "jku": lambda: signed({**RIGHT, "jku": "https://evil.example/keys"}, OURS.claims(), STRANGER),
    "x5u": lambda: signed({**RIGHT, "x5u": "https://evil.example/cert"}, OURS.claims(), STRANGER),
    "embedded key": lambda: signed(
        {**RIGHT, "jwk": jwk(STRANGER.key, "one")}, OURS.claims(), STRANGER
    ),
    "critical extension": lambda: signed({**RIGHT, "crit": ["b64"], "b64": False}, OURS.claims()),
    "too large": lambda: OURS.token(padding="x" * LARGEST),
    "two signatures": lambda: OURS.token() + "." + OURS.token().rpartition(".")[2],
    "as json": lambda: json.dumps(
        {
            "payload": segment(OURS.claims()),
            "signatures": [{"protected": segment(RIGHT), "signature": "AA"}],
        }
    ),
    "subject twice": lambda: twice("sub"),
    "header twice": lambda: signed(TWO_HEADERS, OURS.claims()),
    "claims that are none": lambda: signed(RIGHT, ["sub", "ada"]),
    "claims that are no json": lambda: signed(RIGHT, b"{"),
    "deep claims": lambda: signed(RIGHT, b"[" * 3000),
    "nan": lambda: signed(RIGHT, json.dumps(OURS.claims() | {"exp": float("nan")}).encode()),
    "changed": lambda: _changed(OURS.token()),
    "cut": lambda: OURS.token()[:-8],
    "with a line": lambda: OURS.token() + "\n",
    "with a space": lambda: " " + OURS.token(),
    "padded": lambda: OURS.token() + "=",
    "empty": lambda: "..",
    "not ascii": lambda: "\N{DUCK}.\N{DUCK}.\N{DUCK}",
}


def _changed(token: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{segment(OURS.claims('root'))}.{signature}"


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_says_nothing(attack: str) -> None:
    assert await identify(OURS.token()) is not None
    assert await identify(ATTACKS[attack]()) is None


async def test_a_rotated_key_counts_once_it_is_published() -> None:
    new = TokenIssuer(kid="two")
    tokens = trusting(OURS.published(), new.published())
    assert await tokens.identify(OURS.token()) is not None
    # Within thirty seconds nobody asks again.
    assert await tokens.identify(new.token()) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not YAML"),
        ("a: b", "list"),
        ("- {issuer: x, audience: y}", "0.jwks"),
        ("- {issuer: x, audience: y, jwks: 'http://keys.example/'}", "https"),
        ("- {issuer: x, audience: y, jwks: 'ftp://keys.example/'}", "https"),
        ("- {issuer: x, audience: y, jwks: /absent/keys}", "no file"),
        ("- {issuer: x, audience: y, jwks: 'https://k', kind: robot}", "0.kind"),
        ("- {issuer: x, audience: y, jwks: 'https://k', jkws: z}", "0.jkws"),
        (
            "[{issuer: x, audience: y, jwks: 'https://k'}, {issuer: x, audience: z, jwks: 'https://k'}]",
            "twice",
        ),
    ],
)
def test_faults_of_the_issuers_file_are_named(text: str, told: str, tmp_path: Any) -> None:
    path = tmp_path / "issuers.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=told) as held:
        read_issuers(path)
    assert str(path) in str(held.value)
