"""What errors of the database come to: ours, without the values that theirs may quote."""

from collections.abc import Callable, Mapping

import psycopg
import psycopg_pool
from sqlalchemy.exc import DBAPIError

from services.chassis import errors

# By a constraint's name: our error, from the hint that a function of ours may give with it.
Constraints = Mapping[str, Callable[[str], errors.TenonError]]


class Deadlocked(errors.Aborted):
    """Somebody else changed the same rows, and one had to give way."""


def translate(error: BaseException, constraints: Constraints) -> errors.TenonError:
    """Our error for a driver's one; a broken constraint speaks by its name."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.errors.IntegrityError):
        named = constraints.get(cause.diag.constraint_name or "")
        if named is not None:
            return named(cause.diag.message_hint or "")
    for kinds, ours, message in _FAMILIES:
        if isinstance(cause, kinds):
            return ours(message)
    if isinstance(cause, psycopg.errors.CheckViolation) and not cause.diag.constraint_name:
        # Of all checks the search for a partition alone has no name.
        table = f"{cause.diag.schema_name}.{cause.diag.table_name}"
        return errors.Internal(f"{table} has no partition for the month of an id")
    # The driver's text may quote values: only its class and place leave this function.
    where = getattr(getattr(cause, "diag", None), "constraint_name", None) or ""
    return errors.Internal(f"database error {type(cause).__name__} {where}".rstrip())


_FAMILIES: tuple[tuple[tuple[type[Exception], ...], type[errors.TenonError], str], ...] = (
    (
        (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected),
        Deadlocked,
        "somebody changed the same rows; try again",
    ),
    (
        (psycopg.errors.LockNotAvailable,),
        errors.Aborted,
        "somebody holds the same rows; try again",
    ),
    (
        (
            psycopg.errors.QueryCanceled,
            psycopg.errors.TransactionTimeout,
            psycopg.errors.IdleInTransactionSessionTimeout,
        ),
        errors.DeadlineExceeded,
        "the database took too long",
    ),
    ((psycopg_pool.PoolTimeout,), errors.Unavailable, "no database connection was free"),
    ((psycopg.OperationalError,), errors.Unavailable, "the database is not reachable"),
    ((psycopg.DataError,), errors.InvalidArgument, "a value is not one the database can keep"),
)
