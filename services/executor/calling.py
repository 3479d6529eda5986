"""Calls providers in a tenant's name, with a credential opened for it; each use of one is noted."""

from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from services.chassis.egress import ResponseLost, ResponseTooLarge
from services.chassis.errors import FailedPrecondition, NotFound, TenonError
from services.chassis.secret import Secret
from services.executor.executions.standing import Stopped
from services.executor.registry.credentials import Resolved, Secrets
from services.executor.registry.uses import Uses, outcome_of, rate_limit_of
from services.executor.store.projected import ProjectedObject
from services.providers.auth import Credential
from services.providers.calls import Call, Integration
from services.providers.client import ProviderClient, ProviderResponse

UNAVAILABLE: Final = "CREDENTIAL_UNAVAILABLE"
FOR_OWNERS: Final = frozenset(
    {"CREDENTIAL_RECONNECT", "CREDENTIAL_REVOKED", "CREDENTIAL_EXPIRED", "CREDENTIAL_EMPTY"}
)
"""The registry's reasons on which a tenant's people must do something: they get its sentence."""
RENEWABLE: Final = "oauth2"
"""The type whose values can be had anew when they have ended."""
UNAUTHORIZED: Final = 401
SENT: Final = (ResponseLost, ResponseTooLarge)
"""Errors of calls that went out."""


@dataclass(frozen=True, slots=True)
class Order:
    """A call to make for a tenant; `wanted` and `credential` are None where it needs none.

    `hidden` gathers what of credentials must not be shown.
    """

    tenant_id: UUID
    integration: Integration
    call: Call = field(repr=False)
    wanted: ProjectedObject | None
    credential: Resolved | None
    hidden: list[Secret] = field(repr=False)

    @property
    def signed(self) -> Integration:
        """The integration as the call is to be made: with the credential, and where it may go."""
        if self.credential is None:
            return self.integration
        known = self.credential
        carried = Credential(known.type, known.values, known.only)
        return replace(self.integration, credential=carried)


class Calling:
    """Opens credentials, and makes calls with them."""

    def __init__(self, secrets: Secrets, client: ProviderClient, uses: Uses) -> None:
        self._secrets = secrets
        self._client = client
        self._uses = uses

    async def credential(
        self, tenant_id: UUID, wanted: ProjectedObject | None, hidden: list[Secret]
    ) -> Resolved | None:
        """The values of the credential that an integration names, if any. Raises Stopped."""
        if wanted is None:
            return None
        try:
            found = await self._secrets.resolve(tenant_id, wanted.name, wanted.version)
        except (NotFound, FailedPrecondition) as error:
            raise _unusable(wanted, error) from None
        hidden.extend(found.values.values())
        return found

    async def send(self, order: Order, timeout_s: float) -> ProviderResponse:
        """Make a call; once more with newer tokens where those it was made with have ended.

        Whoever answers 401 has done nothing, so that this does no harm. Raises what
        `ProviderClient.send` does, and Stopped where an account must be connected again.
        """
        response = await self._sent(order, timeout_s)
        if not _has_ended(order, response):
            return response
        renewed = await self._renewed(order)
        return response if renewed is None else await self._sent(renewed, timeout_s)

    async def _sent(self, order: Order, timeout_s: float) -> ProviderResponse:
        try:
            response = await self._client.send(order.signed, order.call, timeout_s=timeout_s)
        except SENT:
            if order.credential is not None:
                self._uses.note(order.tenant_id, order.credential, "failed")
            raise
        if order.credential is not None:
            limits = rate_limit_of(response.headers)
            self._uses.note(order.tenant_id, order.credential, outcome_of(response), limits)
        return response

    async def _renewed(self, order: Order) -> Order | None:
        """The same with newer tokens; None where there are none, so that the refusal stands."""
        wanted, used = order.wanted, order.credential
        if wanted is None or used is None:
            return None
        try:
            await self._secrets.refresh(order.tenant_id, wanted.name, used.version)
            found = await self.credential(order.tenant_id, wanted, order.hidden)
        except Stopped:
            raise
        except TenonError as error:
            if error.code in FOR_OWNERS:
                raise _unusable(wanted, error) from None
            return None
        if found is None or found.version == used.version:
            return None
        return replace(order, credential=found)


def _has_ended(order: Order, response: ProviderResponse) -> bool:
    """Whether a call was refused for tokens that can be had anew."""
    failure, credential = response.failure, order.credential
    refused = failure is not None and failure.kind == "auth" and failure.status == UNAUTHORIZED
    return refused and credential is not None and credential.type == RENEWABLE


def _unusable(wanted: ProjectedObject, error: TenonError) -> Stopped:
    said = error.code in FOR_OWNERS
    message = error.message if said else f"credentials/{wanted.name} cannot be used"
    return Stopped(message, reason=UNAVAILABLE)
