"""Between the messages of access (principals, keys, grants, staff) and the registry's values."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import key_service_pb2 as key_pb2
from tenon.registry.v1 import principal_service_pb2 as principal_pb2
from tenon.registry.v1 import staff_service_pb2 as staff_pb2

from services.chassis.errors import invalid
from services.chassis.ids import format_tenant, parse_tenant
from services.chassis.interceptors import Call
from services.chassis.secret import Secret
from services.chassis.tenancy import PLATFORM, Principal
from services.chassis.usage import Counted, Stay, Use
from services.registry.access import grants, key_wishes
from services.registry.access.api_keys import OVERLAP, Made
from services.registry.access.changes import By
from services.registry.access.principals import Introduction
from services.registry.access.staff import STAFF
from services.registry.access.usage import Window
from services.registry.answers import Asked
from services.registry.messages.config import caller_of, moment, principal_message, uuid_at

PRINCIPALS: Final = "principals"
KEYS: Final = "keys"
STATES: Final = {
    "live": key_pb2.Key.STATE_LIVE,
    "expired": key_pb2.Key.STATE_EXPIRED,
    "revoked": key_pb2.Key.STATE_REVOKED,
}


class Repeatable(Protocol):
    """A request that may come again under its id."""

    @property
    def request_id(self) -> str:
        """A UUID, or empty."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802 - protobuf's
        """Its words."""


def asked_of(request: Repeatable, call: Call) -> Asked | None:
    """The request as it may come again; None without a request_id."""
    if not request.request_id:
        return None
    request_id = uuid_at("request_id", request.request_id)
    words = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    method = call.rule.method.rpartition("/")[2]
    caller = call.principal.principal_id
    return Asked(call.tenant_id, caller, method, request_id, Secret(words))


def by(request: Repeatable, call: Call) -> By:
    """Who changes access, where, and by which request."""
    return By(caller_of(call).actor, call.principal, place_of(call), asked_of(request, call))


def place_of(call: Call) -> UUID | None:
    """The tenant that a call is in; None for the platform. NotFound where it is not there."""
    return call.inside() if call.tenant else None


def name_in(call: Call, collection: str, uid: object) -> str:
    """The name of a thing of the tenant a call is in, or of the platform."""
    place = f"{format_tenant(call.tenant)}/" if call.tenant else ""
    return f"{place}{collection}/{uid}"


def uid_in(call: Call, field: str, name: str, collection: str) -> str:
    """The id in the name of a thing where the call is. Raises InvalidArgument."""
    place, _, uid = name.rpartition(f"{collection}/")
    if not uid or "/" in uid or not _is_place(call, place.removesuffix("/")):
        where = f"tenants/{call.tenant}/" if call.tenant else ""
        raise invalid(field, f"must be {where}{collection}/{{id}}")
    return uid


def principal_in(call: Call, field: str, name: str) -> UUID:
    """The id in a principal's name."""
    return uuid_at(field, uid_in(call, field, name, PRINCIPALS))


def introduction(request: principal_pb2.CreatePrincipalRequest) -> Introduction:
    """Who is to be known."""
    return Introduction(
        request.kind, request.issuer, request.subject, request.display_name, request.email
    )


def principal_row_message(call: Call, row: Any) -> access_pb2.Principal:
    """One principal as it is managed."""
    return access_pb2.Principal(
        uid=str(row.principal_id),
        kind=row.kind,
        display_name=row.display_name,
        name=name_in(call, PRINCIPALS, row.principal_id),
        issuer=row.issuer,
        subject=row.subject,
        email=row.email,
        disable_time=_moment(row.disabled_at),
        create_time=moment(row.created_at),
    )


def key_wish(request: key_pb2.CreateKeyRequest) -> key_wishes.Wish:
    """A key to be made."""
    return key_wishes.Wish(
        request.display_name,
        list(request.scopes),
        list(request.address_ranges),
        dict(request.metadata),
        _time(request, "expire_time"),
    )


def rotation(request: key_pb2.RotateKeyRequest) -> tuple[timedelta, datetime | None]:
    """How long the old key holds on, and when the new one ends (None: as the old one was made)."""
    overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else OVERLAP
    return overlap, _time(request, "expire_time")


def key_message(call: Call, row: Any) -> key_pb2.Key:
    """One key, masked."""
    return key_pb2.Key(
        name=name_in(call, KEYS, row.key_id),
        principal=name_in(call, PRINCIPALS, row.principal_id),
        display_name=row.name,
        masked=f"tnk_{row.environment}_{row.key_id}_…{row.last4}",
        scopes=row.scopes,
        address_ranges=row.address_ranges,
        metadata=row.metadata,
        state=STATES[row.state],
        created_by=row.created_by,
        create_time=moment(row.created_at),
        expire_time=_moment(row.expires_at),
        revoke_time=_moment(row.revoked_at),
        revoked_by=row.revoked_by,
        revoke_reason=row.revoke_reason,
        last_use_time=_moment(row.last_used_at),
    )


