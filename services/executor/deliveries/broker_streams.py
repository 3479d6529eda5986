"""What nats-py speaks over: one connection that egress has dialled, and never another.

A client looks for servers by itself, and takes in those that a broker tells it of. It is given a
connection instead of an address, so that it has no way to dial.
"""

import asyncio
import ssl
from collections.abc import Awaitable
from typing import Final
from urllib.parse import ParseResult

from nats.aio.transport import Transport

from services.chassis.egress import ConnectFailed
from services.chassis.egress_streams import Stream

MOST_BYTES: Final = 2**20
"""That may come in without anything being published."""
BYTES_A_MESSAGE: Final = 2**12
"""That may come in for each message; an ack is a tenth of it."""
_PUBLISHED: Final = (b"PUB ", b"HPUB ")


class GivenStream(Transport):
    """A connection to `host`; where it must be `encrypted`, nothing is written to it before it is.

    `gone` is done as soon as it is broken or closed.
    """

    def __init__(self, stream: Stream, host: str, *, encrypted: bool) -> None:
        # As dialled it is kept to the end: who drops it closes what encrypts it.
        self._dialled = stream
        self._reader, self._writer = stream
        self._host = host
        self.encrypted = encrypted
        self._may_write = not encrypted
        self._taken = False
        self._left = MOST_BYTES
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Give the connection, once. Raises ConnectionAbortedError for another one."""
        if self._taken:
            raise ConnectionAbortedError
        self._taken = True

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        """Encrypt it. Raises ConnectFailed where the other side does not prove to be the host."""
        loop = asyncio.get_running_loop()
        # A new reader: what came in the clear is not read as if it had come encrypted.
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport = await loop.start_tls(
                self._writer.transport,
                protocol,
                ssl_context,
                server_hostname=self._host,
                ssl_handshake_timeout=connect_timeout,
            )
        except OSError:
            transport = None
        if transport is None:
            raise self._not_encrypted()
        # Nobody else tells it: without, the reader cannot ask the other side to wait.
        protocol.connection_made(transport)
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._may_write = True

    def write(self, payload: bytes) -> None:
        """Write. Raises ConnectFailed before what must be encrypted is."""
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """Write one after the other; raises as `write` does."""
        if not self._may_write:
            raise self._not_encrypted()
        told = sum(each.startswith(_PUBLISHED) for each in payload)
        self._left = min(self._left + BYTES_A_MESSAGE * told, MOST_BYTES)
        self._writer.writelines(payload)

    async def read(self, buffer_size: int) -> bytes:
        """What comes next. Raises ConnectionAbortedError for more than was asked for."""
        return await self._metered(self._reader.read(buffer_size))

    async def readline(self) -> bytes:
        """The next line; raises as `read` does."""
        return await self._metered(self._reader.readline())

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._writer.drain()

    def close(self) -> None:
        """Send what is left, then close."""
        self._end()
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        self._end()
        self._writer.transport.abort()

    def at_eof(self) -> bool:
        """Whether nothing more comes."""
        return self._reader.at_eof()

    def __bool__(self) -> bool:
        """True: a client that has a connection makes none of its own."""
        return True

    async def _metered(self, reading: Awaitable[bytes]) -> bytes:
        try:
            found = await reading
        except (OSError, ValueError):
            # The second is asyncio's for a line without end.
            found = b""
        self._left -= len(found)
        if not found or self._left < 0:
            self._end()
            raise ConnectionAbortedError
        return found

    def _end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def _not_encrypted(self) -> ConnectFailed:
        return ConnectFailed(f"{self._host}: no TLS connection", "tls")
