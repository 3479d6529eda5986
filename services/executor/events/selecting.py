"""Which events somebody wants: by their types, and by a condition as subscriptions have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.chassis.errors import invalid
from services.chassis.evaluator import View
from services.chassis.expressions import Expression, ExpressionError, Names
from services.executor.events.publishing import LONGEST_TYPE
from services.executor.events.subscriptions import of_types

NAMES: Final[Names] = {"event": frozenset({"id", "type", "payload", "headers"})}
MOST_TYPES: Final = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Events of some types (none: of all) for which a condition is true (empty: all)."""

    types: tuple[str, ...] = ()
    filter: str = ""

    def check(self) -> None:
        """Raise InvalidArgument for what could never be asked of an event."""
        if len(self.types) > MOST_TYPES:
            raise invalid("types", f"must be at most {MOST_TYPES}")
        for index, each in enumerate(self.types):
            if not 1 <= len(each) <= LONGEST_TYPE:
                raise invalid(f"types[{index}]", f"must have 1 to {LONGEST_TYPE} characters")
        if not self.filter:
            return
        try:
            problem = Expression.parse(self.filter).problem(NAMES)
        except ExpressionError as error:
            problem = error.message
        if problem:
            raise invalid("filter", problem)

    def is_of_types(self, event_type: str) -> bool:
        """Whether events of a type are wanted at all."""
        return of_types(self.types, event_type)

    async def takes(self, context: Mapping[str, Any], view: View) -> bool:
        """Whether an event is wanted; one for which the condition has no answer is not.

        Raises Unavailable where it should be tried again.
        """
        if not self.is_of_types(context["type"]):
            return False
        try:
            return not self.filter or await view.holds(self.filter)
        except ExpressionError:
            return False


ALL: Final = Selection()
"""Every event."""
