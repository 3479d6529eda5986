"""How credentials read: many in a table, one with all that is known of it but its values."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from tenon.registry.v1 import credential_service_pb2 as pb2

from config.render import printable
from config.tables import facts, lasting, new_table, wanted, when

Credential = pb2.Credential

FINDINGS: Final = {
    name.removeprefix("FINDING_").lower().replace("_", "-"): number
    for name, number in pb2.Finding.items()
    if number
}
"""What wants attention, by the word people read and write."""
_FINDING_WORDS: Final = {number: word for word, number in FINDINGS.items()}

DAY_S: Final = 86_400


def credentials_table(found: Iterable[Credential]) -> Table:
    """A line for each."""
    table = new_table(
        "credential", "type", "version", "status", "ends", "last used", "in 24 h", "findings"
    )
    for one in found:
        table.add_row(
            one.name.rpartition("/")[2],
            one.type,
            str(one.version or ""),
            status_word(one.status),
            when(one, "expire_time"),
            when(one, "use_time"),
            ", ".join(_calls(each) for each in one.usage if each.period.seconds == DAY_S),
            _findings(one),
        )
    return table


def credential_facts(found: Iterable[Credential]) -> RenderableType:
    """One, a line for each fact, and its versions."""
    (one,) = found
    rows = dict(_facts_of(one))
    rows |= {f"{name} (wanted)": value for name, value in _wanted(one).items()}
    return Group(facts(rows), "", _versions_table(one.versions)) if one.versions else facts(rows)


def revealed_table(found: Iterable[pb2.RevealCredentialResponse]) -> Table:
    """Which version a secret is of."""
    table = new_table("version")
    for one in found:
        table.add_row(str(one.version))
    return table


def status_word(status: Credential.Status.ValueType) -> str:
    """How a credential stands, in a word."""
    return Credential.Status.Name(status).removeprefix("STATUS_").lower()


def _facts_of(one: Credential) -> Iterator[tuple[str, str]]:
    yield "credential", one.name
    yield "id", one.uid
    yield "type", one.type
    yield "description", one.description
    yield "status", _because(status_word(one.status), one.status_reason)
    yield "findings", _findings(one)
    yield "version", str(one.version or "none yet")
    yield "parts", _pairs(one.fingerprints)
    yield "public key", one.public_key
    yield "made", _by(when(one, "create_time"), one.created_by)
    yield "values changed", when(one, "rotate_time")
    yield "last let in", when(one, "validate_time")
    yield "last used", when(one, "use_time")
    for each in one.usage:
        until = f", the oldest until {when(each, 'reset_time')}" * each.HasField("reset_time")
        yield f"in the last {lasting(each.period)}", f"{_calls(each)}{until}"
    yield "ends", when(one, "expire_time")
    yield "refreshed until", when(one, "refresh_expire_time")
    yield "rotation due", when(one, "rotation_due_time")
    yield "granted scopes", ", ".join(one.granted_scopes)
    yield "rate limit", _pairs(one.rate_limit)
    taken_back = _by(when(one, "revoke_time"), one.revoked_by)
    yield "taken back", _because(taken_back, one.revoke_reason)


def _wanted(one: Credential) -> dict[str, str]:
    """What is wanted of it, its values by the fingerprints of what was declared."""
    declared = {part: value.fingerprint for part, value in one.spec.values.items()}
    return {"values": _pairs(declared), **wanted(one.spec, "type", "description", "values")}


def _versions_table(found: Iterable[pb2.CredentialVersion]) -> Table:
    table = new_table(
        *("version", "came from", "made", "by", "goes on until", "shredded"),
        *("parts", "data key", "key version", "public key"),
    )
    for one in found:
        table.add_row(
            str(one.version),
            printable(one.origin),
            when(one, "create_time"),
            printable(one.created_by),
            when(one, "overlap_end_time"),
            when(one, "shred_time"),
            printable(_pairs(one.fingerprints)),
            printable(one.data_key_uid),
            str(one.key_version or ""),
            printable(one.public_key),
        )
    return table


def _calls(usage: pb2.CredentialUsage) -> str:
    return f"{usage.uses}, {usage.errors} failed" if usage.errors else str(usage.uses)


def _findings(one: Credential) -> str:
    return ", ".join(_FINDING_WORDS.get(each, "unknown") for each in one.findings)


def _pairs(by_name: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(by_name.items()))


def _by(time: str, who: str) -> str:
    return f"{time} by {who}" if time and who else time


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
