"""The one table between our errors and gRPC's statuses, both ways (AIP-193)."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.chassis import errors

DOMAIN = "tenon"

CODES: dict[type[errors.TenonError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
ERRORS: dict[grpc.StatusCode, type[errors.TenonError]] = {
    code: kind for kind, code in CODES.items()
}

DETAILS_KEY = "grpc-status-details-bin"
# A client takes 8 KiB of trailers and drops the whole answer above: base64 and message need room.
DETAILS_LIMIT = 5000
MESSAGE_LIMIT = 500


class RichStatus(grpc.Status):
    """A status with its google.rpc details, as grpc's abort_with_status takes it."""

    def __init__(self, code: grpc.StatusCode, message: str, details: bytes) -> None:
        self.code = code
        self.details = message
        self.trailing_metadata = ((DETAILS_KEY, details),)


def to_status(error: errors.TenonError, request_id: str) -> RichStatus:
    """The status a caller sees; an Internal one says only under which request id to ask."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        error = errors.Internal(f"internal error; quote request {request_id} to the operators")
    message = error.message[:MESSAGE_LIMIT]
    body = status_pb2.Status(code=code.value[0], message=message)
    body.details.extend(_packed(detail) for detail in _details(error, request_id))
    return RichStatus(code, message, body.SerializeToString())


def code_of(error: errors.TenonError) -> grpc.StatusCode:
    """The gRPC code of an error or of the nearest kind above it."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
)


def from_rpc_error(error: Any) -> errors.TenonError:
    """The error a server meant, rebuilt on the client's side."""
    code = error.code()
    kind = ERRORS.get(code, errors.Internal)
    details = _read_details(error)
    info = details.get("ErrorInfo")
    bad = details.get("BadRequest")
    wait = details.get("RetryInfo")
    violations = (
        ()
        if bad is None
        else tuple(errors.Violation(v.field, v.description) for v in bad.field_violations)
    )
    return kind(
        error.details() or code.name,
        reason=info.reason if info is not None else None,
        metadata=dict(info.metadata) if info is not None else None,
        violations=violations,
        retry_after_s=wait.retry_delay.ToTimedelta().total_seconds() if wait else None,
    )


def _details(error: errors.TenonError, request_id: str) -> list[Message]:
    metadata = {**error.metadata, "request_id": request_id}
    found: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)
    ]
    if error.violations:
        found.append(_bad_request(error.violations))
    if error.retry_after_s is not None:
        wait = duration_pb2.Duration()
        wait.FromMilliseconds(int(error.retry_after_s * 1000))
        found.append(error_details_pb2.RetryInfo(retry_delay=wait))
    return found


def _bad_request(violations: Sequence[errors.Violation]) -> error_details_pb2.BadRequest:
    """As many violations as a client can be told at once, and how many more there are."""
    told = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        told.field_violations.add(field=violation.field, description=violation.description)
        if told.ByteSize() > DETAILS_LIMIT:
            del told.field_violations[index:]
            rest = f"and {len(violations) - index} more; correct these first"
            told.field_violations.add(field="", description=rest)
            break
    return told


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _read_details(error: Any) -> dict[str, Any]:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY:
            body = status_pb2.Status.FromString(value)
            return {
                kind.DESCRIPTOR.name: _unpacked(kind, packed)
                for packed in body.details
                for kind in DETAILS
                if packed.Is(kind.DESCRIPTOR)
            }
    return {}


def _unpacked(kind: type[Message], packed: any_pb2.Any) -> Message:
    detail = kind()
    packed.Unpack(detail)
    return detail
