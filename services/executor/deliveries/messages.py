"""What is delivered of an event: Standard Webhooks' three fields, `type`, `timestamp` and `data`.

The bytes are the same at each try, since receivers check a signature over them. JSON that came in
goes out as it came, digit for digit; what is no JSON goes as base64 in `data_base64`.
Source: Standard Webhooks 1.0.0, "Payload structure".
"""

import json
from base64 import b64encode
from datetime import datetime
from uuid import UUID

from services.chassis import strict_json
from services.chassis.ids import uuid7_time


def message(event_id: UUID, event_type: str, body: bytes) -> bytes:
    """What goes out of an event whose body came as `body`."""
    head = f'{{"type":{json.dumps(event_type)},"timestamp":"{_written(event_id)}",'.encode()
    if _is_json(body):
        return b'%s"data":%s}' % (head, body)
    return b'%s"data_base64":"%s"}' % (head, b64encode(body))


def _written(event_id: UUID) -> str:
    moment: datetime = uuid7_time(event_id)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_json(body: bytes) -> bool:
    try:
        strict_json.parse(body)
    except ValueError:
        return False
    return True
