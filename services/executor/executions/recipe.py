"""A connector as its runs follow it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.executor.executions.outputs import FieldMapping
from services.executor.executions.steps import Step

PARTS: Final = ("steps", "output", "max_retries")
"""What a run keeps of its connector's spec, so that a change of that changes no run begun."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The steps in order, what a run comes to, and how often it is taken up at a failed step."""

    steps: tuple[Step, ...]
    output: tuple[FieldMapping, ...] = ()
    max_retries: int = 0

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Recipe":
        """The recipe in a connector's projected spec, or in these parts of one."""
        return cls(
            steps=tuple(map(Step.from_spec, spec["steps"])),
            output=tuple(map(FieldMapping.from_spec, spec.get("output") or ())),
            max_retries=spec.get("max_retries") or 0,
        )
