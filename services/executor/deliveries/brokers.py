"""Deliveries to a broker: a message to a stream of NATS JetStream, taken once its ack is there.

Its id is that of the delivery at each try, so that the stream keeps it once, whichever try brought
it. Source: the NATS documentation, "JetStream Model Deep Dive", message deduplication.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from services.chassis.egress import Egress
from services.chassis.secret import Secret
from services.executor.deliveries.broker_links import Message, opened
from services.executor.deliveries.broker_pool import Links, Terms
from services.executor.deliveries.policies import seconds
from services.executor.deliveries.requests import message_headers
from services.executor.deliveries.subjects import Subjects
from services.executor.deliveries.transports import Outgoing, Transports
from services.executor.deliveries.verdicts import Verdict
from services.executor.registry.credentials import Resolved
from services.providers import brokers
from services.providers.auth import CredentialRefused

MESSAGE_ID: Final = "Nats-Msg-Id"
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "BASIC": ("username", "password"),
    "BEARER": ("token",),
}
"""What a server is shown, by the endpoint's auth; nothing for what stands not here."""


class Brokers:
    """The transport."""

    def __init__(
        self,
        egress: Egress,
        subjects: Subjects,
        links: Links,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._egress = egress
        self._subjects = subjects
        self._links = links
        self._now = now

    async def send(self, outgoing: Outgoing) -> Verdict:
        """Publish it once, and wait for the ack, which may say that it was there already."""
        spec, known = outgoing.endpoint.spec, outgoing.credential
        until = time.monotonic() + seconds(spec["delivery"]["timeout"])
        message = Message(await self._subjects.of(outgoing), self._headers(outgoing), outgoing.body)
        shown, broker = _shown(spec, known), brokers.parse(spec["url"])
        only = known.only if known is not None else None
        version = (known.credential_id, known.version) if known is not None else None
        whose = (outgoing.tenant_id, outgoing.endpoint.object_id)
        opening = partial(opened, self._egress, broker, shown, only)
        async with self._links.lent(
            whose, Terms(spec["url"], version, only), opening, until - time.monotonic()
        ) as link:
            return Verdict("taken", head=await link.publish(message, until - time.monotonic()))

    def _headers(self, outgoing: Outgoing) -> dict[str, str]:
        ours = message_headers(outgoing.message_id, outgoing.body, outgoing.secrets, self._now())
        return {
            "content-type": "application/json",
            **outgoing.endpoint.spec["headers"],
            **ours,
            MESSAGE_ID: ours["webhook-id"],
        }


def brokers_of(egress: Egress, subjects: Subjects, links: Links) -> Transports:
    """The schemes of brokers."""
    return dict.fromkeys(brokers.ENCRYPTED, Brokers(egress, subjects, links))


def _shown(spec: Mapping[str, Any], known: Resolved | None) -> dict[str, Secret]:
    """The parts of a credential that a server is shown. Raises CredentialRefused."""
    parts = PARTS.get(spec["auth"], ())
    try:
        shown = {part: known.values[part] for part in parts} if known is not None else {}
        for each in shown.values():
            each.reveal_text()
    except (KeyError, ValueError):
        # The decoder's own error carries the bytes.
        raise CredentialRefused("the credential has no text to show to a broker") from None
    return shown
