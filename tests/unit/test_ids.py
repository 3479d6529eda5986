import random
import threading
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.chassis.ids import (
    BadName,
    OrderedIds,
    check_slug,
    format_name,
    format_tenant,
    parse_name,
    parse_tenant,
    uuid7,
    uuid7_floor,
    uuid7_time,
)

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
NOON_MS = 1_772_366_400_123
SLUGS = st.from_regex(r"\A[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    made = uuid7(NOON_MS)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == NOON_MS
    assert uuid7_time(made) == NOON


def test_an_id_of_now_carries_this_moment() -> None:
    before = datetime.now(UTC)
    assert before - timedelta(milliseconds=1) <= uuid7_time(uuid7()) <= datetime.now(UTC)


@given(st.lists(st.integers(0, 2**48 - 10), min_size=2, max_size=200))
def test_ids_only_grow_whatever_the_clock_does(clock: list[int]) -> None:
    ids = OrderedIds()
    made = [ids.next(ms) for ms in clock]
    assert made == sorted(set(made))
    assert all(one.version == 7 and one.variant == "specified in RFC 4122" for one in made)


def test_an_overfull_millisecond_runs_into_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbits", lambda bits: 2**bits - 1)
    ids = OrderedIds()
    first = ids.next(5)
    ids._tail = 2**74 - 1
    second = ids.next(5)
    assert second > first
    assert uuid7_time(second) == uuid7_time(first) + timedelta(milliseconds=1)


def test_threads_share_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, alone = OrderedIds(), []

    def draw(bits: int) -> int:
        alone.append(ids._lock.locked())
        return random.getrandbits(bits)

    monkeypatch.setattr("secrets.randbits", draw)
    made: list[list[UUID]] = [[] for _ in range(8)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(ids.next(1) for _ in range(200)))
        for mine in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in made)
    assert len({one for mine in made for one in mine}) == 1600
    assert all(alone)


def test_ids_of_a_given_moment_do_not_drag_later_ids_along() -> None:
    uuid7(2**48 - 1)
    assert uuid7_time(uuid7()) < datetime.now(UTC) + timedelta(seconds=1)


def test_the_floor_is_the_lowest_id_of_its_millisecond() -> None:
    floor = uuid7_floor(NOON)
    assert floor == UUID("019ca945-0a7b-7000-8000-000000000000")
    assert all(floor <= uuid7(NOON_MS) for _ in range(100))
    assert all(floor > uuid7(NOON_MS - 1) for _ in range(100))
    assert uuid7_time(floor) == NOON


def test_the_floor_takes_any_zone_and_drops_microseconds() -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30))) + timedelta(microseconds=999)
    assert uuid7_floor(there) == uuid7_floor(NOON)


@pytest.mark.parametrize("moment", [NOON.replace(tzinfo=None), datetime(1969, 12, 31, tzinfo=UTC)])
def test_a_time_that_has_no_place_on_the_axis_is_refused(moment: datetime) -> None:
    with pytest.raises(ValueError, match=r"zone|fit"):
        uuid7_floor(moment)


def test_other_uuids_have_no_time() -> None:
    with pytest.raises(ValueError, match="not a UUIDv7"):
        uuid7_time(uuid4())


@given(SLUGS, SLUGS)
def test_names_go_there_and_back(tenant: str, name: str) -> None:
    text = format_name(tenant, "integrations", name)
    assert parse_name(text, "integrations") == (tenant, name)
    assert parse_tenant(format_tenant(tenant)) == tenant


def test_a_tenant_may_be_named_by_its_id_and_nothing_else_may() -> None:
    tenant = str(uuid4())
    assert parse_name(f"tenants/{tenant}/credentials/token", "credentials") == (tenant, "token")
    assert parse_tenant(f"tenants/{tenant}") == tenant
    with pytest.raises(BadName):
        parse_name(f"tenants/acme/credentials/{UUID(int=7)}", "credentials")


@pytest.mark.parametrize("slug", ["a", "acme", "a-1", "x" * 63, "a--b"])
def test_slugs_of_the_rule_pass(slug: str) -> None:
    assert check_slug(slug) == slug


@pytest.mark.parametrize(
    "slug",
    ["", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "a\n", "x" * 64, "a/b", "٣"],
)
def test_what_breaks_the_rule_for_slugs_is_refused_with_the_rule_alone(slug: str) -> None:
    with pytest.raises(BadName, match="63 lower-case letters") as refused:
        check_slug(slug)
    assert isinstance(refused.value, InvalidArgument)
    if len(slug) > 3:
        assert slug not in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tenants/acme",
        "tenants/acme/integrations",
        "tenants/acme/integrations/",
        "tenants//integrations/github",
        "/tenants/acme/integrations/github",
        "tenants/acme/integrations/github/",
        "tenants/acme/connectors/github",
        "tenant/acme/integrations/github",
        "tenants/acme/integrations/git hub",
        "tenants/ACME/integrations/github",
        "tenants/../integrations/github",
    ],
)
def test_what_is_no_name_of_the_collection_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        parse_name(text, "integrations")


@pytest.mark.parametrize("text", ["acme", "tenants/", "tenants/acme/x", "tenant/acme", "tenants/-"])
def test_what_is_no_tenant_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        parse_tenant(text)
