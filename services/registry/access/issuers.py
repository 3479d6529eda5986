"""Whose tokens count: the issuers file of the deployment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from services.chassis.settings import SettingsError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Issuer(BaseModel):
    """One issuer: what its tokens must say, where its keys are, and whom it speaks for.

    `jwks` is an https address, or a path; http is for this machine alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(min_length=1, max_length=500)
    audience: str = Field(min_length=1, max_length=500)
    jwks: str = Field(min_length=1)
    kind: Literal["user", "service"] = "user"

    @field_validator("jwks")
    @classmethod
    def _reachable(cls, jwks: str) -> str:
        parts = urlsplit(jwks)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError("must be an https address, or a path")
        if not parts.scheme and not Path(jwks).is_file():
            raise ValueError("is a path at which there is no file")
        if parts.scheme not in {"", "http", "https"}:
            raise ValueError("must be an https address, or a path")
        return jwks


_ISSUERS: TypeAdapter[list[Issuer]] = TypeAdapter(list[Issuer])


def read_issuers(path: Path) -> Sequence[Issuer]:
    """The issuers in a YAML or JSON file. Raises SettingsError, a line for each fault."""
    try:
        found = _ISSUERS.validate_python(yaml.safe_load(path.read_bytes()))
    except OSError as error:
        raise SettingsError(f"the issuers file {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError:
        raise SettingsError(f"the issuers file {path} is not YAML") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_faults(path, error))) from None
    names = [each.issuer for each in found]
    if len(set(names)) < len(names):
        raise SettingsError(f"the issuers file {path} names an issuer twice")
    return found


def _faults(path: Path, error: ValidationError) -> list[str]:
    return [
        f"the issuers file {path}: {'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False)
    ]
