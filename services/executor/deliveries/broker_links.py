"""A connection to a broker, shared by all that is published to an endpoint at once."""

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import SystemRandom
from typing import Final

from nats import errors as client_errors
from nats.aio.client import Client
from nats.js import errors as stream_errors

from services.chassis.egress import ConnectFailed, Egress, EgressError, ResponseLost
from services.chassis.endpoint_limits import Only
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.executor.deliveries.broker_streams import GivenStream
from services.executor.deliveries.verdicts import NotTaken, Verdict
from services.providers.brokers import Broker, Host

NOWHERE: Final = "nats://connection.invalid"
"""The address that the client is told; it has a connection already."""
CONNECT_S: Final = 5
CLOSE_S: Final = 1
PING_S: Final = 20
TOO_LARGE: Final = Verdict("refused", reason="MESSAGE_TOO_LARGE")
NO_STREAM: Final = "NO_STREAM"
UNAUTHORIZED: Final = "UNAUTHORIZED"
UNKNOWN: Final = ("authoriz", "authentic")
"""In what a server says of a credential that it refuses, or that has run out."""
DENIED: Final = "permissions violation"
TOO_LARGE_FOR_STREAM: Final = 10054
"""JetStream's code for a message larger than its stream takes."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is published."""

    subject: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes, as the server counts them: the headers with the line before them, and the body."""
        lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers.items())
        return len("NATS/1.0\r\n") + lines + len("\r\n") + len(self.body)


# What a broker sends may stand in what its client logs; a link that ends says why by itself.
logging.getLogger("nats.aio.client").disabled = True


class _Given(Client):
    """nats-py's client on a connection that it is given."""

    def __init__(self, stream: GivenStream) -> None:
        super().__init__()
        self._transport = stream


async def _context() -> ssl.SSLContext:
    return await asyncio.to_thread(ssl.create_default_context)


