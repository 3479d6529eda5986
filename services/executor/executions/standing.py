"""Whether a run may go on, and whom its next call may go to: what is switched off stops it."""

from typing import Final

from services.chassis.errors import FailedPrecondition, Unavailable
from services.executor.store.projected import Needs, ProjectedObject

ENDS_RUNS: Final = frozenset({"TENANT_DISABLED", "CONNECTOR_INACTIVE", "CONNECTOR_GONE"})
"""Reasons of which no step can be passed over, whatever it says of errors."""


class Stopped(FailedPrecondition):
    """What a run needs is inactive or gone, so that it does not go on."""


def running(needs: Needs, owner: str = "connector") -> ProjectedObject:
    """The connector, or whatever the `owner` is, of which something runs.

    Raises Stopped where nothing of it may.
    """
    if not needs.enabled:
        raise Stopped("the tenant is disabled", reason="TENANT_DISABLED")
    if needs.owner is None:
        raise Stopped(f"the {owner} is gone", reason=f"{owner.upper()}_GONE")
    if not needs.owner.spec["is_active"]:
        raise Stopped(f"the {owner} is inactive", reason=f"{owner.upper()}_INACTIVE")
    return needs.owner


def check_switch(needs: Needs) -> None:
    """Raise Unavailable, on which a run waits, while the provider to call is switched off."""
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