def created_key_message(call: Call, made: Made) -> key_pb2.CreateKeyResponse:
    """A new key with its text."""
    return key_pb2.CreateKeyResponse(key=key_message(call, made.row), text=made.text.reveal_text())


def rotated_key_message(call: Call, made: Made) -> key_pb2.RotateKeyResponse:
    """A key's successor with its text, and the key."""
    return key_pb2.RotateKeyResponse(
        key=key_message(call, made.row),
        text=made.text.reveal_text(),
        previous=key_message(call, made.previous),
    )


def usage_message(windows: Sequence[Window]) -> key_pb2.GetKeyUsageResponse:
    """How a key was used."""
    return key_pb2.GetKeyUsageResponse(
        windows=[
            key_pb2.UsageWindow(
                period=_duration(window.period),
                count=window.count,
                by_method=[key_pb2.UsageCount(name=n, count=c) for n, c in window.by_method],
                by_address=[key_pb2.UsageCount(name=n, count=c) for n, c in window.by_address],
            )
            for window in windows
        ]
    )


def grant_wish(call: Call, request: access_pb2.AddGrantRequest) -> grants.Wish:
    """A role to be given."""
    principal_id = principal_in(call, "principal", request.principal)
    return grants.Wish(principal_id, request.role, list(request.kinds), list(request.sources))


def platform_grant_message(row: Any) -> access_pb2.PlatformGrant:
    """One role in every tenant."""
    return access_pb2.PlatformGrant(
        principal=f"{PRINCIPALS}/{row.principal_id}",
        display_name=row.display_name,
        role=row.role,
        kinds=row.kinds,
        sources=row.sources,
        created_by=row.created_by,
        create_time=moment(row.created_at),
    )


def role_message(row: Any) -> access_pb2.Role:
    """One role with what it allows."""
    return access_pb2.Role(
        role=row.role,
        description=row.description,
        permissions=row.permissions,
        needs_reason=row.needs_reason,
        own=row.own,
    )


def staff_message(row: Any) -> staff_pb2.StaffMember:
    """One of the staff."""
    return staff_pb2.StaffMember(
        principal=f"{PRINCIPALS}/{row.principal_id}",
        display_name=row.display_name,
        role=row.role,
        permissions=sorted(row.permissions),
        created_by=row.created_by,
        create_time=moment(row.created_at),
        update_time=moment(row.updated_at),
    )


def whoami_message(
    principal: Principal, switches: dict[str, datetime]
) -> access_pb2.WhoAmIResponse:
    """The caller, what they may do where, and since when they work there."""
    staff = [
        grant.role.removeprefix(STAFF).lower()
        for grant in principal.grants(PLATFORM)
        if grant.role.startswith(STAFF)
    ]
    return access_pb2.WhoAmIResponse(
        principal=principal_message(principal),
        grants=[
            access_pb2.Grant(
                tenant=access.tenant,
                role=access.role,
                needs_reason=all(grant.needs_reason for grant in access.grants),
                state=access.state if access.tenant else "",
                switch_time=_moment(switches.get(access.tenant)),
            )
            for access in principal.accesses.values()
        ],
        session=principal.session,
        expire_time=_moment(principal.expires_at),
        address_ranges=map(str, principal.ranges),
        staff_role="".join(staff),
    )


def counted(request: access_pb2.ReportUsageRequest) -> Counted:
    """What another process counted."""
    uses = [
        Use(
            use.key_id,
            use.method,
            use.address,
            use.user_agent,
            use.bucket_time.seconds,
            use.count,
            use.last_use_time.ToNanoseconds() / 1e9,
        )
        for use in request.uses
    ]
    stays = [
        Stay(
            uuid_at(f"switches[{at}].principal_uid", each.principal_uid),
            uuid_at(f"switches[{at}].tenant_uid", each.tenant_uid),
            each.switch_time.ToNanoseconds() / 1e9,
        )
        for at, each in enumerate(request.switches)
    ]
    return Counted(tuple(uses), tuple(stays))


def _is_place(call: Call, place: str) -> bool:
    if not call.tenant:
        return not place
    return place != "" and parse_tenant(place) in {call.tenant, str(call.tenant_id)}


def _time(request: Any, field: str) -> datetime | None:
    if not request.HasField(field):
        return None
    try:
        found: datetime = getattr(request, field).ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "is no time") from None
    return found


def _moment(value: datetime | None) -> Timestamp | None:
    return moment(value) if value is not None else None


def _duration(value: timedelta) -> Duration:
    span = Duration()
    span.FromTimedelta(value)
    return span