class Link:
    """An open connection. What is published over it at once waits for its acks at once."""

    def __init__(self, stream: GivenStream) -> None:
        self._stream = stream
        self._client = _Given(stream)
        self._streams = self._client.jetstream()
        self._denied = 0

    @property
    def broken(self) -> bool:
        """Whether nothing goes over it any more."""
        return self._stream.gone.done()

    async def begin(self, shown: Mapping[str, Secret]) -> None:
        """Speak to the server, and show it a credential's parts. Raises what nats-py raises."""
        said = {part: value.reveal_text for part, value in shown.items()}
        await self._client.connect(
            NOWHERE,
            name="tenon",
            allow_reconnect=False,
            connect_timeout=CONNECT_S,
            # By itself it would make one on the loop, which takes 20 ms.
            tls=await _context() if self._stream.encrypted else None,
            ping_interval=PING_S,
            error_cb=self._told,
            user=said.get("username"),
            password=said.get("password"),
            token=said.get("token"),
        )

    async def publish(self, message: Message, timeout_s: float) -> str:
        """Publish; answers with the ack of a stream. Raises NotTaken and ResponseLost."""
        denied = self._denied
        try:
            return await self._acked(message, timeout_s)
        except Exception as error:  # noqa: BLE001 - a broker can make the client raise anything
            failed = _unacked(error, denied=self._denied > denied)
        # Raised out here to have no context, which may repeat what the broker says.
        raise failed

    async def close(self) -> None:
        """Close it; what is under way on it is lost."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._client.close()
        except Exception:  # noqa: BLE001, S110 - it ends below, whatever the client makes of that
            pass
        finally:
            self._stream.abort()

    async def _acked(self, message: Message, timeout_s: float) -> str:
        """The ack, unless the connection breaks before: the client would wait for the timeout."""
        if message.size > self._client.max_payload:
            raise NotTaken(TOO_LARGE)
        publishing = asyncio.create_task(
            self._streams.publish(
                message.subject, message.body, timeout=timeout_s, headers=dict(message.headers)
            )
        )
        publishing.add_done_callback(_heard)
        try:
            both = (publishing, self._stream.gone)
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if publishing.done():
                ack = publishing.result()
                return _text(ack.stream, ack.seq, duplicate=bool(ack.duplicate))
            raise ConnectionResetError if self.broken else TimeoutError
        finally:
            publishing.cancel()

    async def _told(self, error: Exception) -> None:
        """Note what the server says beside its answers."""
        if DENIED in str(error):
            self._denied += 1


async def opened(
    egress: Egress, broker: Broker, shown: Mapping[str, Secret], only: Only | None
) -> Link:
    """A connection to a host of a broker, whichever takes one.

    Raises EgressError and NotTaken: of several what may be tried again rather than what is final.
    """
    failed: list[TenonError] = []
    for host in SystemRandom().sample(broker.hosts, len(broker.hosts)):
        try:
            return await _opened(egress, host, shown, only, encrypted=broker.encrypted)
        except (EgressError, NotTaken) as error:
            failed.append(error)
    passing = (each for each in failed if isinstance(each, ConnectFailed | NotTaken))
    raise next(passing, failed[0])


async def _opened(
    egress: Egress, host: Host, shown: Mapping[str, Secret], only: Only | None, *, encrypted: bool
) -> Link:
    dialled = await egress.dial(host.name, host.port, only=only, timeout_s=CONNECT_S)
    link = Link(GivenStream(dialled, host.name, encrypted=encrypted))
    try:
        async with asyncio.timeout(CONNECT_S):
            await link.begin(shown)
    except Exception as error:  # noqa: BLE001 - a broker can make the client raise anything
        failed = _unopened(host, error)
    except asyncio.CancelledError:
        await link.close()
        raise
    else:
        return link
    await link.close()
    # Raised out here to have no context, which may repeat what the broker says.
    raise failed


def _unopened(host: Host, error: Exception) -> TenonError:
    """What an error of the client means, which repeats nothing of it."""
    if isinstance(error, TenonError):
        return error
    if isinstance(error, TimeoutError):
        return ConnectFailed(f"{host.name}:{host.port}: no connection in time", "timeout")
    if any(word in str(error).lower() for word in UNKNOWN):
        return NotTaken(Verdict("again", reason=UNAUTHORIZED))
    return ConnectFailed(f"{host.name}:{host.port}: no connection")


def _unacked(error: Exception, *, denied: bool) -> TenonError:
    """What an error of the client means to a message, which repeats nothing of it."""
    if isinstance(error, TenonError):
        return error
    if isinstance(error, stream_errors.APIError):
        return _answered(error)
    if isinstance(error, TimeoutError) and denied:
        return NotTaken(Verdict("again", reason=UNAUTHORIZED))
    if isinstance(error, TimeoutError):
        return ResponseLost("the broker took too long to answer", late=True)
    if isinstance(error, stream_errors.NoStreamResponseError):
        return NotTaken(Verdict("again", reason=NO_STREAM))
    if isinstance(error, client_errors.Error | OSError):
        return ResponseLost("the connection to the broker broke")
    # Somebody answers there, but no stream.
    return NotTaken(Verdict("again", reason=NO_STREAM))


def _answered(error: stream_errors.APIError) -> NotTaken:
    """What a stream's answer means that is no ack."""
    number = error.err_code if isinstance(error.err_code, int) else 0
    if number == TOO_LARGE_FOR_STREAM:
        return NotTaken(TOO_LARGE)
    said = error.description if isinstance(error.description, str) else ""
    return NotTaken(Verdict("again", reason=f"BROKER_{number}", head=said))


def _text(stream: object, number: object, *, duplicate: bool) -> str:
    """An ack as it is kept of a try. Raises TypeError for what is none."""
    if not (isinstance(stream, str) and isinstance(number, int)):
        raise TypeError
    ack = {"stream": stream, "seq": number} | ({"duplicate": True} if duplicate else {})
    return json.dumps(ack)


def _heard(publishing: "asyncio.Task[object]") -> None:
    """Take note of how it ended, which nobody else does once the connection has broken."""
    if not publishing.cancelled():
        publishing.exception()
