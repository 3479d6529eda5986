"""Another tenant's key learns nothing: every RPC of both services, and the ingress, answer it alike
for a tenant that is there and for one that is not.
"""

import asyncio
import http.client
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tenon.registry.v1 import access_service_pb2

from services.chassis.channel import open_sync_channel
from services.chassis.rules import rule_of
from services.chassis.secret import Secret
from services.sandbox.sender import webhook_headers
from tests.contracts import CONTRACTS, METHODS
from tests.family import ROOT, Family, until

ANSWER_S: Final = 10.0
STREAM_S: Final = 1.0
FIRST, SECOND, ABSENT = "acme", "zinc", "void"
"""Of one length, so that what answers say of them differs in the name alone."""
SECONDS_SECRET: Final = Secret("the webhook secret of the second tenant")
BODY: Final = b'{"action": "labeled"}'

Answer = tuple[Any, ...]


def names(methods: Iterable[tuple[str, MethodDescriptor]]) -> list[str]:
    return [f"{method.containing_service.name}.{method.name}" for _, method in methods]


def test_contracts_are_all_there_are() -> None:
    declared = {path.stem for path in (ROOT / "protos" / "tenon").glob("*/v1/*_service.proto")}
    listed = {Path(file.name).stem for files in CONTRACTS.values() for file in files}
    assert listed == declared


@pytest.fixture(scope="module")
def stranger(family: Family) -> Secret:
    """The key of an ADMIN of the second tenant, who is nobody in the first."""
    family.apply_example(SECOND, ACME_GITHUB_WEBHOOK_SECRET=SECONDS_SECRET.reveal_text())
    return asyncio.run(family.new_key("ADMIN", family.tenant_id(SECOND)))


@pytest.fixture(scope="module")
def execution(family: Family) -> str:
    """The id of an execution of the first tenant."""
    status, _ = family.webhook(
        b'{"action": "opened", "issue": {"number": 3, "locked": false}, "sender": {"login": "o"},'
        b' "repository": {"name": "shop", "owner": {"login": "acme"}}}'
    )
    assert status == 202
    ended = "SELECT id FROM executor.executions WHERE ended_at IS NOT NULL"
    return str(until(lambda: family.rows(ended))[0][0])


