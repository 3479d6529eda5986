"""Between the messages of credentials and connections and the registry's values."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from tenon.registry.v1 import connection_service_pb2 as connection_pb2
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis.errors import invalid
from services.chassis.ids import format_name, parse_name
from services.chassis.interceptors import Call
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.registry.access.changes import By
from services.registry.audit.masks import SHOWN
from services.registry.credentials.changing import Named, Turn
from services.registry.credentials.reading import DAY, MONTH, Shown
from services.registry.credentials.resolving import Resolved
from services.registry.credentials.status import Finding, ends_at
from services.registry.credentials.uses import Use
from services.registry.messages.config import caller_of, moment, to_declared, uuid_at
from services.registry.messages.objects import SOURCE
from services.registry.oauth.relaying import Relayed
from services.registry.oauth.wishes import Begun, Completed, Returned, Starter, Wishes, wishes_of
from services.registry.store.objects import complete
from services.registry.wanted.drafts import Submission

CREDENTIALS: Final = "credentials"
CONNECTIONS: Final = "connections"
INTEGRATIONS: Final = "integrations"
LINKS: Final = "connectLinks"

_FINDINGS: Final[Mapping[str, pb2.Finding.ValueType]] = {
    name.removeprefix("FINDING_").lower(): pb2.Finding.Value(name)
    for name in pb2.Finding.DESCRIPTOR.values_by_name
}
_NAMES: Final[Mapping[int, Finding]] = {
    number: name  # type: ignore[misc]
    for name, number in _FINDINGS.items()
    if number
}


def named(call: Call, name: str) -> Named:
    """A credential by its name, in the tenant the caller was let into."""
    return Named(call.inside(), call.tenant, parse_name(name, CREDENTIALS)[1])


def by_once(call: Call) -> By:
    """Who asks for something that is done anew each time."""
    return By(caller_of(call).actor, call.principal, call.tenant_id, None)


def finding_of(request: pb2.ListCredentialsRequest) -> Finding | None:
    """The finding a list is narrowed to."""
    return _NAMES.get(request.finding)


def submission(request: pb2.PutCredentialRequest, call: Call) -> Submission:
    """A credential to be made or changed, as a submission of one document."""
    words = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    _, name = parse_name(request.name, CREDENTIALS)
    resource = wanted_pb2.Resource(credential=request.spec)
    resource.metadata.name = name
    request_id = request.request_id
    return Submission(
        tenant=call.tenant,
        source=SOURCE,
        declared=(to_declared(resource),),
        request_id=uuid_at("request_id", request_id) if request_id else None,
        method="PutCredential",
        digest=Secret(words),
    )


def turn(request: pb2.RotateCredentialRequest) -> Turn:
    """The new values leave the message here."""
    values = {part: remember(Secret(value.plain)) for part, value in request.values.items()}
    for part, value in request.values.items():
        if value.sealed or not value.plain:
            raise invalid(f"values.{part}", "must be given in plain, on a channel that is safe")
    request.ClearField("values")
    overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else None
    return Turn(values, overlap)


def credential_message(tenant: str, shown: Shown) -> pb2.Credential:
    """One credential, masked."""
    row = shown.row
    return pb2.Credential(
        name=format_name(tenant, CREDENTIALS, row.name),
        uid=str(row.credential_id),
        type=row.type,
        description=row.description,
        version=row.version,
        fingerprints=_marks(row.fingerprints),
        public_key=row.public_key or "",
        create_time=moment(row.created_at),
        rotate_time=moment(row.rotated_at),
        spec=_spec(row),
        status=_status(row),
        status_reason=row.reason,
        validate_time=_moment(row.validated_at),
        use_time=_moment(row.used_at),
        expire_time=_moment(ends_at(row)),
        refresh_expire_time=_moment(row.refresh_expires_at),
        rotation_due_time=_moment(row.rotate_at),
        granted_scopes=row.granted_scopes or (),
        usage=_usage(shown.usage),
        findings=[_FINDINGS[finding] for finding in shown.findings],
        rate_limit={name: str(value) for name, value in row.rate_limit.items()},
        versions=[_version(each) for each in shown.versions],
        revoked_by=row.revoked_by,
        revoke_reason=row.revoke_reason,
        created_by=row.created_by,
        revoke_time=_moment(row.revoked_at),
    )


def row_message(tenant: str, row: Any) -> pb2.Credential:
    """The same of a row alone, after a change of it."""
    return credential_message(tenant, Shown(row, ()))


def resolved_message(resolved: Resolved) -> pb2.ResolveCredentialResponse:
    """An opened credential, on its way to the executor."""
    answer = pb2.ResolveCredentialResponse(
        version=resolved.version,
        type=resolved.type,
        values={part: value.reveal() for part, value in resolved.values.items()},
        uid=str(resolved.credential_id),
        allowed_endpoints=resolved.allowed_endpoints,
        allowed_ranges=resolved.allowed_ranges,
    )
    for version, values in resolved.previous:
        older = answer.previous.add(version=version)
        older.values.update({part: value.reveal() for part, value in values.items()})
    answer.ttl.FromMilliseconds(int(resolved.left_s * 1000))
    return answer


def uses(request: pb2.ReportCredentialUseRequest) -> list[Use]:
    """What the executor counted."""
    return [
        Use(
            uuid_at(f"uses[{at}].uid", use.uid),
            use.version,
            use.bucket_time.ToDatetime(UTC),
            use.uses,
            use.errors,
            use.last_use_time.ToDatetime(UTC),
            _said(use, "last_success_time"),
            _said(use, "last_refusal_time"),
            dict(use.rate_limit),
        )
        for at, use in enumerate(request.uses)
    ]


def seals(request: pb2.ReportCredentialUseRequest) -> dict[UUID, int]:
    """How often it sealed with what it leased, by data key."""
    return {uuid_at("seals", uid): count for uid, count in request.seals.items()}


def connection_message(tenant: str, row: Any) -> connection_pb2.Connection:
    """One connection."""
    spec = wanted_pb2.ConnectionSpec(
        integration=row.ref_integration,
        credential=row.ref_credential,
        venue=row.ref_venue,
        user=row.user,
        external_account_id=row.external_account_id,
        scopes=row.scopes,
        is_active=row.is_active,
    )
    if row.provider_metadata:
        spec.provider_metadata.update(row.provider_metadata)
    return connection_pb2.Connection(
        name=format_name(tenant, CONNECTIONS, row.name),
        uid=str(row.connection_id),
        spec=spec,
        status=_status(row),
        status_reason=row.reason,
        create_time=moment(row.created_at),
        update_time=moment(row.updated_at),
        provider=row.provider,
    )


def link_message(tenant: str, row: Any, url: str = "") -> connection_pb2.ConnectLink:
    """A connect link; its address is told where it is made."""
    wished = wishes_of(row)
    return connection_pb2.ConnectLink(
        url=url,
        expire_time=moment(row.expires_at),
        name=f"tenants/{tenant}/{LINKS}/{row.link_id}",
        integration=wished.integration,
        connection=wished.connection,
        venue=wished.venue,
        user=wished.user,
        creator=row.actor["display_name"],
        create_time=moment(row.created_at),
    )


def link_named(text: str) -> UUID:
    """The id in the name of a connect link. Raises InvalidArgument."""
    place, _, uid = text.rpartition("/")
    if not place.endswith(f"/{LINKS}"):
        raise invalid("name", f"must be tenants/TENANT/{LINKS}/ID")
    return uuid_at("name", uid)


def starter(call: Call) -> Starter:
    """In whose name a flow goes."""
    return Starter(call.inside(), caller_of(call).actor, lent_by=call.principal.lent_by)


def wishes(
    request: connection_pb2.BeginOAuthRequest | connection_pb2.CreateConnectLinkRequest,
) -> Wishes:
    """What is to be connected."""
    redirect = request.redirect_url if isinstance(request, connection_pb2.BeginOAuthRequest) else ""
    return Wishes(
        parse_name(request.integration, INTEGRATIONS)[1],
        request.connection,
        request.venue,
        request.user,
        tuple(request.scopes),
        request.return_url,
        redirect,
    )


def begun_message(begun: Begun) -> connection_pb2.BeginOAuthResponse:
    """Where to go on."""
    return connection_pb2.BeginOAuthResponse(
        authorization_url=begun.url,
        state=begun.state,
        expire_time=moment(begun.expires_at),
        browser=begun.browser,
    )


def returned(
    request: connection_pb2.CompleteOAuthRequest | connection_pb2.RelayOAuthRequest,
) -> Returned:
    """What the provider sent back; the code leaves the message here."""
    browser = request.browser if isinstance(request, connection_pb2.RelayOAuthRequest) else ""
    code = remember(Secret(request.code))
    return Returned(request.state, code, request.error, request.issuer, browser)


def completed_message(completed: Completed) -> connection_pb2.CompleteOAuthResponse:
    """What a flow came to."""
    tenant, pending = completed.tenant, completed.pending_id
    return connection_pb2.CompleteOAuthResponse(
        connection=format_name(tenant, CONNECTIONS, completed.connection),
        pending_revision=f"tenants/{tenant}/pendingRevisions/{pending}" if pending else "",
    )


def relayed_message(ended: Relayed) -> connection_pb2.RelayOAuthResponse:
    """Where the browser goes now."""
    return connection_pb2.RelayOAuthResponse(return_url=ended.return_url, status=ended.status)


def _spec(row: Any) -> wanted_pb2.CredentialSpec:
    spec = complete("Credential", row).spec()
    spec["values"] = {part: {"fingerprint": mark} for part, mark in _marks(row.declared).items()}
    found = {name: value for name, value in spec.items() if value is not None}
    return ParseDict(found, wanted_pb2.CredentialSpec())


def _marks(fingerprints: Mapping[str, str] | None) -> dict[str, str]:
    return {part: mark[:SHOWN] for part, mark in (fingerprints or {}).items()}


def _status(row: Any) -> pb2.Credential.Status.ValueType:
    return pb2.Credential.Status.Value(f"STATUS_{row.status.upper()}")


def _usage(window: Any) -> list[pb2.CredentialUsage]:
    found = []
    for period, name in ((DAY, "day"), (MONTH, "month")):
        usage = pb2.CredentialUsage()
        usage.period.FromTimedelta(period)
        if window is not None:
            usage.uses = int(getattr(window, f"{name}_uses"))
            usage.errors = int(getattr(window, f"{name}_errors"))
            since = getattr(window, f"{name}_since")
            if since is not None:
                usage.reset_time.FromDatetime(since + period)
        found.append(usage)
    return found


def _version(row: Any) -> pb2.CredentialVersion:
    return pb2.CredentialVersion(
        version=row.version,
        origin=row.origin,
        create_time=moment(row.created_at),
        overlap_end_time=_moment(row.overlap_until),
        shred_time=_moment(row.shredded_at),
        created_by=row.created_by,
        fingerprints=_marks(row.fingerprints),
        data_key_uid=str(row.data_key_id),
        key_version=row.key_version,
        public_key=row.public_key,
    )


def _moment(value: datetime | None) -> Timestamp | None:
    return moment(value) if value is not None else None


def _said(message: pb2.CredentialUse, field: str) -> datetime | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    found: Timestamp = getattr(message, field)
    return found.ToDatetime(UTC)
