"""How a provider sends what happens in all accounts of an app as one stream: each delivery has one
item, or many, and each item is of an account.
"""

import re
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from services.providers.bodies import BodyPath, at

MOST_ITEMS: Final = 1000
"""Of one body; what has more is not taken apart. HubSpot sends 100 at most."""
_WORD: Final = re.compile(r"[\x21-\x7e]{1,200}")


class Item(NamedTuple):
    """One thing of a delivery.

    `account` is whose it is, empty where nothing says so; `key` tells it from every other thing of
    the stream, and not from a redelivery of itself, empty where the item has no id.
    """

    said: object
    account: str = ""
    key: str = ""


class App(BaseModel):
    """Where the parts of such a stream stand.

    `items` is where in a body its items are: absent, a body is one. `account` is where the account
    stands that an item is of: in the item, or else beside it. `item_id` names what tells the items
    of one account apart, all of it together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: BodyPath | None = None
    account: BodyPath
    item_id: tuple[BodyPath, ...] = ()

    def taken_apart(self, body: object) -> tuple[Item, ...]:
        """The items of a body, in order; where it is not as it should be, itself, of nobody."""
        found = [body] if self.items is None else at(body, self.items)
        if not isinstance(found, list) or len(found) > MOST_ITEMS:
            return (Item(body),)
        return tuple(self._item(each, body) for each in found)

    def _item(self, said: object, body: object) -> Item:
        account = _word(at(said, self.account)) or _word(at(body, self.account))
        words = [_word(at(said, path)) for path in self.item_id]
        key = ":".join((account, *words)) if words and all(words) else ""
        return Item(said, account, key if _WORD.fullmatch(key) else "")


def _word(value: object) -> str:
    """A name as providers write them: a plain text, or a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    # Python writes no number of thousands of digits.
    text = value if isinstance(value, str) else str(value) if abs(value) < 10**30 else ""
    return text if _WORD.fullmatch(text) else ""
