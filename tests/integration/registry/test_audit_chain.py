"""The audit log cannot be changed unseen: each way in which a superuser may try is found and named."""

import asyncio
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.chassis.database import Database
from services.chassis.errors import Internal, TenonError
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.chassis.secret import Secret
from services.providers.catalog import Catalog
from services.registry.audit import verification
from services.registry.audit.anchors import Anchors
from services.registry.audit.chain import Chain
from services.registry.audit.log import Actor, Event, Log
from services.registry.audit.masks import Masks
from services.registry.audit.reading import Audit
from services.registry.audit.verification import Verdict, Verification
from services.registry.audit.walk import Fault
from services.registry.keys.vault import Vault
from services.registry.messages.config import SCHEMAS

TENANT = UUID("01890000-0000-7000-8000-0000000000aa")
OTHER = UUID("01890000-0000-7000-8000-0000000000bb")
ACTOR = Actor(uuid7(), "user", "Ada", "ADMIN", "192.0.2.1", "tests", "r1", "key k1", "a test", "/m")
COUNT = 12

Rows = psycopg.AsyncConnection[tuple[Any, ...]]


class Books:
    """A vault's logs, and what verifies them."""

    def __init__(self, database: Database, file: Path | None = None) -> None:
        self.vault = Vault(Secret(b"f" * 32))
        self.database = database
        self.log = Log(self.vault.chain, Masks(SCHEMAS, Catalog.load()))
        self.anchors = Anchors(database, self.vault.chain, file)
        self._verification = Verification(Audit(database), self.anchors, self.vault.chain)

    async def append(self, tenant_id: UUID | None, count: int = 1, **words: Any) -> None:
        events = [event(f"thing-{number}", **words) for number in range(count)]
        if tenant_id is None:
            async with self.database.system() as transaction:
                await self.log.append_platform(transaction, ACTOR, events)
            return
        async with self.database.tenant(tenant_id) as transaction:
            await self.log.append(transaction, tenant_id, ACTOR, events)

    async def verify(self, tenant_id: UUID | None = TENANT) -> tuple[Verdict, list[Fault]]:
        faults: list[Fault] = []
        verdict = None
        async for progress in self._verification.verify(tenant_id):
            faults += progress.faults
            verdict = progress.verdict
        assert verdict is not None
        assert verdict.faults == len(faults)
        return verdict, faults

    async def found(self, tenant_id: UUID | None = TENANT) -> list[tuple[str, int, int]]:
        return [(one.kind, one.seq, one.last_seq) for one in (await self.verify(tenant_id))[1]]


def event(name: str, **words: Any) -> Event:
    given = {"action": "update", "kind": "Integration", "risk": Risk.LOW, **words}
    return Event(object=name, object_id=uuid7(), **given)


@pytest.fixture
def books(registry_database: Database, tmp_path: Path) -> Books:
    return Books(registry_database, tmp_path / "anchors")


