"""An issuer's public keys, as it publishes them, remembered and asked for again with restraint."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from services.chassis import strict_json
from services.chassis.egress import Egress, Request
from services.chassis.errors import TenonError, Unavailable

log = logging.getLogger(__name__)

FRESH_S: Final = 300.0
"""For so long nobody asks whether there are other keys."""
AGAIN_S: Final = 30.0
"""After a key that was not there, nobody asks again for so long."""
RETRY_S: Final = 5.0
"""After no answer, nobody asks again for so long."""
STALE_S: Final = 3600.0
"""For so long the keys of an issuer that does not answer go on to count."""
MOST_KEYS: Final = 50
LEAST_RSA_BITS: Final = 2048

ALGORITHMS: Final[Mapping[tuple[str, str], str]] = {
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", ""): "RS256",
}
"""The one algorithm of each kind of key; every other kind is passed over."""

Fetch = Callable[[], Awaitable[bytes]]


class Keys:
    """The keys of one issuer."""

    def __init__(
        self, name: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, PyJWK] = {}
        self._had_at: float | None = None
        self._asked_at: float | None = None
        self._answered = False
        self._asking: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> PyJWK | None:
        """The key of an id (empty: the only key there is); None where there is no such key.

        Raises Unavailable where the issuer does not answer and its key may be there.
        """
        asking = self._ask() if self._age(self._had_at) >= FRESH_S else None
        found = self._named(kid)
        if found is None or self._age(self._had_at) >= STALE_S:
            asking = asking or self._ask()
            if asking is not None:
                await asyncio.shield(asking)
            found = self._named(kid)
        if self._age(self._had_at) >= STALE_S or (found is None and not self._answered):
            raise Unavailable("the issuer of the token does not answer")
        return found

    def _named(self, kid: str) -> PyJWK | None:
        if not kid and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if kid else None

    def _age(self, at: float | None) -> float:
        return float("inf") if at is None else self._clock() - at

    def _ask(self) -> "asyncio.Task[None] | None":
        """Ask, unless somebody did a moment ago; one question is under way at a time."""
        again_s = AGAIN_S if self._answered else RETRY_S
        if self._asking is None and self._age(self._asked_at) >= again_s:
            self._asking = asyncio.create_task(self._asked())
        return self._asking

    async def _asked(self) -> None:
        self._asked_at = self._clock()
        try:
            self._keys = read_keys(await self._fetch())
            self._had_at, self._answered = self._asked_at, True
        except (TenonError, OSError, ValueError) as error:
            self._answered = False
            log.warning("no keys of the issuer %s: %s", self._name, type(error).__name__)
        finally:
            self._asking = None


def read_keys(body: bytes) -> dict[str, PyJWK]:
    """The keys in a set that can sign tokens, by their ids. Raises ValueError for what is no set.

    A key without an id is found only where it is the only one.
    """
    told = strict_json.parse(body)
    entries = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        raise ValueError("not a set of keys")
    found: dict[str, PyJWK] = {}
    for number, entry in enumerate(entries):
        key = _key(entry) if isinstance(entry, dict) else None
        if key is not None:
            found[str(entry.get("kid") or f"\0{number}")] = key
    return found


def _key(entry: Mapping[str, Any]) -> PyJWK | None:
    """A key, where it is one for signatures of an algorithm we take."""
    algorithm = ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv", ""))))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    if entry.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in entry.items() if name in _PUBLIC}
    try:
        key = PyJWK(public, algorithm)
    except (PyJWTError, ValueError, TypeError):
        return None
    weak = algorithm == "RS256" and key.key.key_size < LEAST_RSA_BITS
    return None if weak else key


_PUBLIC: Final = frozenset({"kty", "crv", "x", "y", "n", "e"})


def fetching(where: str, egress: Egress) -> Fetch:
    """Reads a set of keys: from the web through egress, or from a file."""

    async def from_file() -> bytes:
        return await asyncio.to_thread(Path(where).read_bytes)

    async def from_web() -> bytes:
        answer = await egress.send(Request("GET", where, {"Accept": "application/json"}))
        if answer.status != 200:
            raise Unavailable(f"the keys were answered with status {answer.status}")
        return answer.body

    return from_web if "://" in where else from_file
