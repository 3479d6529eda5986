"""Takes credentials back, at the provider too where it can be asked (RFC 7009)."""

import logging
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Database
from services.chassis.errors import TenonError
from services.chassis.secret import Secret
from services.providers.oauth2 import App
from services.registry.access.changes import By
from services.registry.credentials.changing import Answer, Changing, Named
from services.registry.credentials.sealing import Sealing
from services.registry.oauth.exchange import Exchange
from services.registry.store import oauth as store

log = logging.getLogger(__name__)

# The first that there is ends the others, too: the grant goes with its refresh token.
PARTS: Final = ("refresh_token", "access_token")


class Revoking:
    """The use case."""

    def __init__(
        self, database: Database, sealing: Sealing, exchange: Exchange, changing: Changing
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._exchange = exchange
        self._changing = changing

    async def revoke(self, by: By, named: Named, why: str, answer: Answer) -> bytes:
        """Destroy it here, and then ask the provider: what is ours must not wait for others."""
        held = await self._held(named)
        done = await self._changing.revoke(by, named, why, answer)
        if held is not None:
            await self._told(named, *held)
        return done

    async def _held(self, named: Named) -> tuple[App, Secret, str] | None:
        """The app, and the token by which the provider knows the grant, while it opens still."""
        asked = {"tenant_id": named.tenant_id, "name": named.name}
        rows = await self._database.read(named.tenant_id, store.NAMED, **asked)
        if not rows or rows[0].type != "oauth2" or not rows[0].sealed or not rows[0].app_id:
            return None
        try:
            app = self._exchange.former_app(await self._app_row(named.tenant_id, rows[0].app_id))
            values = self._sealing.opened(rows[0])
        except TenonError as error:
            log.warning("credential %s is not taken back at its provider: %s", named.name, error)
            return None
        part = next((part for part in PARTS if part in values), None)
        return (app, values[part], part) if part else None

    async def _app_row(self, tenant_id: UUID, app_id: UUID) -> Any:
        asked = {"tenant_id": tenant_id, "credential_id": app_id}
        rows = await self._database.read(tenant_id, store.CURRENT, **asked)
        return rows[0] if rows else None

    async def _told(self, named: Named, app: App, token: Secret, hint: str) -> None:
        try:
            await self._exchange.revoke(app, token, hint)
        except TenonError as error:
            log.warning(
                "credential %s is not taken back at its provider: %s", named.name, error.message
            )
