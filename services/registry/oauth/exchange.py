"""Asks providers for tokens, as an app: its client's values are opened for the one request."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import jwt

from services.chassis.egress import Egress
from services.chassis.endpoint_limits import parse_only
from services.chassis.errors import FailedPrecondition, NotFound
from services.chassis.ids import uuid7
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.providers import oauth2
from services.providers.catalog import Catalog
from services.providers.manifest import OAuth2
from services.providers.oauth2 import App, NotOAuth, Tokens
from services.registry.credentials.resolving import Expired
from services.registry.credentials.sealing import Sealing

ASSERTION_S: Final = 300
ALGORITHMS: Final = ("ES256", "RS256", "EdDSA")
"""By the key's kind, in this order: the first that takes it signs."""


class Exchange:
    """The token endpoints' client. `timeout_s` bounds one whole exchange."""

    def __init__(
        self, egress: Egress, catalog: Catalog, sealing: Sealing, timeout_s: float
    ) -> None:
        self._egress = egress
        self._catalog = catalog
        self._sealing = sealing
        self.timeout_s = timeout_s

    def app(self, row: Any) -> App:
        """The app in a credential's row. Raises NotOAuth, Expired or FailedPrecondition."""
        if row is not None and row.has_ended:
            raise Expired(row.name)
        return self.former_app(row)

    def former_app(self, row: Any) -> App:
        """The same of one that may have expired: to take back what it was given."""
        if row is None or row.sealed is None:
            raise FailedPrecondition("the app has no values", reason="APP_EMPTY")
        values = self._sealing.opened(row)
        client_id = values.get("client_id")
        return App(
            self.spec(row.provider),
            row.config or {},
            client_id.reveal_text() if client_id else "",
            values.get("client_secret"),
            parse_only(row.allowed_endpoints, row.allowed_ranges),
        )

    def spec(self, provider: str) -> OAuth2:
        """How a provider authorises accounts. Raises NotOAuth."""
        try:
            found = self._catalog.get(provider).oauth2
        except NotFound:
            found = None
        if found is None:
            raise NotOAuth(f"provider {provider or '(none)'} has no OAuth 2.0 that we know")
        return found

    def assertion(self, row: Any, app: App, now: datetime) -> Secret:
        """A signed assertion of a `jwt_key` app (RFC 7523, section 3); `now` by the database."""
        values = {part: value.reveal_text() for part, value in self._sealing.opened(row).items()}
        claims = {
            "iss": values["issuer"],
            "sub": values.get("subject", values["issuer"]),
            "aud": app.url(app.spec.token_url),
            "iat": now,
            "exp": now + timedelta(seconds=ASSERTION_S),
            "jti": str(uuid7()),
        }
        headers = {"kid": values["key_id"]} if "key_id" in values else {}
        for algorithm in ALGORITHMS:
            try:
                signed = jwt.encode(claims, values["private_key"], algorithm, headers)
            except (TypeError, ValueError, jwt.PyJWTError):
                # The key is of another kind; its text must not leave in an error.
                continue
            return remember(Secret(signed))
        raise NotOAuth("the private key of the app is none that signs ES256, RS256 or EdDSA")

    async def tokens(self, app: App, form: Mapping[str, str]) -> Tokens:
        """What the provider gives for a form. Raises the errors of `oauth2` and of egress."""
        request = oauth2.token_request(app, form)
        answer = await self._egress.send(request, timeout_s=self.timeout_s)
        return oauth2.tokens_of(app, answer)

    async def revoke(self, app: App, token: Secret, hint: str) -> None:
        """Take a token back at the provider. Raises NotOAuth where it has no endpoint for that."""
        request = oauth2.revocation_request(app, token, hint)
        answer = await self._egress.send(request, timeout_s=self.timeout_s)
        if answer.status >= 400:
            raise oauth2.AnswerUnclear(f"the provider answered with status {answer.status}")
