"""Asks a provider for newer tokens under a lease, by what the app comes by them."""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from services.chassis.errors import TenonError, Unavailable
from services.providers import oauth2
from services.providers.oauth2 import App, NotOAuth, Tokens, TokensRefused
from services.registry.credentials.sealing import Sealing
from services.registry.oauth.exchange import Exchange
from services.registry.oauth.leases import Lease, loop_time

log = logging.getLogger(__name__)

CODE: Final = "authorization_code"


class TooLate(Unavailable):
    """We were held up until the lease was no longer long enough for the call; nothing was sent."""

    reason = "REFRESH_TOO_LATE"


class Redeeming:
    """The call."""

    def __init__(self, sealing: Sealing, exchange: Exchange) -> None:
        self._sealing = sealing
        self._exchange = exchange

    async def redeem(self, lease: Lease) -> Tokens:
        """What the provider gives. Raises its errors, and TooLate."""
        row = lease.credential
        if lease.app_row is None:
            raise NotOAuth(f"credential {row.name} names no app")
        app = self._exchange.app(lease.app_row)
        form = GRANTS[grant_of(lease)](self, lease, app)
        if loop_time() > lease.begun + self._exchange.timeout_s:
            raise TooLate("it took too long to come to the call")
        return await self._exchange.tokens(app, form)

    async def take_back(self, lease: Lease, tokens: Tokens) -> None:
        """Who revoked the credential meanwhile knew nothing of these: they must not outlive it."""
        part = "access_token" if tokens.refresh_token is None else "refresh_token"
        try:
            app = self._exchange.former_app(lease.app_row)
            await self._exchange.revoke(app, tokens.refresh_token or tokens.access_token, part)
        except TenonError as error:
            name = lease.credential.name
            log.warning("new tokens of %s are not taken back: %s", name, error.message)

    def _with_refresh_token(self, lease: Lease, _app: App) -> Mapping[str, str]:
        values = self._sealing.opened(lease.credential) if lease.credential.sealed else {}
        if "refresh_token" not in values:
            raise TokensRefused("invalid_grant")
        return oauth2.refresh_form(values["refresh_token"])

    def _by_itself(self, lease: Lease, app: App) -> Mapping[str, str]:
        return oauth2.client_form(app, tuple(lease.credential.scopes))

    def _by_assertion(self, lease: Lease, app: App) -> Mapping[str, str]:
        assertion = self._exchange.assertion(lease.app_row, app, lease.now)
        return oauth2.assertion_form(app, assertion, tuple(lease.credential.scopes))


def grant_of(lease: Lease) -> str:
    """How the app comes by its tokens."""
    return lease.credential.grant or CODE


GRANTS: Final[Mapping[str, Callable[[Redeeming, Lease, App], Mapping[str, str]]]] = {
    CODE: Redeeming._with_refresh_token,  # noqa: SLF001 - this module's own
    "client_credentials": Redeeming._by_itself,  # noqa: SLF001 - likewise
    "jwt_bearer": Redeeming._by_assertion,  # noqa: SLF001 - likewise
}
"""What is sent for new tokens, by how the app comes by them."""
