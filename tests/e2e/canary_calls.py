"""What secrets meet that go by calls: put, sealed, rotated, authorised, refreshed, refused, waiting.

Whatever is answered or refused is kept as it was said, save the answers whose purpose is to tell a
secret.
"""

import json
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import config_service_pb2_grpc as config_grpc
from tenon.registry.v1 import connection_service_pb2 as connection_pb2
from tenon.registry.v1 import connection_service_pb2_grpc as connection_grpc
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc as credential_grpc
from tenon.registry.v1 import vault_service_pb2 as vault_pb2
from tenon.registry.v1 import vault_service_pb2_grpc as vault_grpc
from tenon.registry.v1 import wanted_pb2

from services.chassis import sealed_box
from services.chassis.channel import open_sync_channel
from services.chassis.sealed_box import Purpose
from services.chassis.secret import Secret
from tests.family import Family

CALL_S: Final = 20.0
RETURN: Final = "https://tenon.example/connected"
SETTINGS: Final = {
    "TENON_REGISTRY_PUBLIC_URL": "https://tenon.example",
    "TENON_REGISTRY_RETURN_URLS": "https://tenon.example/*",
}
FAILPOINTS: Final = "refresh.after_call=error@1"
CANARIES: Final = ("put", "wrong", "sealed", "in git", "rotated", "waiting", "file")
"""Those that the test makes up; the others are made by Tenon and by the provider."""

Say = Callable[[str, bytes], None]


def settings_for(family: Family) -> dict[str, str]:
    """What the registry is told so that it may reach the sandbox."""
    port = family.sandbox.rpartition(":")[2]
    return {**SETTINGS, "TENON_REGISTRY_EGRESS_ALLOW": f"127.0.0.1/32:{port}"}


@dataclass
class Calls:
    """A registry, by its owner's key and by the executor's; `canaries` are all secrets by name."""

    family: Family
    canaries: dict[str, str]
    say: Say
    owner: grpc.Channel
    executor: grpc.Channel

    @property
    def credentials(self) -> credential_grpc.CredentialServiceStub:
        return credential_grpc.CredentialServiceStub(self.owner)

    def told(self, what: str, call: Callable[[], Message]) -> Message:
        """Make a call whose answer shows no secret."""
        answer = call()
        self.say(what, answer.SerializeToString() + str(answer).encode())
        return answer

    def refused(self, what: str, code: grpc.StatusCode, call: Callable[[], Message]) -> None:
        """Make a call that is refused, and keep all that is said of it."""
        with pytest.raises(grpc.RpcError) as caught:
            call()
        error: Any = caught.value
        assert error.code() is code, error.details()
        words = f"{error!r} {error} {error.details()} {error.trailing_metadata()!r}"
        self.say(what, words.encode())

    def put(self, name: str, kind: str, /, tenant: str = "acme", **spec: Any) -> Message:
        """Put a credential; `values` are texts by part, or what they are sealed as."""
        return self.credentials.PutCredential(
            put_request(tenant, name, kind, **spec), timeout=CALL_S
        )

    def rotate(self, name: str, values: Mapping[str, str]) -> pb2.RotateCredentialResponse:
        request = pb2.RotateCredentialRequest(name=named("acme", name))
        for part, value in values.items():
            request.values[part].plain = value.encode()
        return self.credentials.RotateCredential(request, timeout=CALL_S)

    def apply(self, tenant: str, *documents: Mapping[str, Any]) -> config_pb2.ApplyConfigResponse:
        header = config_pb2.ConfigHeader(tenant=tenant, source="canary")
        resources = [ParseDict(dict(one), wanted_pb2.Resource()) for one in documents]
        parts = [
            config_pb2.ApplyConfigRequest(header=header),
            config_pb2.ApplyConfigRequest(chunk=config_pb2.ConfigChunk(resources=resources)),
        ]
        stub = config_grpc.ConfigServiceStub(self.owner)
        return stub.ApplyConfig(iter(parts), timeout=CALL_S)

    def seal(self, name: str, canary: str) -> str:
        """A canary as a Credential of acme may hold it in Git."""
        request = pb2.GetSealingKeyRequest(parent="tenants/acme")
        key = self.credentials.GetSealingKey(request, timeout=CALL_S)
        purpose, secret = Purpose("acme", "Credential", name, "token"), self.canaries[canary]
        return sealed_box.seal(key.public_key, key.version, purpose, Secret(secret))

    def resolve(self, name: str) -> str:
        """An access token, as the executor gets it."""
        stub = credential_grpc.CredentialServiceStub(self.executor)
        request = pb2.ResolveCredentialRequest(name=named("acme", name))
        return stub.ResolveCredential(request, timeout=CALL_S).values["token"].decode()


