"""The messages of SyncService and our values, one into the other."""

import re
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from tenon.executor.v1 import sync_service_pb2 as pb

from services.chassis.errors import invalid
from services.chassis.ids import BadName, parse_name
from services.chassis.interceptors import Call
from services.executor.messages.executions import moment, uid_in, uuid_at
from services.executor.store.sync_pages import StreamState, SyncRun
from services.executor.syncs.reading import Record, RecordPage, RecordQuery
from services.executor.syncs.runs import Named, SyncPage, SyncQuery, SyncRequest

_STATE: Final = "STATE_"
_FORM: Final = "tenants/{tenant}/integrations/{name}/streams/{name}"
_STREAM: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


def sync_request(request: pb.TriggerSyncRequest, call: Call) -> SyncRequest:
    """What a caller wants to have transferred. Raises InvalidArgument."""
    return SyncRequest(
        tenant_id=call.inside(),
        principal_id=call.principal.principal_id,
        stream=stream_in(request.stream),
        whole=request.full,
        request_id=uuid_at("request_id", request.request_id) if request.request_id else None,
    )


def sync_run_id(name: str) -> UUID:
    """The uid in `tenants/{slug}/syncRuns/{uid}`. Raises InvalidArgument."""
    return uid_in(name, "syncRuns")


def stream_in(name: str) -> Named:
    """Integration and stream of `tenants/…/integrations/{name}/streams/{name}`. Raises BadName."""
    parts = name.split("/")
    if len(parts) != 6 or parts[4] != "streams":
        raise BadName(f"a name of the form {_FORM} is needed")
    _, integration = parse_name("/".join(parts[:4]), "integrations")
    if not _STREAM.fullmatch(parts[5]):
        raise BadName("a stream's name is lower-case letters, digits and _")
    return integration, parts[5]


def integration_in(parent: str) -> str:
    """The integration of a parent, empty where that is a tenant. Raises BadName."""
    return parse_name(parent, "integrations")[1] if parent.count("/") > 1 else ""


def sync_query(request: pb.ListSyncRunsRequest, call: Call) -> SyncQuery:
    """Which transfers a caller wants listed. Raises InvalidArgument."""
    if request.state not in pb.SyncRun.State.values():
        raise invalid("state", "is not a state of a transfer")
    state = pb.SyncRun.State.Name(request.state).removeprefix(_STATE).lower()
    return SyncQuery(
        tenant_id=call.inside(),
        stream=stream_in(request.stream) if request.stream else None,
        state=state if request.state else "",
        page_size=request.page_size,
        page_token=request.page_token,
    )


def sync_page(found: SyncPage, tenant: str) -> pb.ListSyncRunsResponse:
    """A page as the caller sees it."""
    return pb.ListSyncRunsResponse(
        sync_runs=[sync_run(each, tenant) for each in found.runs],
        next_page_token=found.next_page_token,
    )


def sync_run(found: SyncRun, tenant: str) -> pb.SyncRun:
    """A transfer of the tenant with this slug, as the caller sees it."""
    of_event = found.trigger_kind == "event"
    return pb.SyncRun(
        name=_run_name(tenant, found.id),
        stream=_stream_name(tenant, found.stream),
        state=pb.SyncRun.State.Value(_STATE + found.state.upper()),
        full=found.whole,
        trigger=found.trigger_kind,
        event=f"tenants/{tenant}/events/{found.trigger_id}" if of_event else "",
        **{name: getattr(found, name) for name in ("pages", "seen", "created", "updated")},
        deleted=found.deleted,
        failure_reason=found.failure_reason,
        failure_message=found.failure_message,
        covered_by=_run_name(tenant, found.covered_by),
        create_time=moment(found.created_at),
        start_time=moment(found.started_at),
        end_time=moment(found.ended_at),
    )


def streams(found: Sequence[StreamState], tenant: str) -> pb.ListStreamsResponse:
    """Streams as the caller sees them."""
    return pb.ListStreamsResponse(streams=[stream(each, tenant) for each in found])


def stream(found: StreamState, tenant: str) -> pb.Stream:
    """A stream of the tenant with this slug, as the caller sees it."""
    return pb.Stream(
        name=_stream_name(tenant, found.name),
        is_active=found.spec["is_active"],
        cursor=found.cursor or "",
        last_success_time=moment(found.last_success_at),
        last_failure_time=moment(found.last_failure_at),
        last_failure_reason=found.last_failure_reason or "",
        failures=found.failures or 0,
        last_run=_run_name(tenant, found.last_run_id),
    )


def record_query(request: pb.ListRecordsRequest, call: Call) -> RecordQuery:
    """Which records a caller wants listed. Raises InvalidArgument."""
    return RecordQuery(
        tenant_id=call.inside(),
        stream=stream_in(request.stream),
        gone=request.show_deleted,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def record_page(found: RecordPage) -> pb.ListRecordsResponse:
    """A page as the caller sees it."""
    return pb.ListRecordsResponse(
        records=[_record(each) for each in found.records], next_page_token=found.next_page_token
    )


def _record(found: Record) -> pb.Record:
    return pb.Record(
        key=found.key,
        data=found.data,
        version=found.version,
        change_time=moment(found.changed_at),
        delete_time=moment(found.deleted_at),
    )


def _run_name(tenant: str, run_id: UUID | None) -> str:
    return f"tenants/{tenant}/syncRuns/{run_id}" if run_id else ""


def _stream_name(tenant: str, name: str) -> str:
    integration, _, stream = name.partition("/")
    return f"tenants/{tenant}/integrations/{integration}/streams/{stream}"
