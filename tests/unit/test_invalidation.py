"""What an invalidation concerns, and that nothing which was found before it is kept after it."""

import asyncio
from uuid import UUID

import pytest

from services.chassis.invalidation import EVERYTHING, Invalidation, identity_of, invalidation
from services.chassis.tenancy import PLATFORM, Access, Principal, Tenant
from services.chassis.tenants import TenantFinder

ADA, ACME, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)
IDENTITY = identity_of("user", "https://issuer.example", "ada")
PRINCIPAL = Principal(
    ADA,
    "user",
    "Ada",
    {"acme": Access("acme", ACME, ()), PLATFORM: Access(PLATFORM, None, ())},
    session="key abc",
    identity=IDENTITY,
)


@pytest.mark.parametrize(
    ("what", "of", "concerned"),
    [
        ("principal", str(ADA), True),
        ("principal", str(OTHER), False),
        ("key", "abc", True),
        ("key", "ab", False),
        ("tenant", str(ACME), True),
        ("tenant", str(OTHER), False),
        ("identity", IDENTITY, True),
        ("identity", identity_of("service", "https://issuer.example", "ada"), False),
        ("everything", "", True),
        # Whoever cannot be understood may have meant anybody.
        ("tenant", "acme", True),
        ("planet", "mars", True),
    ],
)
def test_it_concerns_whom_it_names(what: str, of: str, *, concerned: bool) -> None:
    assert invalidation(what, of).concerns()(PRINCIPAL) is concerned


def test_no_two_identities_have_one_name() -> None:
    assert identity_of("user", "ab", "c") != identity_of("user", "a", "bc")


class States:
    """Tenants that change, and answer when they are let."""

    def __init__(self) -> None:
        self.tenant = Tenant("acme", ACME)
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.finder = TenantFinder(self._load, lambda: 0.0)

    async def _load(self, slug_or_id: str) -> Tenant:
        self.asked += 1
        found = self.tenant
        await self.gate.wait()
        return found


@pytest.mark.parametrize("told", [Invalidation("tenant", str(ACME)), EVERYTHING])
async def test_a_tenant_in_another_state_is_found_in_it(told: Invalidation) -> None:
    states = States()
    await states.finder.find("acme")
    states.tenant = Tenant("acme", ACME, "disabled")
    states.finder.forget(Invalidation("tenant", str(OTHER)))
    states.finder.forget(Invalidation("principal", str(ADA)))
    assert await states.finder.find("acme") == Tenant("acme", ACME)
    states.finder.forget(told)
    assert await states.finder.find("acme") == states.tenant


async def test_a_tenant_that_was_read_before_it_changed_is_not_kept() -> None:
    states = States()
    states.gate.clear()
    asking = asyncio.ensure_future(states.finder.find("acme"))
    async with asyncio.timeout(5):
        while not states.asked:
            await asyncio.sleep(0)
    states.tenant = Tenant("acme", ACME, "disabled")
    states.finder.forget(Invalidation("tenant", str(ACME)))
    states.gate.set()
    assert (await asking) == Tenant("acme", ACME)
    assert await states.finder.find("acme") == states.tenant
