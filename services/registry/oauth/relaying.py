"""What browsers bring to the ingress: a flow ends, and the browser goes back."""

from services.registry.oauth.flows import Completed, Denied, Flows, Returned


class Relaying:
    """The use case: an owner who says no is an answer here, and no error."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows

    async def take(self, returned: Returned) -> Completed | Denied:
        """What a flow came to. Raises FlowRefused, and what the write path has against it."""
        try:
            return await self._flows.complete(returned, None)
        except Denied as denied:
            return denied
