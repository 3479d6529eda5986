"""An answer, no longer than a limit, however it is compressed and whatever is around its body."""

import zlib
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

from services.chassis.egress_errors import ResponseTooLarge

AROUND_A_BODY: Final = 2**20
"""Bytes that heads, interim answers and chunks may add to what is sent of a body."""

_GZIP_WINDOW: Final = 31
"""zlib's wbits for a gzip wrapper."""
_MOST_MEMBERS: Final = 1000
"""Of one gzip stream; each costs time, even an empty one."""


class MeteredHandler(ResponseHandler):
    """Takes in no more for one request than it was allotted.

    aiohttp bounds the length of one head, and we that of the body; interim answers, extensions of
    chunks and empty lines have no end of their own.
    """

    _left = 0

    def allot(self, count: int) -> None:
        """As many bytes may come from now on."""
        self._left = count

    def data_received(self, data: bytes) -> None:
        """Hands on what came, or breaks the connection: an OSError here is how asyncio is told."""
        self._left -= len(data)
        if self._left < 0:
            raise ConnectionAbortedError
        super().data_received(data)


def most_bytes(limit: int) -> int:
    """How many bytes an answer with a body of `limit` may take on the connection.

    Chunks and the compression of what is compressed already make a body longer, never twice so.
    """
    return 2 * limit + AROUND_A_BODY


async def read(answer: aiohttp.ClientResponse, limit: int) -> tuple[dict[str, str], bytes]:
    """Headers, with lower-case names, and the body, of at most `limit` bytes once decompressed.

    Raises ResponseTooLarge, zlib.error for a body that does not unpack, and aiohttp's errors.
    """
    headers = _joined(answer)
    chunks: AsyncIterator[bytes] = answer.content.iter_any()
    if headers.get("content-encoding", "").strip().lower() == "gzip":
        chunks = _unzipped(chunks, limit)
        for name in ("content-encoding", "content-length"):
            headers.pop(name, None)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            answer.close()
            raise ResponseTooLarge(f"the answer is longer than {limit} bytes", answer.status)
    return headers, bytes(body)


def _joined(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): ", ".join(answer.headers.getall(name)) for name in set(answer.headers)}


async def _unzipped(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """The decompressed stream, in pieces no longer than `limit` + 1, so that a bomb stays small.

    An empty stream stays empty; several gzip members in a row are one stream (RFC 1952 §2.2).
    """
    member = None
    members = 0
    async for chunk in chunks:
        rest = chunk
        while rest:
            if member is None or member.eof:
                members += 1
                if members > _MOST_MEMBERS:
                    raise zlib.error("too many members")
                member = zlib.decompressobj(_GZIP_WINDOW)
            yield member.decompress(rest, limit + 1)
            rest = member.unconsumed_tail or member.unused_data
    if member is not None and not member.eof:
        raise zlib.error("cut short")
