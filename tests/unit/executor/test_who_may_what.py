"""Which built-in roles may call what of the executor."""

from typing import Final

from services.chassis.rules import rule_of
from services.executor.events.consuming import CONSUME
from tests.contracts import METHODS
from tests.granted import GRANTED

OWNERS: Final = {"SUPER_ADMIN", "STAFF_OWNER"}
ADMINS: Final = {"ADMIN", *OWNERS}
MANAGERS: Final = {"MANAGER", *ADMINS}
PEOPLE: Final = {"VIEWER", *MANAGERS}

# Written by hand: a permission given to one role too many must show here.
MAY: Final = {
    "RunConnector": MANAGERS,
    "GetExecution": PEOPLE,
    "ListExecutions": PEOPLE,
    "WatchExecution": PEOPLE,
    "CancelExecution": MANAGERS,
    "DryRunConnector": MANAGERS,
    "GetConnector": PEOPLE,
    "ListLanes": PEOPLE,
    "PauseLane": ADMINS,
    "ResumeLane": ADMINS,
    "SwitchOffProvider": OWNERS,
    "SwitchOnProvider": OWNERS,
    "ListProviderSwitches": OWNERS,
    # What came in is not masked.
    "PublishEvents": MANAGERS,
    "PublishEventStream": MANAGERS,
    "SubscribeEvents": MANAGERS,
    "AcknowledgeEvents": MANAGERS,
    "ReplayEvents": MANAGERS,
    "ListEvents": MANAGERS,
    "GetEvent": MANAGERS,
    "TraceEvent": MANAGERS,
    "SendTestEvent": MANAGERS,
    "ListDeliveries": PEOPLE,
    "GetDelivery": PEOPLE,
    "RetryDelivery": MANAGERS,
    "RecoverEndpoint": MANAGERS,
    "ListEndpointStates": PEOPLE,
    "ResetCircuit": ADMINS,
    "ListProviderStates": PEOPLE,
    "TriggerSync": MANAGERS,
    "GetSyncRun": PEOPLE,
    "ListSyncRuns": PEOPLE,
    "CancelSyncRun": MANAGERS,
    "ListStreams": PEOPLE,
    "ResetStream": MANAGERS,
    # Records are not masked.
    "ListRecords": MANAGERS,
}


def test_each_call_is_for_the_roles_it_is_meant_for() -> None:
    found = {
        method.name: {role for role, held in GRANTED.items() if rule_of(method).permission in held}
        for service, method in METHODS
        if service == "executor"
    }
    assert found == MAY


def test_who_may_only_read_moves_no_group() -> None:
    (moves,) = [method for _, method in METHODS if method.name == "AcknowledgeEvents"]
    assert rule_of(moves).permission == CONSUME
