"""Connections for what is not HTTP: a name is asked for once, and checked addresses are dialled."""

import asyncio
import socket
from collections.abc import Sequence
from typing import TypeAlias

from services.chassis.addresses import AllowRule
from services.chassis.egress_dialling import Journey, may_dial, told_by
from services.chassis.egress_errors import EgressError, NotPermitted

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dialled(here: Journey, port: int, allow: Sequence[AllowRule], timeout_s: float) -> Stream:
    """A connection to the journey's host, at the first of its permitted addresses that answers.

    Raises EgressRefused, NotPermitted and ConnectFailed.
    """
    if here.only is not None and here.only.endpoints:
        raise NotPermitted(f"{here.place}: its credential is for calls of HTTP endpoints alone")
    failed: EgressError
    try:
        async with asyncio.timeout(timeout_s):
            return await _first(here, port, allow, timeout_s)
    except (TimeoutError, OSError, UnicodeError) as error:
        failed = told_by(here, error)
    # Raised out here to have no context, which names the address.
    raise failed


async def _first(here: Journey, port: int, allow: Sequence[AllowRule], timeout_s: float) -> Stream:
    found = await asyncio.get_running_loop().getaddrinfo(here.host, port, type=socket.SOCK_STREAM)
    addresses = [str(target[0]) for *_, target in found]
    permitted = [each for each in addresses if may_dial(here, each, port, allow)]
    last: OSError = PermissionError("refused by egress")
    for address in permitted:
        try:
            # One that is silent must leave time for the others.
            async with asyncio.timeout(timeout_s / len(permitted)):
                # A literal address, which nothing resolves again.
                return await asyncio.open_connection(address, port)
        except OSError as error:
            # A TimeoutError is one, too.
            last = error
    raise last
