"""Authorisations from their beginning to a connection (RFC 6749 with PKCE, RFC 7636).

A flow is a row of its own, so that it exists before its token does: single-use, ten minutes long,
bound to its principal and integration by a state of which only a hash is kept. In the end its
credential and its connection go through the one write path, in the name of the source `oauth`.
"""

import hashlib
import json
import re
import secrets
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from yarl import URL

from services.chassis import envelope
from services.chassis.database import Bound, Database, Transaction
from services.chassis.envelope import Place
from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    TenonError,
    invalid,
)
from services.chassis.ids import SLUG, SLUG_RULE, uuid7
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.providers import oauth2
from services.providers.oauth2 import NotOAuth, Tokens
from services.registry.access.control import AccessControl
from services.registry.audit.log import Event, Log
from services.registry.credentials.places import key_place
from services.registry.credentials.sealing import Sealing
from services.registry.oauth.exchange import Exchange
from services.registry.oauth.wishes import (
    Addresses,
    Begun,
    Completed,
    Returned,
    Starter,
    Wishes,
    starter_of,
    wishes_of,
)
from services.registry.store import connections as connection_store
from services.registry.store import oauth as store
from services.registry.store import tenants
from services.registry.store.objects import GET_INTEGRATION
from services.registry.wanted.apply import Applied, Caller, Config
from services.registry.wanted.drafts import Submission
from services.registry.wanted.objects import SECRET_VALUES, Declared

SOURCE: Final = "oauth"
PERMISSION: Final = "connections.manage"
LASTING: Final = timedelta(minutes=10)
TABLE: Final = "registry.oauth_flows"
COLUMN: Final = "sealed"
KIND: Final = "OAuthFlow"
CODE: Final = "authorization_code"
NOT_UNDER_WAY: Final = "there is no such authorisation under way"
_STATE: Final = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")
_ACCOUNT: Final = re.compile(r"[^a-z0-9]+")


class FlowRefused(NotFound):
    """No such flow: never begun, used already, too late, another's, or in another browser."""

    reason = "OAUTH_STATE_REFUSED"


class Denied(FailedPrecondition):
    """The account's owner, or the provider, said no; `error` is the provider's code."""

    reason = "OAUTH_DENIED"


