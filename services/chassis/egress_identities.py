"""Client certificates that requests show in the TLS handshake, each in a context of its own.

A connection belongs to the context it was opened with, so that nothing is sent over a connection
that was opened with another certificate, or with none. Whom a context trusts is what every request
trusts: the authorities of the system.
"""

import asyncio
import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from services.chassis.egress_errors import BadIdentity, ConnectFailed
from services.chassis.secret import Secret

MOST: Final = 64
"""Contexts that are kept; each takes 0.8 MB, and 20 ms to make."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its private key, both PEM.

    `name` tells it from every other: whoever shows another version, or shows it for somebody else,
    names it otherwise.
    """

    name: str
    certificate: Secret = field(repr=False, compare=False)
    private_key: Secret = field(repr=False, compare=False)


class Identities:
    """The contexts of one way out."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._made: OrderedDict[str, asyncio.Task[ssl.SSLContext]] = OrderedDict()

    async def context(self, identity: Identity) -> ssl.SSLContext:
        """The context that shows it. Raises BadIdentity where it is none, ConnectFailed for now."""
        making = self._made.get(identity.name)
        if making is None:
            making = asyncio.create_task(asyncio.to_thread(_context, identity))
            self._made[identity.name] = making
            while len(self._made) > self._most:
                self._made.popitem(last=False)
        self._made.move_to_end(identity.name)
        try:
            # Another request may wait for it, too.
            return await asyncio.shield(making)
        except (ssl.SSLError, ValueError):
            raise BadIdentity("the client certificate does not open with its private key") from None
        except (OSError, RuntimeError):
            # No descriptor or no thread was free: the next one tries anew.
            if self._made.get(identity.name) is making:
                del self._made[identity.name]
            raise ConnectFailed("the client certificate cannot be read now", "lost") from None


def _context(identity: Identity) -> ssl.SSLContext:
    """A context that checks who answers, as all do, and shows the certificate.

    OpenSSL reads them from files alone. This one has no name and no place on any disk, and is gone
    with its descriptor, also where the process is killed.
    """
    context = ssl.create_default_context()
    file = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as written:
            written.write(identity.private_key.reveal().strip() + b"\n")
            written.write(identity.certificate.reveal())
        # An encrypted key must fail here: without a password OpenSSL asks the terminal for one.
        context.load_cert_chain(f"/proc/self/fd/{file}", password="")
    finally:
        os.close(file)
    return context
