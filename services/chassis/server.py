"""Builds a gRPC server from descriptors and servicers: rules, gates, health, reflection, drain."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.chassis.errors import InvalidArgument, Unavailable
from services.chassis.holding import Check, while_allowed
from services.chassis.interceptors import Call, Frame, Gate
from services.chassis.rules import rule_of

LARGEST_MESSAGE = 4 * 2**20
# A token may have 8 KiB; what is a little larger is for us to refuse, not for gRPC.
METADATA_SIZE = 16 * 2**10
CONNECTION_AGE_MS = 15 * 60 * 1000
CONNECTION_GRACE_MS = 60 * 1000
# Of one connection at once; what is more waits on the caller's side.
MOST_STREAMS = 1000
HEAR_OUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Service:
    """A contract and the object that keeps it: one method for each RPC, of the same name."""

    descriptor: ServiceDescriptor
    servicer: object


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a server listens; with a certificate it speaks TLS.

    With `client_ca` every caller must show a certificate which that authority signed. With
    `reuse_port` other processes of the same user may listen there too.
    """

    address: str
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    reuse_port: bool = False


@asynccontextmanager
async def serving(
    services: Sequence[Service], gates: Sequence[Gate], listen: Listen, *, grace_s: float = 10.0
) -> AsyncIterator[int]:
    """Serve until the block ends, then drain; yields the port."""
    server = grpc.aio.server(options=_options(listen))
    server.add_generic_rpc_handlers(tuple(_handlers(service, gates) for service in services))
    names = [service.descriptor.full_name for service in services]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    port = _listen(server, listen)
    await server.start()
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        # Load balancers stop sending first; calls under way may end.
        await checks.enter_graceful_shutdown()
        await server.stop(grace_s)


def _options(listen: Listen) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.max_metadata_size", METADATA_SIZE),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_SIZE),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ("grpc.so_reuseport", int(listen.reuse_port)),
        # Our channels ask every 30 s whether a quiet connection lives; gRPC would call that abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _listen(server: grpc.aio.Server, listen: Listen) -> int:
    try:
        if listen.certificate is None and listen.private_key is None and listen.client_ca is None:
            return server.add_insecure_port(listen.address)
        return server.add_secure_port(listen.address, _credentials(listen))
    except RuntimeError:
        raise Unavailable(f"cannot listen on {listen.address}") from None


def _credentials(listen: Listen) -> grpc.ServerCredentials:
    # One without the other must not end in a clear channel.
    if listen.certificate is None or listen.private_key is None:
        raise InvalidArgument("TLS needs both a certificate and its private key")
    pair = (listen.private_key.read_bytes(), listen.certificate.read_bytes())
    if listen.client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials(
        [pair], listen.client_ca.read_bytes(), require_client_auth=True
    )


def _handlers(service: Service, gates: Sequence[Gate]) -> grpc.GenericRpcHandler:
    methods = {
        method.name: _handler(method, service.servicer, gates)
        for method in service.descriptor.methods
    }
    return grpc.method_handlers_generic_handler(service.descriptor.full_name, methods)


def _handler(
    method: MethodDescriptor, servicer: object, gates: Sequence[Gate]
) -> "grpc.RpcMethodHandler[Message, Message]":
    """One RPC's way in; a contract without rule or servicer method fails here, at start."""
    frame = Frame(rule_of(method), gates)
    rpc = getattr(servicer, method.name)
    make, behaviour = SHAPES[method.client_streaming, method.server_streaming]
    handler: grpc.RpcMethodHandler[Message, Message] = make(
        behaviour(frame, rpc),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
    return handler


def _unary(frame: Frame, rpc: Callable[..., Any]) -> Callable[..., Any]:
    async def behaviour(request: Message, context: Any) -> Any:
        async with frame.around(request, context, bounded=True) as call:
            return await rpc(request, call)

    return behaviour


def _answering_stream(frame: Frame, rpc: Callable[..., Any]) -> Callable[..., Any]:
    async def behaviour(request: Message, context: Any) -> AsyncIterator[Any]:
        async with (
            frame.around(request, context, bounded=False) as call,
            aclosing(rpc(request, call)) as answers,
            aclosing(while_allowed(answers, partial(frame.look_again, call))) as allowed,
        ):
            async for answer in allowed:
                yield answer

    return behaviour


def _both_streams(frame: Frame, rpc: Callable[..., Any]) -> Callable[..., Any]:
    async def behaviour(requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Any]:
        async with (
            frame.around(
                partial(_first, requests), context, bounded=False, ending=_heard_out(requests)
            ) as call,
            aclosing(rpc(_whole(call, requests, partial(frame.look_again, call)), call)) as answers,
            aclosing(while_allowed(answers, partial(frame.look_again, call))) as allowed,
        ):
            async for answer in allowed:
                yield answer

    return behaviour


def _asking_stream(frame: Frame, rpc: Callable[..., Any]) -> Callable[..., Any]:
    async def behaviour(requests: AsyncIterator[Message], context: Any) -> Any:
        async with frame.around(partial(_first, requests), context, bounded=True) as call:
            return await rpc(_whole(call, requests, partial(frame.look_again, call)), call)

    return behaviour


def _heard_out(requests: AsyncIterator[Message]) -> Callable[[], Awaitable[None]]:
    """Reads what else comes, for a moment.

    Who is still writing when both streams end may see that alone, and never why they ended.
    """

    async def hear_out() -> None:
        # Where somebody reads already, nothing can be read here.
        with suppress(TimeoutError, RuntimeError, grpc.RpcError):
            async with asyncio.timeout(HEAR_OUT_S):
                async for _ in requests:
                    pass

    return hear_out


async def _first(requests: AsyncIterator[Message]) -> Message:
    first = await anext(aiter(requests), None)
    if first is None:
        raise InvalidArgument("the stream is empty")
    return first


async def _whole(
    call: Call, rest: AsyncIterator[Message], look_again: Check
) -> AsyncIterator[Message]:
    """A stream from its first message on; at its end the caller must still be let in."""
    yield call.message
    async for message in rest:
        yield message
    await look_again()


SHAPES: dict[tuple[bool, bool], tuple[Callable[..., Any], Callable[..., Any]]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, _unary),
    (False, True): (grpc.unary_stream_rpc_method_handler, _answering_stream),
    (True, False): (grpc.stream_unary_rpc_method_handler, _asking_stream),
    (True, True): (grpc.stream_stream_rpc_method_handler, _both_streams),
}