class Flows:
    """The use cases."""

    def __init__(
        self,
        database: Database,
        sealing: Sealing,
        exchange: Exchange,
        config: Config,
        access: AccessControl,
        addresses: Addresses,
        log: Log,
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._exchange = exchange
        self._config = config
        self._access = access
        self._addresses = addresses
        self._log = log

    def check(self, wishes: Wishes) -> None:
        """Raise InvalidArgument for wishes that can never be."""
        if wishes.connection and not SLUG.fullmatch(wishes.connection):
            raise invalid("connection", f"a name is {SLUG_RULE}")
        for name in ("return_url", "redirect_url"):
            if url := getattr(wishes, name):
                self._addresses.check(name, url)

    async def begin(
        self, starter: Starter, wishes: Wishes, hint: str = "", *, in_browser: bool = False
    ) -> Begun:
        """Begin a flow; with `in_browser` only the browser that it is begun in may end it."""
        self.check(wishes)
        tenant_id, flow_id = starter.tenant_id, uuid7()
        redirect_uri = wishes.redirect_url or self._addresses.callback()
        verifier, secret = (Secret(secrets.token_urlsafe(32)) for _ in range(2))
        browser = secrets.token_urlsafe(32) if in_browser else ""
        async with self._database.tenant(tenant_id) as transaction:
            _check_active(await tenants.read(transaction, tenant_id))
            integration, app_row = await self._integration(transaction, tenant_id, wishes)
            app = self._exchange.app(app_row)
            if CODE not in app.spec.grants:
                raise NotOAuth(f"{integration.provider} connects no accounts by a code")
            scopes = wishes.scopes or app.spec.scopes
            row = await self._row(transaction, starter, flow_id, verifier)
            kept = {
                **asdict(wishes),
                "scopes": list(scopes),
                "redirect_url": redirect_uri,
                "app_id": str(app_row.credential_id),
            }
            row |= {
                "integration_id": integration.integration_id,
                "wishes": kept,
                "state_hash": _hash(secret.reveal_text()),
                "browser_hash": _hash(browser) if browser else None,
            }
            added = await transaction.one(store.ADD_FLOW, **row)
            begun = Event("begin", KIND, wishes.integration, flow_id, Risk.MEDIUM)
            await self._log.append(transaction, tenant_id, starter.actor, [begun])
        state = f"{tenant_id.hex}.{flow_id.hex}.{secret.reveal_text()}"
        url = oauth2.authorization_url(
            app,
            redirect_uri=redirect_uri,
            scopes=tuple(scopes),
            state=state,
            challenge=oauth2.challenge(verifier),
            hint=hint,
        )
        return Begun(url, state, added.expires_at, browser)

    async def complete(self, returned: Returned, by: Starter | None) -> Completed:
        """End a flow, once; `by` must have begun it. Without them it is the ingress that tells.

        Raises FlowRefused, Denied, or what the provider or the write path has against it.
        """
        tenant_id, flow = await self._used(returned, by)
        wishes = wishes_of(flow)
        try:
            return await self._redeemed(tenant_id, flow, wishes, returned)
        except TenonError as error:
            # The flow is used up, so that its browser has nowhere else to go.
            error.metadata["return_url"] = wishes.return_url
            raise

    async def _redeemed(
        self, tenant_id: UUID, flow: Any, wishes: Wishes, returned: Returned
    ) -> Completed:
        if returned.error:
            raise Denied("the account was not connected: access was denied")
        async with self._database.tenant(tenant_id) as transaction:
            tenant = await tenants.read(transaction, tenant_id)
            _check_active(tenant)
            integration, app_row = await self._integration(transaction, tenant_id, wishes)
            verifier = await self._verifier(transaction, flow)
        begun = (flow.integration_id, wishes.app_id)
        if begun != (integration.integration_id, str(app_row.credential_id)):
            raise FlowRefused(NOT_UNDER_WAY)
        # Before the provider gives tokens that nobody may keep.
        caller = await self.caller(flow)
        app = self._exchange.app(app_row)
        _check_issuer(app, returned.issuer)
        form = oauth2.code_form(returned.code, wishes.redirect_url, verifier)
        tokens = await self._exchange.tokens(app, form)
        return await self._made(tenant, integration, app_row, flow, tokens, caller)

    async def _used(self, returned: Returned, by: Starter | None) -> tuple[UUID, Any]:
        """The flow's row, used up by this; it is somebody's only if all of it fits."""
        found = _STATE.fullmatch(returned.state)
        if found is None or (by is not None and UUID(found[1]) != by.tenant_id):
            raise FlowRefused(NOT_UNDER_WAY)
        tenant_id = UUID(found[1])
        asked = {
            "the_tenant_id": tenant_id,
            "the_flow_id": UUID(found[2]),
            "hash": _hash(found[3]),
            "principal_id": by.actor.principal_id if by is not None else None,
            "shown": _hash(returned.browser) if returned.browser else None,
        }
        async with self._database.tenant(tenant_id) as transaction:
            flow = await transaction.one(store.USE_FLOW, **asked)
            if flow is not None and flow.link_id is not None:
                link = {"the_tenant_id": tenant_id, "the_link_id": flow.link_id}
                if await transaction.one(store.USE_LINK, **link) is None:
                    flow = None
        if flow is None:
            raise FlowRefused(NOT_UNDER_WAY)
        return tenant_id, flow

    async def _made(
        self,
        tenant: Any,
        integration: Any,
        app_row: Any,
        flow: Any,
        tokens: Tokens,
        caller: Caller,
    ) -> Completed:
        """The credential and the connection, by the one write path."""
        wishes, now = wishes_of(flow), await self._now(flow.tenant_id)
        known = await self._known(flow.tenant_id, integration, app_row, wishes, tokens)
        name = known.name if known is not None else wishes.connection or _name(integration, tokens)
        credential = known.ref_credential if known is not None else _credential_name(name)
        declared = _documents(name, credential, integration, app_row, wishes, tokens, now)
        submission = Submission(tenant.slug, SOURCE, declared, method="CompleteOAuth")
        body = await self._config.apply(submission, flow.tenant_id, caller, _answer)
        pending = json.loads(body)["pending"]
        return Completed(tenant.slug, name, pending, wishes.return_url)

    async def _known(
        self, tenant_id: UUID, integration: Any, app_row: Any, wishes: Wishes, tokens: Tokens
    ) -> Any:
        """The connection that is connected anew: by its name, or because the account is its."""
        asked = {
            "tenant_id": tenant_id,
            "name": wishes.connection,
            "provider": integration.provider,
            "app_id": app_row.credential_id,
            "account": tokens.account,
        }
        rows = await self._database.read(tenant_id, connection_store.SAME, **asked)
        if not rows:
            return None
        _check_same(rows[0], integration, wishes, tokens)
        return rows[0]

    async def caller(self, row: Any) -> Caller:
        """Who began a flow or made a link, by their key and grants of this moment.

        Raises PermissionDenied where these allow it no more.
        """
        starter = starter_of(row)
        actor = starter.actor
        principal = await self._access.current(actor.principal_id, actor.session)
        if principal is None:
            raise PermissionDenied("who began this is no longer known", reason="STARTER_UNKNOWN")
        principal = replace(principal, lent_by=starter.lent_by)
        if not actor.reason:
            principal = principal.without_reason()
        if not principal.may(PERMISSION, str(starter.tenant_id)):
            raise PermissionDenied("who began this may connect no accounts any more")
        return Caller(actor, principal, PERMISSION)

    async def _integration(
        self, transaction: Transaction, tenant_id: UUID, wishes: Wishes
    ) -> tuple[Any, Any]:
        """The integration and its app's row."""
        place = {"tenant_id": tenant_id}
        integration = await transaction.one(GET_INTEGRATION, **place, name=wishes.integration)
        if integration is None:
            raise NotFound(f"there is no integration {wishes.integration}")
        if not integration.ref_app:
            raise FailedPrecondition(
                f"integration {wishes.integration} names no app; `spec.app` says by which accounts "
                "are connected",
                reason="NO_APP",
            )
        return integration, await transaction.one(store.NAMED, **place, name=integration.ref_app)

    async def _row(
        self, transaction: Transaction, starter: Starter, flow_id: UUID, verifier: Secret
    ) -> dict[str, Any]:
        tenant_id = starter.tenant_id
        keyring = await self._sealing.keyring(transaction, tenant_id)
        key = envelope.new_key()
        return {
            "tenant_id": tenant_id,
            "flow_id": flow_id,
            "principal_id": starter.actor.principal_id,
            "actor": starter.written(),
            "link_id": starter.link_id,
            "data_key_id": keyring.key.data_key_id,
            "wrapped_key": envelope.wrap(keyring.key.key, key_place(tenant_id, flow_id), key),
            "sealed": envelope.seal(key, _place(tenant_id, flow_id), verifier.reveal()),
            "lasting": LASTING,
        }

    async def _verifier(self, transaction: Transaction, flow: Any) -> Secret:
        place = {"tenant_id": flow.tenant_id, "data_key_id": flow.data_key_id}
        tenant_key = self._sealing.tenant_key(await transaction.one(store.FLOW_KEY, **place))
        where = key_place(flow.tenant_id, flow.flow_id)
        key = envelope.unwrap(tenant_key.key, where, bytes(flow.wrapped_key))
        return envelope.open_sealed(key, _place(flow.tenant_id, flow.flow_id), bytes(flow.sealed))

    async def _now(self, tenant_id: UUID) -> datetime:
        rows = await self._database.read_all(tenant_id, [Bound(store.CLOCK)])
        moment: datetime = rows[0][0].now
        return moment


def returning(url: str, **words: str) -> str:
    """An allowed address with words added to its query; empty where there is none."""
    return str(URL(url, encoded=True).update_query(words)) if url else ""


def _answer(applied: Applied) -> bytes:
    pending = applied.pending
    return json.dumps({"pending": str(pending.pending_id) if pending is not None else ""}).encode()


def _documents(
    name: str,
    credential: str,
    integration: Any,
    app_row: Any,
    wishes: Wishes,
    tokens: Tokens,
    now: datetime,
) -> tuple[Declared, ...]:
    values = tokens.values()
    scopes = list(tokens.scopes if tokens.scopes is not None else wishes.scopes)
    common = {"spec.venue": wishes.venue} if wishes.venue else {}
    return (
        Declared(
            "Credential",
            credential,
            {
                "spec.type": "oauth2",
                "spec.app": app_row.name,
                "spec.provider": integration.provider,
                "spec.grant": CODE,
                "spec.environment": integration.environment,
                "spec.scopes": list(wishes.scopes),
                SECRET_VALUES: dict.fromkeys(values, ""),
                **common,
            },
            secrets=values,
            facts={
                "expires_at": _end(now, tokens.expires_in_s),
                "refresh_expires_at": _end(now, tokens.refresh_expires_in_s),
                "scopes": scopes,
            },
        ),
        Declared(
            "Connection",
            name,
            {
                "spec.integration": integration.name,
                "spec.credential": credential,
                "spec.scopes": scopes,
                "spec.provider_metadata": dict(tokens.metadata),
                "spec.is_active": True,
                **({"spec.external_account_id": tokens.account} if tokens.account else {}),
                **({"spec.user": wishes.user} if wishes.user else {}),
                **common,
            },
        ),
    )


def _check_active(tenant: Any) -> None:
    """Links and browsers have no gate that would look at the tenant before."""
    if tenant is None or not tenant.enabled or tenant.state != "active":
        raise FlowRefused(NOT_UNDER_WAY)


def _check_same(known: Any, integration: Any, wishes: Wishes, tokens: Tokens) -> None:
    """A connection may be connected anew, but becomes nobody else's, and no other account."""
    moved = (
        known.ref_integration != integration.name
        or (wishes.venue and known.ref_venue != wishes.venue)
        or (wishes.user and known.user != wishes.user)
    )
    other = known.external_account_id and known.external_account_id != tokens.account
    if moved or other:
        raise AlreadyExists(
            f"connections/{known.name} is there already, for another integration, venue, user or "
            "account",
            reason="ACCOUNT_CONNECTED",
        )


def _credential_name(connection: str) -> str:
    """A name that nobody else has: what is there must not become the tokens of an account."""
    return f"{connection[:48].rstrip('-')}-token-{secrets.token_hex(4)}"


def _end(now: datetime, seconds: float | None) -> str:
    return "" if seconds is None else (now + timedelta(seconds=seconds)).isoformat()


def _name(integration: Any, tokens: Tokens) -> str:
    """A name for a connection that nobody has named: of its integration and its account."""
    words = _ACCOUNT.sub("-", tokens.account.lower()).strip("-")[:20].strip("-")
    tail = words or secrets.token_hex(4)
    return f"{integration.name[:30].rstrip('-')}-{tail}-{secrets.token_hex(4)}"


def _check_issuer(app: oauth2.App, issuer: str) -> None:
    """Refuse the answer of another provider than was asked (RFC 9207, section 2.4)."""
    if not app.spec.issuer:
        return
    try:
        expected = app.url(app.spec.issuer)
    except NotOAuth:
        return
    if issuer and issuer != expected:
        raise FlowRefused("the answer is another provider's")


def _hash(text: str) -> bytes:
    """Of a text that has 256 random bits, so that a plain hash tells nothing of it."""
    return hashlib.sha256(text.encode()).digest()


def _place(tenant_id: UUID, flow_id: UUID) -> Place:
    return Place(tenant_id, TABLE, flow_id, COLUMN, flow_id, flow_id)
