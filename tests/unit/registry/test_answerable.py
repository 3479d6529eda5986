"""Who answers for a key: whoever signed in, however many lent keys lie between."""

from uuid import UUID

import pytest

from services.chassis.errors import PermissionDenied
from services.chassis.tenancy import Principal
from services.registry.access.changes import By
from services.registry.audit.log import Actor

ALICE, BOT, OTHER = (UUID(int=number) for number in (1, 2, 3))


def by(caller: UUID, lent_by: UUID | None = None) -> By:
    actor = Actor(caller, "user", "", "", "", "", "")
    return By(actor, Principal(caller, "user", "", lent_by=lent_by), None, None)


def test_who_signed_in_answers_for_what_they_make() -> None:
    assert by(ALICE).answerable(ALICE) == ALICE
    assert by(ALICE).answerable(BOT) == ALICE


def test_who_lent_a_key_answers_for_all_that_is_made_by_it() -> None:
    assert by(BOT, ALICE).answerable(BOT) == ALICE
    assert by(BOT, ALICE).answerable(OTHER) == ALICE


def test_a_lent_key_makes_none_of_its_lender_s_own() -> None:
    with pytest.raises(PermissionDenied) as refused:
        by(BOT, ALICE).answerable(ALICE)
    assert refused.value.code == "LENT_KEY"