def put_request(tenant: str, name: str, kind: str, /, **spec: Any) -> pb2.PutCredentialRequest:
    values: Mapping[str, str] = spec.pop("values", {})
    said = ParseDict({"type": kind, **spec}, wanted_pb2.CredentialSpec())
    for part, value in values.items():
        if value.startswith("tenon-seal-"):
            said.values[part].sealed = value
        else:
            said.values[part].plain = value.encode()
    return pb2.PutCredentialRequest(name=named(tenant, name), spec=said)


def named(tenant: str, name: str) -> str:
    return f"tenants/{tenant}/credentials/{name}"


@contextmanager
def calls_to(family: Family, canaries: dict[str, str], say: Say) -> Iterator[Calls]:
    """The registry's callers."""
    owner, executor = (
        Secret(path.read_text().strip())
        for path in (family.deployment.owner_key, family.deployment.executor_key)
    )
    with (
        open_sync_channel(family.registry, key=owner, reason="a test") as owners,
        open_sync_channel(family.registry, key=executor) as executors,
    ):
        yield Calls(family, canaries, say, owners, executors)


def live_by_calls(calls: Calls) -> None:
    """All that can become of a secret without the command."""
    _put_and_rotate(calls)
    _made_by_tenon(calls)
    _authorised(calls)
    _waiting(calls)
    _new_keys(calls)


def _put_and_rotate(calls: Calls) -> None:
    values = calls.canaries
    calls.told("put", lambda: calls.put("extra", "bearer", values={"token": values["put"]}))
    calls.told("rotate", lambda: calls.rotate("extra", {"token": values["rotated"]}))
    invalid, wrong = grpc.StatusCode.INVALID_ARGUMENT, values["wrong"]
    calls.refused("rotate wrongly", invalid, lambda: calls.rotate("extra", {"tokn": wrong}))
    faulty: dict[str, Any] = {
        "values": {"secret": wrong},
        "expires": "soon",
        "allowed_endpoints": ["x"],
    }
    calls.refused("put wrongly", invalid, lambda: calls.put("other", "bearer", **faulty))
    sealed = {"token": calls.seal("sealed", "sealed")}
    calls.told("put sealed", lambda: calls.put("sealed", "bearer", values=sealed))
    calls.refused("sealed for another", invalid, lambda: calls.put("b", "bearer", values=sealed))
    shred = pb2.ShredCredentialVersionRequest(name=named("acme", "extra"), version=1)
    calls.told("shred", lambda: calls.credentials.ShredCredentialVersion(shred, timeout=CALL_S))


def _made_by_tenon(calls: Calls) -> None:
    calls.told("make", lambda: calls.put("made", "webhook_secret"))
    request = pb2.RevealCredentialRequest(name=named("acme", "made"))
    revealed = calls.credentials.RevealCredential(request, timeout=CALL_S)
    calls.canaries["made"] = revealed.secret.decode()
    turned = calls.rotate("made", {})
    calls.canaries["turned"] = turned.secret.decode()
    calls.say("turned", turned.credential.SerializeToString())


def _authorised(calls: Calls) -> None:
    """Tokens that are brought along, that come for themselves, and that an owner consents to."""
    family, values = calls.family, calls.canaries
    ready, url = family.ports["sandbox"], family.sandbox
    values["client secret"] = Path(ready["client_secret_file"]).read_text().strip()
    client = {"client_id": ready["client_id"], "client_secret": values["client secret"]}
    config = {
        "authorization_url": f"{url}/oauth/authorize",
        "token_url": f"{url}/oauth/token",
        "revocation_url": f"{url}/oauth/revoke",
    }
    app: dict[str, Any] = {"provider": "http", "environment": "sandbox", "config": config}
    calls.told("app", lambda: calls.put("app", "oauth2_client", values=client, **app))
    for name in ("lost", "fresh"):
        brought = _issued(url, name)
        values |= {f"{name} {part}": value for part, value in brought.items()}
        _put_tokens(calls, name, values=brought)

    def refresh(name: str) -> Message:
        request = pb2.RefreshCredentialRequest(name=named("acme", name), version=1)
        return calls.credentials.RefreshCredential(request, timeout=CALL_S)

    # The first answer is thrown away with an exception; see FAILPOINTS.
    calls.refused("refresh lost", grpc.StatusCode.INTERNAL, lambda: refresh("lost"))
    calls.told("refresh", lambda: refresh("fresh"))
    values["refreshed access_token"] = calls.resolve("fresh")
    _put_tokens(calls, "own", grant="client_credentials")
    values["own access_token"] = calls.resolve("own")
    _connected(calls)
    revoke = pb2.RevokeCredentialRequest(name=named("acme", "fresh"), reason="a test")
    calls.told("revoke", lambda: calls.credentials.RevokeCredential(revoke, timeout=CALL_S))


