"""Which streams a tenant owns and what it wants to hear of, by what it wants."""

from typing import Any
from uuid import UUID, uuid4

from services.executor.ingress.app_doors import claimed, owned
from services.executor.store.app_streams import Claimed, Owned
from services.executor.store.projected import ProjectedObject


def one(kind: str, name: str, **spec: Any) -> ProjectedObject:
    return ProjectedObject(kind, uuid4(), name, 0, spec)


def endpoint(name: str, integration: str, app: str = "main", secret: str = "") -> ProjectedObject:
    return one("WebhookEndpoint", name, integration=integration, app=app, secret=secret)


def connection(name: str, integration: str, account: str, active: bool = True) -> ProjectedObject:
    return one(
        *("Connection", name),
        integration=integration,
        external_account_id=account,
        is_active=active,
    )


def test_an_endpoint_with_a_secret_owns_and_one_without_receives() -> None:
    owner, receiver = endpoint("in", "chat", secret="s"), endpoint("mine", "chat")
    receiver.spec["app_owner"] = "acme"
    objects = [
        one("Integration", "chat", provider="slack"),
        one("Integration", "books", provider="quickbooks"),
        *(owner, receiver, endpoint("plain", "chat", app="", secret="s")),
        # What was projected before there were streams says nothing of them.
        one("WebhookEndpoint", "old", integration="chat", secret="s"),
        endpoint("lost", "nowhere"),
        connection("a", "chat", "T2"),
        connection("b", "chat", "T1"),
        connection("c", "chat", "T0", active=False),
        connection("d", "chat", ""),
        connection("e", "books", "310687"),
    ]
    assert owned(objects) == [Owned(owner.object_id, "slack", "main", "in")]
    mine: tuple[UUID, str, str] = (receiver.object_id, "slack", "main")
    assert claimed(objects) == [
        Claimed(*mine, "T0", "mine", active=False, app_owner="acme"),
        Claimed(*mine, "T1", "mine", active=True, app_owner="acme"),
        Claimed(*mine, "T2", "mine", active=True, app_owner="acme"),
    ]
    assert (owned([]), claimed([])) == ([], [])
