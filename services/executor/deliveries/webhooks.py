"""Deliveries over HTTP: a signed request, and what its answer means."""

import asyncio
import time
from collections.abc import Callable, Sequence

from services.chassis.egress import Egress
from services.executor.deliveries import requests, verdicts
from services.executor.deliveries.policies import seconds
from services.executor.deliveries.transports import Outgoing, Transports
from services.executor.deliveries.verdicts import Verdict
from services.executor.redacting import rules_of, shown
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
            spec,
            outgoing.message_id,
            outgoing.body,
            outgoing.secrets,
            credential,
            self._now(),
            requests.identity_of(outgoing.endpoint, known),
        )
        timeout_s = seconds(spec["delivery"]["timeout"])
        answer = await self._egress.send(request, timeout_s=timeout_s)
        verdict = verdicts.answered(answer, self._now())
        head = verdicts.head_of(await _shown(answer.body, rules_of(spec)))
        return verdicts.with_head(verdict, head)


async def _shown(body: bytes, rules: Sequence[str]) -> bytes:
    """What may be kept of an answer; looked through beside the loop, since it may be long."""
    return await asyncio.to_thread(shown, body, rules) if rules else body


def webhooks(egress: Egress) -> Transports:
    """The schemes of HTTP."""
    return dict.fromkeys(("http", "https"), Webhooks(egress))