def _put_tokens(calls: Calls, name: str, **spec: Any) -> None:
    calls.told(name, lambda: calls.put(name, "oauth2", app="app", **spec))


def _told_to(url: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """What a control of the provider answers."""
    request = urllib.request.Request(url, json.dumps(words).encode())
    with urllib.request.urlopen(request, timeout=CALL_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _issued(url: str, account: str) -> dict[str, str]:
    """Tokens of an account, as if its owner had consented."""
    words = _told_to(f"{url}/__oauth/issue", {"account": account, "scope": "openid read"})
    return {part: words[part] for part in ("access_token", "refresh_token", "id_token")}


def _connected(calls: Calls) -> None:
    """An account's owner goes to the provider and comes back with a code, once."""
    spec = {
        "provider": "http",
        "app": "app",
        "credential": "own",
        "environment": "sandbox",
        "base_url": calls.family.sandbox,
    }
    calls.apply("acme", {"metadata": {"name": "ledger"}, "integration": spec})
    _told_to(f"{calls.family.sandbox}/__oauth", {"redirect_uris": [RETURN]})
    stub = connection_grpc.ConnectionServiceStub(calls.owner)
    begin = connection_pb2.BeginOAuthRequest(
        integration="tenants/acme/integrations/ledger",
        connection="account",
        redirect_url=RETURN,
        scopes=["openid", "read"],
    )
    begun = stub.BeginOAuth(begin, timeout=CALL_S)
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(_location(begun.authorization_url)).query)
    code, state = query["code"][0], query["state"][0]
    # Its last part is the secret; the first two are ids.
    calls.canaries |= {"code": code, "state": state.rpartition(".")[2]}
    complete = connection_pb2.CompleteOAuthRequest(parent="tenants/acme", state=state, code=code)
    calls.told("complete", lambda: stub.CompleteOAuth(complete, timeout=CALL_S))
    again = grpc.StatusCode.NOT_FOUND
    calls.refused("complete again", again, lambda: stub.CompleteOAuth(complete, timeout=CALL_S))
    seeing = connection_pb2.GetConnectionRequest(name="tenants/acme/connections/account")
    made_one = stub.GetConnection(seeing, timeout=CALL_S)
    calls.canaries["connected access_token"] = calls.resolve(made_one.spec.credential)
    link = connection_pb2.CreateConnectLinkRequest(integration=begin.integration)
    made = stub.CreateConnectLink(link, timeout=CALL_S)
    # Its last 43 characters are its mark; before that stand ids.
    calls.canaries["link"] = made.url[-43:]
    listing = connection_pb2.ListConnectionsRequest(parent="tenants/acme")
    calls.told("connections", lambda: stub.ListConnections(listing, timeout=CALL_S))


def _location(url: str) -> str:
    """Where the provider sends the browser."""
    parts = urllib.parse.urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=CALL_S)
    connection.request("GET", f"{parts.path}?{parts.query}")
    location = connection.getresponse().headers["location"]
    connection.close()
    assert location
    return str(location)


def _waiting(calls: Calls) -> None:
    """A change that waits for approval, is looked at, and rejected."""
    policy = {"metadata": {"name": "four-eyes"}, "review_policy": {"min_risk": "MEDIUM"}}
    calls.apply("waits", {"metadata": {"name": "waits"}, "tenant": {}}, policy)
    waiting = {"values": {"token": calls.canaries["waiting"]}}
    waits = grpc.StatusCode.FAILED_PRECONDITION
    calls.refused("put waits", waits, lambda: calls.put("one", "bearer", "waits", **waiting))
    stub = config_grpc.ConfigServiceStub(calls.owner)
    listing = config_pb2.ListPendingRevisionsRequest(parent="tenants/waits")
    found = calls.told("pending", lambda: stub.ListPendingRevisions(listing, timeout=CALL_S))
    assert isinstance(found, config_pb2.ListPendingRevisionsResponse)
    (pending,) = found.pending_revisions
    show = config_pb2.GetPendingRevisionRequest(name=pending.name)
    calls.told("show", lambda: stub.GetPendingRevision(show, timeout=CALL_S))


def _new_keys(calls: Calls) -> None:
    """Everything is wrapped anew, by a new data key and a new key-encryption key."""
    stub = vault_grpc.VaultServiceStub(calls.owner)
    replace = vault_pb2.ReplaceTenantKeyRequest(name="tenants/acme")
    calls.told("replace", lambda: stub.ReplaceTenantKey(replace, timeout=CALL_S))
    calls.told(
        "key version",
        lambda: stub.CreateKeyVersion(vault_pb2.CreateKeyVersionRequest(), timeout=CALL_S),
    )
    progress = list(stub.Rewrap(vault_pb2.RewrapRequest(), timeout=3 * CALL_S))
    assert progress[-1].done == progress[-1].total
