"""Whether a run may go on, and whom its next step may call: what is switched off stops it."""

from typing import Final

from services.chassis.errors import FailedPrecondition, Unavailable
from services.executor.store.projected import Needs, ProjectedObject

ENDS_RUNS: Final = frozenset({"TENANT_DISABLED", "CONNECTOR_INACTIVE", "CONNECTOR_GONE"})
"""Reasons of which no step can be passed over, whatever it says of errors."""


class Stopped(FailedPrecondition):
    """What a run needs is inactive or gone, so that it does not go on."""


def check_running(needs: Needs) -> None:
    """Raise Stopped where nothing of the connector may run."""
    if not needs.enabled:
        raise Stopped("the tenant is disabled", reason="TENANT_DISABLED")
    if needs.connector is None:
        raise Stopped("the connector is gone", reason="CONNECTOR_GONE")
    if not needs.connector.spec["is_active"]:
        raise Stopped("the connector is inactive", reason="CONNECTOR_INACTIVE")


def check_switch(needs: Needs) -> None:
    """Raise Unavailable, on which a run waits, while the step's provider is switched off."""
    if needs.switched_off:
        raise Unavailable("the provider is switched off")


def callee(needs: Needs, name: str) -> ProjectedObject:
    """The integration to call. Raises Stopped where it may not be called."""
    if needs.integration is None:
        raise Stopped(f"integrations/{name} is gone", reason="INTEGRATION_UNKNOWN")
    if not needs.integration.spec["is_active"]:
        raise Stopped(f"integrations/{name} is inactive", reason="INTEGRATION_INACTIVE")
    if needs.integration.spec.get("credential") and needs.credential is None:
        raise Stopped(f"the credential of integrations/{name} is gone", reason="CREDENTIAL_UNKNOWN")
    return needs.integration
