"""Items of apps' streams, taken out of bodies as each provider's documents show them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.providers.app_streams import MOST_ITEMS, App, Item
from services.providers.catalog import Catalog

APPS = {
    each.provider: each.webhook
    for each in Catalog.load()
    if each.webhook is not None and each.webhook.app is not None
}
# Shortened from the examples in each provider's documents.
SLACKS = {
    "token": "z26uFbvR1xHJEdHE1OQiO6t8",
    "team_id": "T123ABC456",
    "api_app_id": "A123ABC456",
    "event": {"type": "name_of_event", "event_ts": "1234567890.123456", "user": "U123ABC456"},
    "type": "event_callback",
    "event_id": "Ev123ABC456",
    "event_time": 1234567890,
}
STRIPES = {
    "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
    "object": "event",
    "account": "acct_1032D82eZvKYlo2C",
    "type": "setup_intent.created",
    "data": {"object": {"id": "seti_1"}},
}
HUBSPOTS = [
    {
        "objectId": 1246965,
        "propertyName": "lifecyclestage",
        "propertyValue": "subscriber",
        "changeSource": "ACADEMY",
        "eventId": 3816279340,
        "subscriptionId": 25,
        "portalId": 33,
        "appId": 1160452,
        "occurredAt": 1462216307945,
        "subscriptionType": "contact.propertyChange",
        "attemptNumber": 0,
    }
]
QUICKBOOKSES = [
    {
        "specversion": "1.0",
        "id": "88cd52aa-33b6-4351-9aa4-47572edbd068",
        "source": "intuit.dsnBgbseACLLRZNxo2dfc4evmEJdxde58xeeYcZliOU=",
        "type": "qbo.customer.created.v1",
        "datacontenttype": "application/json",
        "time": "2025-09-10T21:31:25.179550Z",
        "intuitentityid": "1234",
        "intuitaccountid": "310687",
        "data": {},
    }
]


@pytest.mark.parametrize(
    ("provider", "body", "account", "key", "kind"),
    [
        ("slack", SLACKS, "T123ABC456", "T123ABC456:Ev123ABC456", "name_of_event"),
        (
            *("stripe", STRIPES, "acct_1032D82eZvKYlo2C"),
            *("acct_1032D82eZvKYlo2C:evt_1NG8Du2eZvKYlo2CUI79vXWy", "setup_intent.created"),
        ),
        ("hubspot", HUBSPOTS, "33", "33:25:3816279340:1462216307945", "contact.propertyChange"),
        (
            *("quickbooks", QUICKBOOKSES, "310687"),
            *("310687:88cd52aa-33b6-4351-9aa4-47572edbd068", "qbo.customer.created.v1"),
        ),
    ],
)
def test_what_providers_show_in_their_documents(
    provider: str, body: Any, account: str, key: str, kind: str
) -> None:
    webhook = APPS[provider]
    assert webhook.app is not None
    (item,) = webhook.app.taken_apart(body)
    assert item == Item(body[0] if isinstance(body, list) else body, account, key)
    assert webhook.event_type.read({}, item.said) == kind


def test_an_account_beside_the_items_is_of_those_that_have_none() -> None:
    app = App(items="data.items", account="meta.account", item_id=("id",))
    body = {
        "meta": {"account": "all"},
        "data": {"items": [{"id": 1}, {"id": 2, "meta": {"account": "own"}}, 3]},
    }
    assert [(each.account, each.key) for each in app.taken_apart(body)] == [
        ("all", "all:1"),
        ("own", "own:2"),
        ("all", ""),
    ]


def test_what_is_not_as_it_should_be_is_one_item_of_nobody() -> None:
    app = App(items=".", account="a")
    bodies: list[Any] = [None, 7, {}, {"a": "b"}, [{}] * (MOST_ITEMS + 1)]
    for body in bodies:
        assert app.taken_apart(body) == (Item(body),)
    assert app.taken_apart([]) == ()
    words: list[Any] = ["", " ", "a b", "é", "x" * 201, True, 1.5, None, [], {"b": 1}, 10**5000]
    for account in words:
        (item,) = app.taken_apart([{"a": account}])
        assert item.account == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "id"]), inner),
    max_leaves=20,
)


@given(
    body=JSON,
    items=st.sampled_from([None, ".", "a", "a.b"]),
    ids=st.sampled_from([(), ("id",), ("a", "b.id")]),
)
def test_any_body_comes_apart_and_says_it_the_same_way_again(
    body: Any, items: str | None, ids: tuple[str, ...]
) -> None:
    app = App(items=items, account="b", item_id=ids)
    found = app.taken_apart(body)
    assert found == app.taken_apart(json.loads(json.dumps(body)))
    for item in found:
        assert item.account.isascii() and item.account.isprintable()
        assert not item.key or item.key.startswith(f"{item.account}:")


@pytest.mark.parametrize("path", ["", "a.", ".a", "a..b", "$.a", "a b", "x" * 201])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        App(account=path)