def ask(
    family: Family, key: Secret, service: str, method: MethodDescriptor, request: Message
) -> Answer:
    """What one call answers: its messages, or its status with every detail."""
    target = family.registry if service == "registry" else family.executor
    with open_sync_channel(target, key=key, reason="a test") as channel:
        ways = (
            "stream" if many else "unary"
            for many in (method.client_streaming, method.server_streaming)
        )
        call = getattr(channel, "_".join(ways))(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        given = iter([request]) if method.client_streaming else request
        timeout = STREAM_S if method.server_streaming else ANSWER_S
        try:
            answered = call(given, timeout=timeout, metadata=(("x-request-id", "the-same"),))
            found = list(answered) if method.server_streaming else [answered]
            return tuple(one.SerializeToString(deterministic=True) for one in found)
        except grpc.RpcError as error:
            trailers: Any = error.trailing_metadata() or ()
            return error.code(), error.details(), sorted(tuple(one) for one in trailers)


def request_about(method: MethodDescriptor, path: str, value: str) -> Message:
    """The method's request with one text at a dotted path."""
    request = message = GetMessageClass(method.input_type)()
    *outer, last = path.split(".")
    for name in outer:
        message = getattr(message, name)
    setattr(message, last, value)
    return request


def as_of(answer: Answer, named: str, other: str) -> Answer:
    """An answer with one name for another, in text and bytes."""
    return tuple(_renamed(part, named, other) for part in answer)


def _renamed(part: Any, named: str, other: str) -> Any:
    if isinstance(part, bytes):
        return part.replace(named.encode(), other.encode())
    if isinstance(part, str):
        return part.replace(named, other)
    if isinstance(part, list | tuple):
        return type(part)(_renamed(each, named, other) for each in part)
    return part


OF_A_TENANT: Final = [each for each in METHODS if rule_of(each[1]).tenant_field]
OF_AN_OBJECT: Final = [each for each in METHODS if rule_of(each[1]).tenant_field == "name"]
OF_NO_TENANT: Final = [each for each in METHODS if not rule_of(each[1]).tenant_field]


def objects(execution: str) -> list[str]:
    """What stands below the first tenant; and the tenant itself."""
    return [
        "",
        "/integrations/github",
        "/credentials/github-token",
        "/connectors/triage",
        "/lanes/triage",
        "/webhookEndpoints/github-events",
        "/subscriptions/issues-opened",
        "/revisions/1",
        f"/executions/{execution}",
    ]


@pytest.mark.parametrize(("service", "method"), OF_A_TENANT, ids=names(OF_A_TENANT))
def test_what_is_another_tenants_answers_as_what_is_not_there(
    family: Family, stranger: Secret, execution: str, service: str, method: MethodDescriptor
) -> None:
    field = rule_of(method).tenant_field
    bare = field.endswith("tenant")
    # What a tenant is called, with what an absent one is: by slug, and by id.
    pairs = [(FIRST, ABSENT), (str(family.tenant_id(FIRST)), str(uuid4()))]
    for present, absent in pairs:
        for below in [""] if bare else objects(execution):
            theirs, nobodys = (
                request_about(method, field, one if bare else f"tenants/{one}{below}")
                for one in (present, absent)
            )
            told = ask(family, stranger, service, method, theirs)
            assert told[0] is grpc.StatusCode.PERMISSION_DENIED
            expected = ask(family, stranger, service, method, nobodys)
            assert as_of(told, present, absent) == expected


@pytest.mark.parametrize(("service", "method"), OF_AN_OBJECT, ids=names(OF_AN_OBJECT))
def test_ids_of_another_tenant_mean_nothing_in_ones_own(
    family: Family, stranger: Secret, execution: str, service: str, method: MethodDescriptor
) -> None:
    field = rule_of(method).tenant_field
    nobodys = str(uuid4())
    told, expected = (
        ask(
            family,
            stranger,
            service,
            method,
            request_about(method, field, f"tenants/{SECOND}/executions/{one}"),
        )
        for one in (execution, nobodys)
    )
    assert as_of(told, execution, nobodys) == expected


@pytest.mark.parametrize(("service", "method"), OF_NO_TENANT, ids=names(OF_NO_TENANT))
def test_what_belongs_to_no_tenant_says_nothing_of_another(
    family: Family, stranger: Secret, service: str, method: MethodDescriptor
) -> None:
    request = GetMessageClass(method.input_type)()
    told = repr(ask(family, stranger, service, method, request))
    assert FIRST not in told
    assert str(family.tenant_id(FIRST)) not in told


def test_a_strangers_question_for_permission_is_answered_alike(
    family: Family, stranger: Secret
) -> None:
    method = access_service_pb2.DESCRIPTOR.services_by_name["AccessService"].methods_by_name[
        "CheckPermission"
    ]
    for present, absent in ((FIRST, ABSENT), (str(family.tenant_id(FIRST)), str(uuid4()))):
        told = [
            ask(
                family,
                stranger,
                "registry",
                method,
                access_service_pb2.CheckPermissionRequest(
                    tenant=f"tenants/{one}", permission="tenants.read"
                ),
            )
            for one in (present, absent)
        ]
        assert told[0] == told[1] == (b"",)


@pytest.mark.usefixtures("stranger")
def test_ingress_answers_alike_for_whatever_a_sender_may_not_reach(family: Family) -> None:
    assert post(family, f"/v1/{SECOND}/github-events", SECONDS_SECRET)[0] == 202
    places = [
        f"/v1/{FIRST}/github-events",
        f"/v1/{FIRST}/absent",
        f"/v1/{ABSENT}/github-events",
        f"/v1/{family.tenant_id(FIRST)}/github-events",
        f"/v1/{SECOND}/absent",
    ]
    answers = {post(family, place, SECONDS_SECRET) for place in places}
    assert len(answers) == 1
    assert answers.pop()[0] == 404


def post(
    family: Family, place: str, secret: Secret
) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
    """The whole answer to a signed delivery, except the time."""
    address = urlsplit(family.ingress)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)
    try:
        connection.request("POST", place, BODY, webhook_headers("issues", BODY, secret, "one"))
        answer = connection.getresponse()
        headers = tuple((name, value) for name, value in answer.getheaders() if name != "Date")
        return answer.status, answer.read(), headers
    finally:
        connection.close()
