"""Documents of tenants, as the reconciler would send them."""

from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import wanted_pb2

TOKEN = b"very-secret-canary-token"
HOOK = b"very-secret-canary-hook"
CANARY = "very-secret-canary"


def resource(kind: str, name: str, **spec: object) -> wanted_pb2.Resource:
    document = {
        "metadata": {"name": name},
        kind: spec,
        "origin": {"file": f"{name}.yaml", "line": 3},
    }
    return ParseDict(document, wanted_pb2.Resource())


def tenant(slug: str = "acme", **spec: object) -> wanted_pb2.Resource:
    return resource("tenant", slug, **spec)


def credential(
    name: str, kind: str = "bearer", /, description: str = "", **values: bytes
) -> wanted_pb2.Resource:
    document = resource("credential", name, type=kind, description=description)
    for part, value in values.items():
        document.credential.values[part].plain = value
    return document


def integration(name: str = "github", **spec: object) -> wanted_pb2.Resource:
    said: dict[str, object] = {"provider": "github", "credential": "token"}
    return resource("integration", name, **(said | spec))


def connector(name: str = "triage", /, **step: object) -> wanted_pb2.Resource:
    said: dict[str, object] = {
        "name": "get",
        "integration": "github",
        "method": "GET",
        "path": "/user",
    }
    return resource("connector", name, steps=[said | step])


def endpoint(name: str = "events", **spec: object) -> wanted_pb2.Resource:
    said: dict[str, object] = {"integration": "github", "secret": "hook"}
    return resource("webhook_endpoint", name, **(said | spec))


def subscription(name: str = "opened", **spec: object) -> wanted_pb2.Resource:
    said: dict[str, object] = {
        "endpoint": "events",
        "connector": "triage",
        "event_types": ["issues.opened"],
    }
    return resource("subscription", name, **(said | spec))


def acme(slug: str = "acme") -> list[wanted_pb2.Resource]:
    """One object of every kind."""
    return [
        tenant(slug, display_name=slug.title()),
        credential("token", token=TOKEN),
        credential("hook", "webhook_secret", secret=HOOK),
        integration(config={"owner": "acme"}, base_url="http://127.0.0.1:9"),
        connector(),
        endpoint(),
        subscription(),
    ]
