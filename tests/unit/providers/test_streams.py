"""Lists of providers, page by page, also while their things change."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.providers.streams import Cursor, Item, Place, Stream, Unlisted, items_of

ISSUES = Stream(
    description="Issues.",
    operation="list",
    key="id",
    cursor=Cursor(field="updated_at", query="since"),
)
NESTED = Stream(description="People.", operation="list", items="data.people", key="id.value")


def test_the_things_on_a_page() -> None:
    body = {"data": {"people": [{"id": {"value": 7}, "name": "Ada"}]}}
    assert items_of(NESTED, body) == [Item("7", {"id": {"value": 7}, "name": "Ada"})]
    (issue,) = items_of(ISSUES, [{"id": "x", "updated_at": "2026-01-02"}])
    assert (issue.key, issue.cursor) == ("x", "2026-01-02")


@pytest.mark.parametrize("body", [{}, {"data": {}}, {"data": {"people": []}}])
def test_a_list_that_is_left_out_is_empty(body: object) -> None:
    assert items_of(NESTED, body) == []


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"message": "no list"},
        ["no object"],
        [{"updated_at": "2026-01-02"}],
        [{"id": None, "updated_at": "2026-01-02"}],
        [{"id": True, "updated_at": "2026-01-02"}],
        [{"id": "", "updated_at": "2026-01-02"}],
        [{"id": "a\0b", "updated_at": "2026-01-02"}],
        [{"id": "x" * 501, "updated_at": "2026-01-02"}],
        [{"id": 10**40, "updated_at": "2026-01-02"}],
        [{"id": 1}],
    ],
)
def test_what_is_no_page_is_refused_whole(body: object) -> None:
    with pytest.raises(Unlisted):
        items_of(ISSUES, body)


def test_a_page_that_is_its_own_next_one_ends_no_transfer_well() -> None:
    with pytest.raises(Unlisted):
        Place(url="https://a.example/2").after([], "https://a.example/2")


def test_numbers_are_later_by_their_value() -> None:
    items = [Item(str(n), {}, str(n)) for n in (9, 10)]
    assert Place().reached(items) == "10"
    assert Place(since="9").after(items, "next") == Place(since="10", high="10")


def test_an_address_that_has_ended_is_gone_back_from_a_few_times_alone() -> None:
    place: Place | None = Place(since="3", url="u")
    for _ in range(3):
        assert place is not None
        place = place.restarted()
        assert place is not None
        assert (place.since, place.url) == ("3", "")
        place = replace(place, url="v")
    assert place is not None
    assert place.restarted() is None
    assert Place(since="3").restarted() is None


@dataclass
class Provider:
    """Things by key, each with the time of its last change; pages are numbered, as GitHub's are."""

    times: dict[str, int]
    size: int
    clock: int = 100
    changes: list[str] = field(default_factory=list)

    def change(self, key: str) -> None:
        self.clock += 1
        self.times[key] = self.clock

    def page(self, place: Place) -> tuple[list[Item], str | None]:
        number = int(place.url or 1)
        since = int(place.query(ISSUES).get("since", 0))
        found = sorted((at, key) for key, at in self.times.items() if at >= since)
        shown = found[(number - 1) * self.size : number * self.size]
        more = len(found) > number * self.size
        items = [Item(key, {"at": at}, str(at)) for at, key in shown]
        return items, str(number + 1) if more else None


def transferred(
    provider: Provider, since: str, kept: dict[str, int], between: Callable[[], None]
) -> str:
    """Bring what has changed; `between` pages others change something. How far it has come."""
    place = Place(since=since, high=since)
    while True:
        items, url = provider.page(place)
        kept |= {each.key: int(each.cursor) for each in items}
        after = place.after(items, url)
        if after is None:
            return place.reached(items)
        place = after
        between()


@given(
    times=st.lists(st.integers(1, 6), max_size=14),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_lost_while_things_change_between_pages(
    times: list[int], size: int, seed: int
) -> None:
    random, kept = Random(seed), dict[str, int]()
    provider = Provider({f"k{n}": at for n, at in enumerate(times)}, size)
    left = [10]

    def change() -> None:
        if provider.times and left[0]:
            left[0] -= 1
            provider.change(random.choice(sorted(provider.times)))

    reached = transferred(provider, "", kept, change)
    # Whoever was there all the time is here: nobody was passed over.
    assert kept.keys() == provider.times.keys()
    transferred(provider, reached, kept, lambda: None)
    assert kept == provider.times


def brought(pages: dict[tuple[str, str], tuple[list[int], str]], most: int = 50) -> set[int]:
    """What comes of a list whose pages are known by what was asked for, and by their address."""
    place, kept = Place(), set[int]()
    for _ in range(most):
        numbers, url = pages[place.since, place.url]
        kept.update(numbers)
        after = place.after([Item(str(n), {}, str(n)) for n in numbers], url or None)
        if after is None:
            return kept
        place = after
    raise AssertionError(f"it has not ended after {most} pages")


def test_a_list_that_is_seen_to_be_out_of_order_is_not_skipped_in() -> None:
    # The provider takes no notice of the order that is asked for.
    pages = {
        ("", ""): ([5, 3], "b"),
        ("", "b"): ([4, 6], "c"),
        ("", "c"): ([2, 1], ""),
        ("6", ""): ([6], ""),
    }
    assert brought(pages) == {1, 2, 3, 4, 5, 6}


def test_a_list_without_an_order_that_is_never_twice_the_same_is_refused() -> None:
    place = Place()
    with pytest.raises(Unlisted):
        brought_of_a_list_that_never_rests(place)


def brought_of_a_list_that_never_rests(place: Place) -> None:
    for number in range(100):
        after = place.after([Item(f"k{number}", {})], None if place.url else "2")
        assert after is not None
        place = after