@pytest.fixture
async def written(books: Books) -> Books:
    """Twelve events of a tenant in four appends, some of another, and some of the platform."""
    for _ in range(4):
        await books.append(TENANT, COUNT // 4)
    await books.append(OTHER, 3)
    await books.append(None, 3)
    return books


@pytest.fixture
async def admin(superuser: Secret) -> Any:
    async with await psycopg.AsyncConnection.connect(
        superuser.reveal_text(), autocommit=True
    ) as connection:
        yield connection


async def test_what_nobody_touched_is_intact(written: Books) -> None:
    for tenant_id, count in ((TENANT, COUNT), (OTHER, 3), (None, 3), (uuid7(), 0)):
        assert await written.verify(tenant_id) == (Verdict(0, count, 0), [])
    await written.anchors.keep()
    await written.append(TENANT)
    assert await written.verify() == (Verdict(0, COUNT + 1, 0), [])


COLUMNS = [
    ("created_at", "created_at + interval '1 microsecond'"),
    ("actor_id", "gen_random_uuid()"),
    ("fields", """'[{"path": "x"}]'"""),
    ("risk", "2"),
    ("outcome", "'refused'"),
    ("severity", "'error'"),
    ("object_id", "gen_random_uuid()"),
    ("told_id", "gen_random_uuid()"),
    *((name, f"{name} + 1") for name in ("repeats", "revision", "line")),
    *((name, f"set_byte({name}, 5, get_byte({name}, 5) # 1)") for name in ("previous", "mac")),
    *(
        (name, f"{name} || 'x'")
        for name in (
            *("actor_kind", "actor_name", "actor_role", "session", "address", "user_agent"),
            *("reason", "method", "action", "kind", "object", "error", "request_id", "source"),
            *("commit", "file"),
        )
    ),
]


@pytest.mark.parametrize(("column", "value"), COLUMNS, ids=[name for name, _ in COLUMNS])
async def test_a_change_of_any_column_names_the_event(
    written: Books, admin: Rows, column: str, value: str
) -> None:
    for table, mine, tenant_id in (
        ("audit_events", f"tenant_id = '{TENANT}' AND seq = 2", TENANT),
        ("platform_audit_events", "seq = 2", None),
    ):
        await admin.execute(f"UPDATE registry.{table} SET {column} = {value} WHERE {mine}".encode())
        _, (fault,) = await written.verify(tenant_id)
        assert (fault.kind, fault.seq, fault.event_id is not None) == ("changed", 2, True)


async def test_every_column_is_signed(admin: Rows) -> None:
    found = await admin.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'registry.audit_events'::regclass"
        " AND attnum > 0 AND NOT attisdropped"
    )
    # These three say themselves where they belong, and are asked below.
    tried = {name for name, _ in COLUMNS} | {"id", "seq", "tenant_id"}
    assert {name for (name,) in await found.fetchall()} == tried


SET_ID = "UPDATE registry.audit_events SET id = {id} WHERE tenant_id = '{t}' AND seq = 5"
CUT = (
    "DELETE FROM registry.audit_events WHERE tenant_id = '{t}' AND seq > 9",
    "ALTER TABLE registry.audit_heads DISABLE TRIGGER audit_forward",
    (
        "UPDATE registry.audit_heads SET seq = 9, mac = (SELECT mac FROM registry.audit_events"
        " WHERE tenant_id = '{t}' AND seq = 9) WHERE tenant_id = '{t}'"
    ),
)
COPY = (
    "INSERT INTO registry.audit_events SELECT (jsonb_populate_record(e, jsonb_build_object("
    "'id', '{id}', 'seq', {seq}))).* FROM registry.audit_events e"
    " WHERE tenant_id = '{t}' AND seq = 4"
)


@pytest.mark.parametrize(
    ("statements", "faults"),
    [
        (
            ("DELETE FROM registry.audit_events WHERE tenant_id = '{t}' AND seq = 5",),
            [("missing", 5, 5)],
        ),
        (
            ("DELETE FROM registry.audit_events WHERE tenant_id = '{t}' AND seq < 4",),
            [("missing", 1, 3)],
        ),
        (
            ("DELETE FROM registry.audit_events WHERE tenant_id = '{t}' AND seq IN (3, 4, 8)",),
            [("missing", 3, 4), ("missing", 8, 8)],
        ),
        (
            ("DELETE FROM registry.audit_events WHERE tenant_id = '{t}' AND seq > 9",),
            [("truncated", 10, 12)],
        ),
        (("DELETE FROM registry.audit_events WHERE tenant_id = '{t}'",), [("truncated", 1, 12)]),
        (CUT, [("head", 9, 9)]),
        (("DELETE FROM registry.audit_heads WHERE tenant_id = '{t}'",), [("head", 12, 12)]),
        # Another event in the place of one, and at the end.
        ((COPY.replace("{seq}", "7"),), [("forged", 7, 7)]),
        ((COPY.replace("{seq}", "13"),), [("forged", 13, 13)]),
        # The same event twice is two events.
        ((COPY.replace("{seq}", "4"),), [("forged", 4, 4)]),
        (
            (
                "UPDATE registry.audit_events SET seq = 13 - seq WHERE tenant_id = '{t}' AND seq IN (6, 7)",
            ),
            [("changed", 6, 6), ("changed", 7, 7)],
        ),
        ((SET_ID.replace("{id}", "'{id}'"),), [("changed", 5, 5)]),
        # An event that is moved to another tenant is missing here, and a stranger there.
        (
            (
                f"UPDATE registry.audit_events SET tenant_id = '{OTHER}' WHERE tenant_id = '{{t}}' AND seq = 2",
            ),
            [("missing", 2, 2)],
        ),
    ],
)
async def test_each_way_to_spoil_a_log_is_named(
    written: Books, admin: Rows, statements: tuple[str, ...], faults: list[tuple[str, int, int]]
) -> None:
    for statement in statements:
        words = statement.replace("{t}", str(TENANT)).replace("{id}", str(uuid7()))
        await admin.execute(words.encode())
    assert await written.found() == faults
    stolen = "SET tenant_id" in statements[0]
    assert await written.found(OTHER) == ([("forged", 2, 2)] if stolen else [])


