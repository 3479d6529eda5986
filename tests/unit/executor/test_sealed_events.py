"""Events at rest: sealed as one, and as they were sealed before, in two parts."""

import json
from dataclasses import replace
from uuid import uuid4

import pytest

from services.chassis import envelope
from services.chassis.envelope import Unsealable
from services.executor.events import accepting
from services.executor.events.accepting import Event, draft, opened, opened_body
from services.executor.registry.credentials import LeasedKey
from services.executor.sealing import Row, sealed_bytes
from services.executor.store.events import Kept

KEY = LeasedKey(uuid4(), envelope.new_key())
HEADERS = {"content-type": "application/json", "x-github-event": "issues"}
BODIES = (b'{"a": 1}', b"", b"\x00\xff no text", b"x" * 70_000)


def event(body: bytes) -> Event:
    return Event(uuid4(), None, "issues.opened", "key", HEADERS, None, body)


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_what_is_kept_opens_to_what_came(body: bytes) -> None:
    kept = draft(event(body), [], KEY).kept
    assert kept.sealed_headers is None
    assert kept.headers == {}
    assert not body or body not in kept.body
    assert (opened(kept, KEY).headers, opened(kept, KEY).body) == (HEADERS, body)
    assert opened_body(kept, KEY) == body


def test_what_was_sealed_in_two_parts_opens_still() -> None:
    tenant_id, event_id = uuid4(), uuid4()
    row = Row(accepting.TABLE, tenant_id, event_id)
    headers = sealed_bytes(KEY, row, accepting.HEADERS, json.dumps(HEADERS).encode())
    body = sealed_bytes(KEY, row, accepting.BODY, b"the body")
    kept = Kept(tenant_id, event_id, {}, body, KEY.data_key_id, headers)
    assert (opened(kept, KEY).headers, opened_body(kept, KEY)) == (HEADERS, b"the body")
    with pytest.raises(Unsealable):
        opened(replace(kept, sealed_headers=None), KEY)


def test_nothing_opens_elsewhere_or_with_another_key() -> None:
    kept = draft(event(b"the body"), [], KEY).kept
    for wrong in (replace(kept, id=uuid4()), replace(kept, tenant_id=uuid4())):
        with pytest.raises(Unsealable):
            opened_body(wrong, KEY)
    for key in (None, LeasedKey(KEY.data_key_id, envelope.new_key())):
        with pytest.raises(Unsealable):
            opened(kept, key)
