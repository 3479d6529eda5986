"""Drops what this process remembers of callers as soon as the registry says that it changed."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from services.chassis import errors
from services.chassis.invalidation import Forget, Invalidation
from services.executor.registry.client import Registry

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.25


async def follow(registry: Registry, *forgets: Forget) -> None:
    """Follow until cancelled; the registry begins every stream with `everything`."""
    while True:
        try:
            async with aclosing(registry.watch_invalidations()) as stream:
                async for told in stream:
                    if told is not None:
                        _pass_on(told, forgets)
        except errors.TenonError as error:
            log.warning("the registry's invalidations are interrupted: %s", error.message)
        await asyncio.sleep(RECONNECT_S)


def _pass_on(told: Invalidation, forgets: Sequence[Forget]) -> None:
    for forget in forgets:
        forget(told)
