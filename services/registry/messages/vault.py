"""Between the messages of keys that wrap and the registry's values."""

from typing import Any

from tenon.registry.v1 import vault_service_pb2 as pb2

from services.registry.keys.rewrapping import Progress
from services.registry.keys.versions import Listed
from services.registry.messages.config import moment


def listed_message(listed: Listed) -> pb2.ListKeyVersionsResponse:
    """All versions, and who has which."""
    return pb2.ListKeyVersionsResponse(
        versions=[version_message(row, listed.wrapped[row.version]) for row in listed.versions],
        holders=[
            pb2.KeyHolder(
                uid=str(row.holder_id),
                host=row.host,
                versions=row.versions,
                seen_time=moment(row.seen_at),
            )
            for row in listed.holders
        ],
    )


def version_message(row: Any, wraps: int) -> pb2.KeyVersion:
    """One version, and how much it wraps."""
    return pb2.KeyVersion(
        version=row.version,
        state=pb2.KeyVersion.State.Value(f"STATE_{row.state.upper()}"),
        provider=row.provider,
        reference=row.reference,
        wraps=wraps,
        wrapped_in_all=row.wraps,
        create_time=moment(row.created_at),
        update_time=moment(row.changed_at),
    )


def progress_message(progress: Progress) -> pb2.RewrapProgress:
    """How far it is."""
    return pb2.RewrapProgress(
        done=progress.done,
        total=progress.total,
        waiting_for=progress.waiting_for,
        version=progress.version,
    )


def tenant_key_message(row: Any) -> pb2.TenantKey:
    """A tenant's data key."""
    return pb2.TenantKey(
        uid=str(row.data_key_id), key_version=row.key_version, create_time=moment(row.created_at)
    )