async def _keep(admin: Rows, table: str) -> list[tuple[Any, ...]]:
    found = await admin.execute(f"SELECT * FROM registry.{table}".encode())
    return await found.fetchall()


async def _roll_back_to_an_old_head(books: Books, admin: Rows) -> None:
    """What a superuser does who kept the head as it was, proof and all."""
    old = await admin.execute(
        "SELECT seq, mac, proof FROM registry.audit_heads WHERE tenant_id = %s", [TENANT]
    )
    kept = await old.fetchone()
    assert kept is not None
    await books.append(TENANT, 5)
    await books.anchors.keep()
    await admin.execute("ALTER TABLE registry.audit_heads DISABLE TRIGGER audit_forward")
    await admin.execute(
        "DELETE FROM registry.audit_events WHERE tenant_id = %s AND seq > %s", [TENANT, kept[0]]
    )
    await admin.execute(
        "UPDATE registry.audit_heads SET seq = %s, mac = %s, proof = %s WHERE tenant_id = %s",
        [*kept, TENANT],
    )


async def test_an_anchor_tells_of_a_tail_that_was_rolled_back_with_its_head(
    written: Books, admin: Rows
) -> None:
    await _roll_back_to_an_old_head(written, admin)
    assert await written.found() == [("truncated", 13, 17)]
    # Who also removes the anchors of the database has not reached the file.
    await admin.execute("DELETE FROM registry.audit_anchors")
    assert await written.found() == [("truncated", 13, 17)]
    # And what is then written in their place is not what the anchor says.
    await written.append(TENANT, 6)
    assert await written.found() == [("anchor", 17, 17)]


async def test_a_spoilt_head_stays_a_fault_whatever_is_appended(books: Books, admin: Rows) -> None:
    await books.append(TENANT, COUNT)
    for statement in CUT:
        await admin.execute(statement.replace("{t}", str(TENANT)).encode())
    await admin.execute("ALTER TABLE registry.audit_heads ENABLE TRIGGER audit_forward")
    assert await books.found() == [("head", 9, 9)]
    await books.append(TENANT)
    await books.append(TENANT)
    # What tells of it stands before all that was appended since, and stands there once.
    assert await books.found() == [("head", 12, 12)]
    told = await admin.execute(
        "SELECT seq, kind, object, risk FROM registry.audit_events WHERE action = 'distrust'"
    )
    assert await told.fetchall() == [(10, "AuditLog", "head at 9", 4)]
    # And no anchor is made of it.
    assert await books.anchors.keep() == 0


async def test_anchors_are_signed(written: Books, admin: Rows) -> None:
    await written.anchors.keep()
    assert await written.found() == []
    for column, value in (
        ("mac", "'x'::bytea || substr(mac, 2)"),
        ("created_at", "created_at - interval '1 second'"),
        ("pruned", "true"),
    ):
        await admin.execute("BEGIN")
        await admin.execute(f"UPDATE registry.audit_anchors SET {column} = {value}".encode())
        await admin.execute("COMMIT")
        assert ("anchor", 12, 12) in await written.found(), column


