"""An issuer of tokens for tests, with keys of its own, and tokens made by hand."""

import json
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ISSUER, AUDIENCE = "https://issuer.example", "tenon"


def jwk(key: PrivateKey, kid: str) -> dict[str, Any]:
    """The public half as it is published."""
    algorithm: Any = RSAAlgorithm
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm = OKPAlgorithm
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


@dataclass
class TokenIssuer:
    """Signs what a test wants said."""

    key: PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)
    algorithm: str = "EdDSA"
    kid: str = "one"
    issuer: str = ISSUER

    def published(self) -> bytes:
        return json.dumps({"keys": [jwk(self.key, self.kid)]}).encode()

    def file(self, folder: Path, kind: str = "user") -> Path:
        """An issuers file that names this one, its keys beside it."""
        (folder / "jwks.json").write_bytes(self.published())
        entry = {
            "issuer": self.issuer,
            "audience": AUDIENCE,
            "jwks": str(folder / "jwks.json"),
            "kind": kind,
        }
        path = folder / "issuers.yaml"
        path.write_text(json.dumps([entry]))
        return path

    def claims(self, subject: str = "ada", **other: Any) -> dict[str, Any]:
        told = {"iss": self.issuer, "aud": AUDIENCE, "sub": subject, "exp": time.time() + 600}
        return {name: value for name, value in {**told, **other}.items() if value is not None}

    def token(self, subject: str = "ada", **other: Any) -> str:
        headers = {"kid": self.kid}
        return jwt.encode(self.claims(subject, **other), self.key, self.algorithm, headers)


def segment(value: object) -> str:
    """One part of a token."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(body).rstrip(b"=").decode()
