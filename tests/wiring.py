"""The registry wired as its main wires it, with keys of its own."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.chassis.database import Database
from services.chassis.egress import Egress, parse_allow
from services.chassis.secret import Secret
from services.registry import main, opening
from services.registry.access.control import AccessControl
from services.registry.feed import Feed
from services.registry.settings import Settings
from services.registry.store.tenants import Tenants


def settings(**said: Any) -> Settings:
    """Settings with fresh keys, unless they are said; nothing is in its place by default."""
    keys = {
        name: Secret(secrets.token_hex(32))
        for name in ("key_encryption_key", "fingerprint_key", "pepper")
        if name not in said
    }
    return Settings(
        **{"database_url": Secret(""), "system_database_url": Secret(""), **keys, **said}
    )


@asynccontextmanager
async def wired(
    database: Database, access: AccessControl, tenants: Tenants, feed: Feed, settings: Settings
) -> AsyncIterator[tuple[main.Base, main.Wired]]:
    """What the registry stands on, and its contracts and loops; the keys are kept up to date."""
    async with (
        Egress(parse_allow(settings.egress_allow), main.EGRESS_LIMITS) as egress,
        opening.open_vault(settings, database) as (vault, holding),
        holding.following(),
    ):
        base = main.Base(database, vault, holding, access, tenants, feed, egress)
        yield base, main.wire(base, settings)
