"""What browsers bring to the ingress: a flow ends, and the browser goes back."""

import logging
from dataclasses import dataclass

from services.chassis.errors import TenonError
from services.registry.oauth.flows import Denied, FlowRefused, Flows, returning
from services.registry.oauth.wishes import Returned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Relayed:
    """What a flow came to, and where its browser goes; empty: nowhere."""

    status: str
    return_url: str


class Relaying:
    """The use case: once a flow is used up, whatever becomes of it is an answer, and no error."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows

    async def take(self, returned: Returned) -> Relayed:
        """End a flow. Raises FlowRefused where there is none of this browser's."""
        try:
            done = await self._flows.complete(returned, None)
        except FlowRefused:
            raise
        except TenonError as error:
            status = "denied" if isinstance(error, Denied) else "failed"
            log.warning("an account is not connected: %s: %s", error.code, error.message)
            return Relayed(status, returning(error.metadata.get("return_url", ""), status=status))
        status = "waits" if done.pending_id else "connected"
        words = {"status": status, "connection": done.connection}
        return Relayed(status, returning(done.return_url, **words))
