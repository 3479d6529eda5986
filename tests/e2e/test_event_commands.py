"""Events are declared, published, told and replayed by the commands, as people type them."""

import json
from typing import Any

from tests.family import Family, until

TYPE = """\
apiVersion: tenon/v1
kind: EventType
metadata: {name: invoice-paid, tenant: acme}
spec:
  type: invoice.paid
  schema:
    type: object
    required: [total]
    properties: {total: {type: integer}}
"""


def lines(family: Family, *arguments: object) -> list[Any]:
    """What a command says, a line of JSON each."""
    done = family.tenon("events", *arguments, "--output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def publish(family: Family, payload: str) -> "tuple[int, str]":
    done = family.tenon("events", "publish", "acme", "invoice.paid", "--payload", payload)
    return done.returncode, done.stdout.strip() or done.stderr


def test_a_group_goes_on_and_a_type_holds_and_a_replay_counts(family: Family) -> None:
    file = family.folder / "types.yaml"
    file.write_text(TYPE)
    planned = family.tenon("plan", file)
    assert planned.returncode == 2, planned.stderr
    applied = family.tenon("apply", "--wait", file)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert family.tenon("plan", file).returncode == 0
    code, said = publish(family, '{"total": "seven"}')
    assert (code, said) == (1, "tenon: events[0].payload.total: must be integer\n")
    ids = [publish(family, json.dumps({"total": n}))[1] for n in range(3)]
    group = ("subscribe", "acme", "--group", "billing", "--ack", "--from", "oldest", "--limit")
    first = lines(family, *group, 2)
    (third,) = lines(family, *group, 1)
    assert [each["id"] for each in (*first, third)] == ids
    assert third["payload"] == {"total": 2} and third["type"] == "invoice.paid"
    file.write_text(TYPE.replace("{type: integer}", "{pattern: '(a+)+'}"))
    refused = family.tenon("plan", file)
    assert refused.returncode == 1 and "pattern cannot be checked" in refused.stderr
    assert f"{file.name}:9" in refused.stderr
    done = family.tenon("events", "replay", "acme", "--since", "1h")
    words = "0 events are routed again: 0 deliveries, 0 executions"
    assert done.returncode == 0 and words in " ".join(done.stdout.split()), done.stderr
    told = "SELECT DISTINCT name FROM executor.consumer_groups WHERE claim_id IS NULL"
    until(lambda: family.rows(told) == [("billing",)], what="the group's lease given back")
