"""Channels to our own services: TLS off the machine, retries, the key on every call."""

import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc

from services.chassis.secret import Secret

# gRPC retries by itself what never reached a servicer; we ask for the same after UNAVAILABLE.
RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.service_config", json.dumps(RETRY)),
    ("grpc.keepalive_time_ms", 30_000),
    # By default a channel waits up to two minutes before it looks for a server that came back.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 16 * 2**20),
)

# Why somebody acts where they need a reason; percent-encoded, since metadata is ASCII.
REASON: Final = "x-tenon-reason"


class TokenFile:
    """A credential in a file that somebody else renews, as a cluster does with its tokens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def reveal_text(self) -> str:
        """What the file holds now. Raises OSError where it cannot be read."""
        found = self._path.stat()
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._text, self._seen = self._path.read_text().strip(), seen
        return self._text


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a channel proves who it is with: PEM files, read when it is opened."""

    certificate: Path
    private_key: Path


class ClearChannelError(Exception):
    """A key was to be sent over a channel that is neither TLS, loopback nor a Unix socket."""


def open_channel(
    target: str,
    *,
    key: Secret | TokenFile | None = None,
    ca_file: Path | None = None,
    certificate: ClientCertificate | None = None,
    reason: str = "",
) -> grpc.aio.Channel:
    """An asyncio channel that sends the key, and why, with every call, or shows a certificate."""
    said = _Said(key, reason)
    interceptors = [each(said) for each in (_AsyncCall, _AsyncStream, _AsyncUpload, _AsyncBoth)]
    if ca_file is not None:
        credentials = _credentials(ca_file, certificate)
        return grpc.aio.secure_channel(
            target, credentials, options=list(OPTIONS), interceptors=interceptors
        )
    _refuse_clear(target)
    return grpc.aio.insecure_channel(target, options=list(OPTIONS), interceptors=interceptors)


def open_sync_channel(
    target: str, *, key: Secret | None = None, ca_file: Path | None = None, reason: str = ""
) -> grpc.Channel:
    """A blocking channel that sends the key, and why, with every call; for commands."""
    if ca_file is not None:
        channel = grpc.secure_channel(target, _credentials(ca_file), options=list(OPTIONS))
    else:
        _refuse_clear(target)
        channel = grpc.insecure_channel(target, options=list(OPTIONS))
    return grpc.intercept_channel(channel, _SyncCall(_Said(key, reason)))


def _refuse_clear(target: str) -> None:
    if not _is_local(target):
        raise ClearChannelError(
            f"{target} is not on this machine: give a CA file so that the channel is TLS"
        )


def _is_local(target: str) -> bool:
    """Whether a target is a Unix socket, localhost or a loopback address."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(ca_file: Path, own: ClientCertificate | None = None) -> grpc.ChannelCredentials:
    if own is None:
        return grpc.ssl_channel_credentials(ca_file.read_bytes())
    return grpc.ssl_channel_credentials(
        ca_file.read_bytes(), own.private_key.read_bytes(), own.certificate.read_bytes()
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What goes with every call."""

    key: Secret | TokenFile | None
    reason: str

    def with_it(self, details: Any) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if self.key is not None:
            metadata.add("authorization", f"Bearer {self.key.reveal_text()}")
        if self.reason:
            # Metadata is ASCII.
            metadata.add(REASON, quote(self.reason))
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _AsyncCall(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, said: _Said) -> None:
        self._said = said

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._said.with_it(client_call_details), request)


class _AsyncStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, said: _Said) -> None:
        self._said = said

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._said.with_it(client_call_details), request)


class _AsyncUpload(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, said: _Said) -> None:
        self._said = said

    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._said.with_it(client_call_details), request_iterator)


class _AsyncBoth(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, said: _Said) -> None:
        self._said = said

    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._said.with_it(client_call_details), request_iterator)


class _SyncCall(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, said: _Said) -> None:
        self._said = said

    def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._said.with_it(details), request)

    intercept_unary_unary = _call  # type: ignore[assignment]
    intercept_unary_stream = _call  # type: ignore[assignment]
    intercept_stream_unary = _call  # type: ignore[assignment]
    intercept_stream_stream = _call  # type: ignore[assignment]
