"""Takes secrets out of text on its way to a log: by their shape, and by their value once known."""

import base64
import contextlib
import re
import urllib.parse
import weakref
from typing import Final

from services.chassis.secret import MASK, Secret

_QUOTED: Final = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_NAMED: Final = (
    r"(?i)((?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|private_?key|signature)\w{0,20}"
    rf"(?:=|[\"']\s*:\s*))(?:{_QUOTED}|[^\s\"',;&)}}\]]+)"
)
_HEADER: Final = (
    r"(?i)\b((?:proxy-)?authorization|cookie|x-api-key)([\"']?\s*[:=]\s*)"
    rf"(?:{_QUOTED}|[^\r\n\"',]+)"
)

SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        # The end is optional: what is quoted may be cut.
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
        (
            r"(?<![A-Za-z0-9])(tnk|gh[pousr]|github_pat|glpat|whsec|whsk)([_-])[\w+/=-]+",
            rf"\1\2{MASK}",
        ),
        (r"(?<![A-Za-z0-9])([srp]k_(?:live|test))_\w+", rf"\1_{MASK}"),
        (r"(?<![A-Za-z0-9])(xox[a-z])-[\w-]+", rf"\1-{MASK}"),
        (r"\beyJ[\w-]+\.[\w-]+\.[\w-]*", MASK),
        (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+", rf"\1 {MASK}"),
        (r"(://[^\s/:@]*):[^\s/]*@", rf"\1:{MASK}@"),
        (_HEADER, rf"\1\2{MASK}"),
        (_NAMED, rf"\1{MASK}"),
        # SQLAlchemy repeats bound values, PostgreSQL whole rows.
        (r"\[parameters: [^\n]*", f"[parameters: {MASK}]"),
        (r"Failing row contains \([^\n]*", f"Failing row contains ({MASK})"),
    )
)
"""What a secret looks like, with what stands in its stead; applied in this order."""

SECRET_NAME: Final = re.compile(
    r"(?i)passw|passphrase|secret|token|api[_-]?key|authorization|cookie|private[_-]?key|credential_value"
)
"""Names of fields whose values are never shown."""

SHORTEST_REMEMBERED: Final = 6
"""Characters; shorter values would also blot out ordinary words."""

_spellings: Final[dict[int, tuple[str, ...]]] = {}


def remember(secret: Secret) -> Secret:
    """The same secret, whose value no log shows as long as this object lives."""
    if id(secret) not in _spellings:
        _spellings[id(secret)] = _spelled(secret.reveal())
        forget = weakref.finalize(secret, _spellings.pop, id(secret), None)
        forget.atexit = False
    return secret


def redact(text: str) -> str:
    """`text` without any secret we know or that looks like one."""
    for spelling in _present(text):
        text = text.replace(spelling, MASK)
    for shape, replacement in SHAPES:
        text = shape.sub(replacement, text)
    return text


def redact_field(name: str, value: object) -> object:
    """A value for a log under `name`: numbers stay numbers, all else is redacted text."""
    if SECRET_NAME.search(name):
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _present(text: str) -> list[str]:
    found = {each for known in list(_spellings.values()) for each in known if each in text}
    # The longest first: one secret may begin another.
    return sorted(found, key=len, reverse=True)


def _spelled(value: bytes) -> tuple[str, ...]:
    """The ways in which a value gets into text: as it is, quoted, percent-encoded, base64, hex."""
    spellings = {base64.b64encode(value).decode(), value.hex(), repr(value)[2:-1]}
    spellings |= {base64.urlsafe_b64encode(value).decode(), urllib.parse.quote(value, safe="")}
    with contextlib.suppress(UnicodeDecodeError):
        spellings |= {value.decode(), repr(value.decode())[1:-1]}
    return tuple(each for each in spellings if len(value) >= SHORTEST_REMEMBERED)
