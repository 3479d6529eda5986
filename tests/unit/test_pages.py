"""Tokens and sizes of pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.chassis.pages import after_of, next_token, page_size

QUERY = st.tuples(st.text(max_size=5), st.none() | st.booleans(), st.text(max_size=5))


@given(st.text(st.characters(codec="utf-8"), min_size=1), QUERY)
def test_a_token_gives_back_where_to_go_on(after: str, query: tuple[object, ...]) -> None:
    assert after_of(next_token(after, *query), *query) == after


@given(st.text(st.characters(codec="utf-8"), min_size=1), QUERY, QUERY)
def test_a_token_fits_its_own_query_only(
    after: str, query: tuple[object, ...], other: tuple[object, ...]
) -> None:
    if query != other:
        with pytest.raises(InvalidArgument):
            after_of(next_token(after, *query), *other)


@given(st.text(min_size=1))
def test_what_is_no_token_is_refused_in_words(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        after_of(token, "query")


def test_sizes_have_bounds() -> None:
    assert [page_size(asked) for asked in (0, 1, 500, 501, 2**31 - 1)] == [50, 1, 500, 500, 500]
    with pytest.raises(InvalidArgument):
        page_size(-1)