async def test_anchors_outside_are_read_as_they_were_written(
    written: Books, tmp_path: Path
) -> None:
    assert await written.anchors.keep() == 3
    assert await written.anchors.keep() == 1  # the platform's, each time
    lines = [json.loads(line) for line in (tmp_path / "anchors").read_text().splitlines()]
    assert {(one["tenant"], one["seq"]) for one in lines} == {
        (str(TENANT), 12),
        (str(OTHER), 3),
        ("", 3),
    }
    with (tmp_path / "anchors").open("a") as torn:
        torn.write('{"tenant": "')
    assert await written.found() == []


async def test_another_key_verifies_nothing(written: Books) -> None:
    stranger = Books(written.database)
    stranger.vault = Vault(Secret(b"g" * 32))
    verification = Verification(Audit(written.database), stranger.anchors, stranger.vault.chain)
    last = [each async for each in verification.verify(TENANT)][-1]
    assert last.verdict is not None and last.verdict.faults >= COUNT


async def test_many_at_once_never_fork(books: Books) -> None:
    await asyncio.gather(*(books.append(TENANT) for _ in range(800)))
    assert await books.verify() == (Verdict(0, 800, 0), [])


FORBIDDEN = [
    "UPDATE registry.audit_events SET action = 'nothing'",
    "DELETE FROM registry.audit_events",
    "TRUNCATE registry.audit_events",
    "DELETE FROM registry.audit_heads",
    "UPDATE registry.audit_heads SET seq = seq - 1",
    "UPDATE registry.audit_heads SET mac = ''",
    f"INSERT INTO registry.audit_heads VALUES ('{TENANT}', 5, '', '')",
    "UPDATE registry.audit_anchors SET seq = 1",
    "DELETE FROM registry.audit_anchors",
    "UPDATE registry.audit_reviews SET note = ''",
    "DELETE FROM registry.audit_reviews",
    "ALTER TABLE registry.audit_events DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE registry.audit_heads DISABLE TRIGGER audit_forward",
]


@pytest.mark.parametrize("platform", [False, True])
@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_service_itself_cannot_take_anything_back(
    written: Books, registry_conninfos: tuple[Secret, Secret], statement: str, platform: bool
) -> None:
    if platform:
        statement = statement.replace("registry.audit_", "registry.platform_audit_")
        statement = statement.replace("audit_heads", "audit_head").replace(f"'{TENANT}'", "true")
    conninfo = registry_conninfos[platform].reveal_text()
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT set_config('app.current_tenant_id', %s, false)", [str(TENANT)]
        )
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.CheckViolation)):
            await connection.execute(statement.encode())
    assert await written.found(None if platform else TENANT) == []


async def test_what_the_service_s_login_makes_up_without_the_key_is_named(
    written: Books, registry_conninfos: tuple[Secret, Secret]
) -> None:
    conninfo = registry_conninfos[0].reveal_text()
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "SELECT set_config('app.current_tenant_id', %s, false)", [str(TENANT)]
        )
        words = COPY.replace("{t}", str(TENANT)).replace("{id}", str(uuid7()))
        await connection.execute(words.replace("{seq}", "13").encode())
        assert await written.found() == [("forged", 13, 13)]
        await connection.execute("UPDATE registry.audit_heads SET seq = 13, mac = 'x'")
    assert ("head", 13, 13) in await written.found()


async def test_a_month_goes_only_behind_an_anchor_and_the_walk_begins_there(
    books: Books, registry_database: Database, admin: Rows
) -> None:
    """Events of two months; the older one goes."""
    old, later = date(2020, 2, 1), date(2020, 3, 1)
    for month, count in ((old, 4), (later, 3)):
        await admin.execute("SELECT registry.make_partition('audit_events', %s)", [month])
        for _ in range(count):
            await books.append(TENANT, event_id=_in(month))
    assert await books.verify() == (Verdict(0, 7, 0), [])
    detach = "SELECT registry.detach_partition('audit_events', %s)"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not anchored"):
        await admin.execute(detach, [old])
    # An anchor on the way is no leave to forget.
    await books.anchors.keep()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not anchored"):
        await admin.execute(detach, [old])
    await books.anchors.close("audit_events", old)
    await admin.execute(detach, [old])
    await admin.execute("SELECT registry.drop_partition('audit_events', %s)", [old])
    assert await books.verify() == (Verdict(4, 7, 0), [])
    # Nobody can forget more by a word of their own.
    await admin.execute("DELETE FROM registry.audit_events WHERE seq = 5")
    assert await books.found() == [("missing", 5, 5)]


