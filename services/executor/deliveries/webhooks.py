"""Deliveries over HTTP: a signed request, and what its answer means."""

import time
from collections.abc import Callable

from services.chassis.egress import Egress
from services.executor.deliveries import requests, verdicts
from services.executor.deliveries.policies import seconds
from services.executor.deliveries.transports import Outgoing, Transports
from services.executor.deliveries.verdicts import Verdict
from services.providers.auth import Credential


class Webhooks:
    """The transport."""

    def __init__(self, egress: Egress, now: Callable[[], float] = time.time) -> None:
        self._egress = egress
        self._now = now

    async def send(self, outgoing: Outgoing) -> Verdict:
        """Send the request once."""
        spec, known = outgoing.endpoint.spec, outgoing.credential
        credential = Credential(known.type, known.values, known.only) if known else Credential()
        request = requests.request_of(
            spec, outgoing.message_id, outgoing.body, outgoing.secrets, credential, self._now()
        )
        timeout_s = seconds(spec["delivery"]["timeout"])
        answer = await self._egress.send(request, timeout_s=timeout_s)
        return verdicts.answered(answer, self._now())


def webhooks(egress: Egress) -> Transports:
    """The schemes of HTTP."""
    return dict.fromkeys(("http", "https"), Webhooks(egress))
