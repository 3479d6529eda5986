"""The subject that a delivery is published to: a template over its event.

What an expression comes to is one token, so that no payload leads to a place beside the one that
was meant. The type of an event alone brings its own dots.
"""

from typing import Any, Final

from services.chassis.database import Database
from services.chassis.envelope import Unsealable
from services.chassis.evaluator import Evaluator, View
from services.chassis.expressions import Expression, ExpressionError
from services.chassis.templates import Template, as_text
from services.executor.deliveries.transports import Outgoing
from services.executor.deliveries.verdicts import NotTaken, Verdict
from services.executor.events import accepting
from services.executor.registry.credentials import Secrets
from services.executor.store import events
from services.providers import brokers

TYPE: Final = "event.type"
KNOWN: Final = {("event", "id"), ("event", "type")}
"""What is known of an event without reading it."""


class Subjects:
    """Makes them."""

    def __init__(self, database: Database, secrets: Secrets, evaluator: Evaluator) -> None:
        self._database = database
        self._secrets = secrets
        self._evaluator = evaluator

    async def of(self, outgoing: Outgoing) -> str:
        """The subject of a delivery. Raises NotTaken where there is none, and Unavailable."""
        template = Template.parse(outgoing.endpoint.spec["subject"])
        values = {"event": await self._event(outgoing, template)} if template.expressions else {}
        view = self._evaluator.seeing(values, outgoing.tenant_id)
        try:
            parts = [await _text(part, view) for part in template.parts]
        except ExpressionError:
            raise _refused("BAD_SUBJECT") from None
        subject = "".join(parts)
        if brokers.subject_problem(subject) is not None:
            raise _refused("BAD_SUBJECT")
        return subject

    async def _event(self, outgoing: Outgoing, template: Template) -> dict[str, Any]:
        """As much of the event as the template asks for."""
        delivery = outgoing.delivery
        taken = {path[:2] for each in template.expressions for path in each.paths}
        if taken <= KNOWN:
            return {"id": str(delivery.of_event), "type": delivery.event_type}
        kept = delivery.event or await events.find(
            self._database, outgoing.tenant_id, delivery.of_event
        )
        if kept is None:
            raise _refused("EVENT_GONE")
        try:
            sealed_by = kept.data_key_id
            key = await self._secrets.lease_key(kept.tenant_id, sealed_by) if sealed_by else None
            said = accepting.opened(kept, key)
        except Unsealable:
            raise _refused("PAYLOAD_UNREADABLE") from None
        return accepting.as_context(accepting.event_of(said, delivery.event_type))


async def _text(part: str | Expression, view: View) -> str:
    """A part of a subject. Raises ExpressionError for what could lead to another one."""
    if isinstance(part, str):
        return part
    text = as_text(await view.evaluate(part.text))
    of_type = part.text.strip() == TYPE and brokers.subject_problem(text) is None
    if not (of_type or brokers.is_token(text)):
        raise ExpressionError("a subject's expression must come to one token")
    return text


def _refused(reason: str) -> NotTaken:
    return NotTaken(Verdict("refused", reason=reason))