async def test_one_log_that_is_not_anchored_keeps_the_month_of_all(
    books: Books, admin: Rows
) -> None:
    old = date(2020, 2, 1)
    await admin.execute("SELECT registry.make_partition('audit_events', %s)", [old])
    for tenant_id in (TENANT, OTHER):
        await books.append(tenant_id, event_id=_in(old))
    await books.anchors.close("audit_events", old)
    await books.append(OTHER, event_id=_in(old))
    detach = "SELECT registry.detach_partition('audit_events', %s)"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not anchored"):
        await admin.execute(detach, [old])
    await books.anchors.close("audit_events", old)
    await admin.execute(detach, [old])


@pytest.mark.parametrize("later", [3, 0])
@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_month_that_goes_while_its_log_is_walked_is_no_fault(
    books: Books, admin: Rows, monkeypatch: pytest.MonkeyPatch, looks: int, later: int
) -> None:
    """It goes before the first, the second or the third page of two events."""
    monkeypatch.setattr(verification, "PAGE", 2)
    old = date(2020, 2, 1)
    await admin.execute("SELECT registry.make_partition('audit_events', %s)", [old])
    for _ in range(5):
        await books.append(TENANT, event_id=_in(old))
    for _ in range(later):
        await books.append(TENANT)
    read, seen = Audit.read, 0

    async def read_and_forget(self: Audit, tenant_id: Any, statement: Any, asked: Any) -> Any:
        nonlocal seen
        seen += "size" in asked
        if seen == looks and "size" in asked:
            await books.anchors.close("audit_events", old)
            await admin.execute("SELECT registry.detach_partition('audit_events', %s)", [old])
        return await read(self, tenant_id, statement, asked)

    monkeypatch.setattr(Audit, "read", read_and_forget)
    assert await books.verify() == (Verdict(5, 5 + later, 0), [])
    # What goes otherwise is missed, as ever.
    if later:
        await admin.execute("DELETE FROM registry.audit_events WHERE seq = 7")
        assert await books.found() == [("missing", 7, 7)]


async def test_a_month_of_the_platform_s_log_goes_behind_an_anchor_too(
    books: Books, admin: Rows
) -> None:
    old = date(2020, 2, 1)
    await admin.execute("SELECT registry.make_partition('platform_audit_events', %s)", [old])
    await books.append(None, event_id=_in(old))
    await books.append(None)
    detach = "SELECT registry.detach_partition('platform_audit_events', %s)"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not anchored"):
        await admin.execute(detach, [old])
    await books.anchors.close("platform_audit_events", old)
    await admin.execute(detach, [old])
    assert await books.verify(None) == (Verdict(1, 2, 0), [])


def _in(month: date) -> UUID:
    return uuid7(int(datetime(month.year, month.month, 9, tzinfo=UTC).timestamp() * 1000))


async def test_an_event_fits_into_no_other_log(written: Books) -> None:
    assert Chain(Secret(b"a" * 32)).start != Chain(Secret(b"b" * 32)).start
    assert written.vault.chain(TENANT).start != written.vault.chain(OTHER).start


async def test_nothing_is_told_of_what_was_rolled_back(books: Books) -> None:
    async def append_and_fail() -> None:
        async with books.database.tenant(TENANT) as transaction:
            await books.log.append(transaction, TENANT, ACTOR, [event("gone")])
            raise Internal("no")

    with pytest.raises(TenonError):
        await append_and_fail()
    assert await books.verify() == (Verdict(0, 0, 0), [])


async def test_a_walk_may_go_on_while_others_append(books: Books) -> None:
    await books.append(TENANT, 1500)
    writers = [asyncio.create_task(books.append(TENANT)) for _ in range(50)]
    while not all(one.done() for one in writers):
        _, faults = await books.verify()
        assert not faults
    assert (await books.verify())[0].to_seq == 1550
