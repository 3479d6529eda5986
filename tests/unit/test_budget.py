"""The arithmetic of database connections."""

import pytest

from services.chassis.budget import Share, check
from services.chassis.errors import FailedPrecondition

SHARES = [Share("rpc", 2, 15), Share("work", 3, 20)]


def test_what_fits_is_counted() -> None:
    assert check(SHARES, capacity=90) == 90


def test_what_does_not_fit_is_refused_with_its_sum() -> None:
    with pytest.raises(FailedPrecondition) as refused:
        check(SHARES, capacity=89)
    assert "rpc 2 × 15 + work 3 × 20 = 90, and the database has 89" in refused.value.message
    assert refused.value.code == "CONNECTION_BUDGET_EXCEEDED"
