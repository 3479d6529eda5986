"""Accounts are connected by their owners: by whoever began it, once, and at the right provider."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import psycopg
import pytest
from tenon.registry.v1 import access_service_pb2 as access_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import connection_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2 as credential_pb2
from tenon.registry.v1 import key_service_pb2 as key_pb2
from tenon.registry.v1 import wanted_pb2
from yarl import URL

from services.chassis import errors
from services.chassis.rules import Risk
from services.registry.settings import Settings
from services.sandbox.server import Box, sandbox
from tests.integration.registry.apps import ACCOUNT, CALLBACK, PUBLIC, RETURN, app, secret, told
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import resource, tenant

Rows = psycopg.AsyncConnection[tuple[object, ...]]
Status = credential_pb2.Credential.Status
INTEGRATION: Final = "tenants/acme/integrations/pay"
REFUSED: Final = "OAUTH_STATE_REFUSED"


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with sandbox("unused") as box:
        yield box


@pytest.fixture
def registry_settings(box: Box) -> Settings:
    return told(box)


def pay(box: Box, **spec: object) -> wanted_pb2.Resource:
    said = {"provider": "http", "app": "app", "base_url": box.url, "environment": "sandbox"}
    return resource("integration", "pay", **(said | spec))


@dataclass
class World:
    """A tenant with an integration of the stand-in, whoever connects accounts, and the ingress."""

    box: Box
    registry: Registry
    owner: Caller
    admin: Caller
    ingress: Caller
    rows: Rows
    http: aiohttp.ClientSession

    async def apply(self, *documents: wanted_pb2.Resource) -> Any:
        return await self.owner.apply("acme", documents)

    async def begin(self, who: Caller | None = None, **wishes: Any) -> pb2.BeginOAuthResponse:
        usual = {"integration": INTEGRATION, "login_hint": ACCOUNT}
        request = pb2.BeginOAuthRequest(**(usual | wishes))
        return await (who or self.admin).connections.BeginOAuth(request, timeout=5)

    async def visit(self, begun: pb2.BeginOAuthResponse, **changed: str) -> dict[str, str]:
        """What the provider sends back by the browser of the account's owner."""
        url = URL(begun.authorization_url, encoded=True).update_query(changed)
        async with self.http.get(url, allow_redirects=False) as answer:
            assert answer.status == 302
            where = urlsplit(answer.headers["Location"])
        assert f"{where.scheme}://{where.netloc}{where.path}" == CALLBACK
        return dict(parse_qsl(where.query))

    async def complete(
        self, back: dict[str, str], who: Caller | None = None
    ) -> pb2.CompleteOAuthResponse:
        return await (who or self.admin).connections.CompleteOAuth(
            pb2.CompleteOAuthRequest(parent="tenants/acme", **_words(back)), timeout=10
        )

    async def relay(self, back: dict[str, str], browser: str = "") -> pb2.RelayOAuthResponse:
        request = pb2.RelayOAuthRequest(**_words(back), browser=browser)
        return await self.ingress.connections.RelayOAuth(request, timeout=10)

    async def connect(self, **wishes: Any) -> pb2.Connection:
        back = await self.visit(await self.begin(**wishes))
        return await self.see((await self.complete(back)).connection)

    async def see(self, name: str) -> pb2.Connection:
        return await self.admin.connections.GetConnection(pb2.GetConnectionRequest(name=name))

    async def all(self) -> list[str]:
        """The names of all connections."""
        request = pb2.ListConnectionsRequest(parent="tenants/acme")
        found = await self.admin.connections.ListConnections(request)
        return [one.name for one in found.connections]

    async def resolve(self, connection: pb2.Connection) -> credential_pb2.ResolveCredentialResponse:
        name = f"tenants/acme/credentials/{connection.spec.credential}"
        return await self.ingress.credentials.ResolveCredential(
            credential_pb2.ResolveCredentialRequest(name=name), timeout=5
        )

    async def link(self, who: Caller | None = None, **wishes: Any) -> str:
        """The token of a new connect link."""
        request = pb2.CreateConnectLinkRequest(integration=INTEGRATION, **wishes)
        made = await (who or self.admin).connections.CreateConnectLink(request, timeout=5)
        assert made.url.startswith(f"{PUBLIC}/connect/")
        return made.url.rpartition("/")[2]

    async def open(self, token: str) -> pb2.BeginOAuthResponse:
        request = pb2.OpenConnectLinkRequest(token=token)
        return await self.ingress.connections.OpenConnectLink(request, timeout=5)

    @property
    def redeemed(self) -> list[str]:
        return [request.outcome for request in self.box.identity.requests]


def _words(back: dict[str, str]) -> dict[str, str]:
    names = {"state": "state", "code": "code", "error": "error", "iss": "issuer"}
    return {ours: back[theirs] for theirs, ours in names.items() if theirs in back}


@pytest.fixture
async def world(
    box: Box, registry: Registry, owner: Caller, calling: Calls, rows: Rows
) -> AsyncIterator[World]:
    venue = resource("venue", "north")
    await owner.apply("acme", [tenant(), venue, app(box), pay(box)])
    admin, ingress = await calling("ADMIN", "acme"), await calling("EXECUTOR", kind="service")
    async with aiohttp.ClientSession() as http:
        yield World(box, registry, owner, admin, ingress, rows, http)


async def test_an_account_becomes_a_credential_and_a_connection(world: World) -> None:
    begun = await world.begin(
        connection="ada", venue="north", user="user-7", scopes=["read", "write"], return_url=RETURN
    )
    lasting = begun.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert 590 < lasting.total_seconds() <= 600
    assert not begun.browser
    asked = dict(parse_qsl(urlsplit(begun.authorization_url).query))
    assert asked["code_challenge_method"] == "S256"
    assert (asked["redirect_uri"], asked["scope"]) == (CALLBACK, "read write")
    assert asked["state"] == begun.state

    done = await world.complete(await world.visit(begun))
    assert (done.connection, done.pending_revision) == ("tenants/acme/connections/ada", "")
    made = await world.see(done.connection)
    spec = made.spec
    assert (spec.integration, spec.venue, spec.user) == ("pay", "north", "user-7")
    assert (spec.external_account_id, list(spec.scopes)) == (ACCOUNT, ["read", "write"])
    assert dict(spec.provider_metadata) == {"livemode": False}
    assert (made.provider, spec.is_active) == ("http", True)
    answer = await world.resolve(made)
    holder = world.box.identity.holder(answer.values["token"].decode())
    assert holder is not None and holder.account == ACCOUNT
    # It goes on by itself: the leader knows when.
    ((ahead,),) = await (
        await world.rows.execute(
            "SELECT extract(epoch FROM refresh_at - now())::float8 FROM registry.credential_status"
            " WHERE refresh_at IS NOT NULL"
        )
    ).fetchall()
    assert 3600 - 310 < float(str(ahead)) <= 3600 - 300


async def test_a_state_serves_once_and_wrong_ones_are_refused_alike(world: World) -> None:
    back = await world.visit(await world.begin())
    await world.complete(back)
    other, third = [await world.visit(await world.begin()) for _ in range(2)]
    tenant_id, flow_id, secret = other["state"].split(".")
    wrong = [
        back["state"],
        "garbage",
        f"{tenant_id}.{flow_id}.{third['state'].split('.')[2]}",
        f"{'0' * 32}.{flow_id}.{secret}",
        f"{tenant_id}.{'0' * 32}.{secret}",
    ]
    heard = set()
    for state in wrong:
        with refused(errors.NotFound, REFUSED) as held:
            await world.complete({**other, "state": state})
        heard.add(held[0].message)
    assert len(heard) == 1
    assert world.redeemed == ["issued"]
    await world.complete(other)


async def test_an_authorisation_ends_after_ten_minutes(world: World) -> None:
    back = await world.visit(await world.begin())
    await world.rows.execute(
        "UPDATE registry.oauth_flows SET expires_at = expires_at - interval '10 minutes'"
    )
    with refused(errors.NotFound, REFUSED):
        await world.complete(back)
    assert (world.redeemed, await world.all()) == ([], [])


async def test_only_who_began_it_ends_it(world: World, calling: Calls) -> None:
    back = await world.visit(await world.begin())
    with refused(errors.NotFound, REFUSED):
        await world.complete(back, await calling("ADMIN", "acme"))
    assert world.redeemed == []
    await world.complete(back)


async def test_an_authorisation_is_for_the_integration_it_was_begun_for(world: World) -> None:
    back = await world.visit(await world.begin())
    gone = resource("integration", "pay")
    gone.absent = True
    await world.apply(gone)
    await world.apply(pay(world.box, display_name="Another of the same name"))
    with refused(errors.NotFound, REFUSED):
        await world.complete(back)
    assert (world.redeemed, await world.all()) == ([], [])


async def test_an_authorisation_is_for_the_app_it_was_begun_with(world: World) -> None:
    back = await world.visit(await world.begin())
    await world.apply(app(world.box, "other"), pay(world.box, app="other"))
    with refused(errors.NotFound, REFUSED):
        await world.complete(back)
    assert (world.redeemed, await world.all()) == ([], [])


async def test_an_app_that_has_expired_connects_no_accounts(world: World) -> None:
    back = await world.visit(await world.begin())
    await world.rows.execute(
        "UPDATE registry.credentials SET expires_at = now() WHERE name = 'app'"
    )
    with refused(errors.FailedPrecondition, "CREDENTIAL_EXPIRED") as held:
        await world.begin()
    assert held[0].message == "credential app has expired"
    with refused(errors.FailedPrecondition, "CREDENTIAL_EXPIRED"):
        await world.complete(back)
    assert (world.redeemed, await world.all()) == ([], [])


async def test_an_authorisation_that_is_begun_stands_in_the_audit_log(world: World) -> None:
    await world.begin()
    told = await (
        await world.rows.execute(
            "SELECT action, object, risk FROM registry.audit_events WHERE kind = 'OAuthFlow'"
        )
    ).fetchall()
    assert told == [("begin", "pay", Risk.MEDIUM)]


async def test_a_code_of_another_authorisation_is_worth_nothing(world: World) -> None:
    mine, stolen = [await world.visit(await world.begin()) for _ in range(2)]
    with refused(errors.FailedPrecondition, "TOKENS_REFUSED"):
        await world.complete({**mine, "code": stolen["code"]})
    begun = await world.begin()
    tampered = await world.visit(begun, code_challenge="A" * 43)
    with refused(errors.FailedPrecondition, "TOKENS_REFUSED"):
        await world.complete(tampered)
    assert (world.redeemed, await world.all()) == (["invalid_grant"] * 2, [])


async def test_an_owner_may_say_no(world: World) -> None:
    begun = await world.begin(return_url=RETURN)
    back = await world.visit(begun, deny="1")
    assert back["error"] == "access_denied"
    with refused(errors.FailedPrecondition, "OAUTH_DENIED"):
        await world.complete(back)
    with refused(errors.NotFound, REFUSED):
        await world.complete(await world.visit(begun))
    told_at_the_door = await world.relay(
        await world.visit(await world.begin(return_url=RETURN), deny="1")
    )
    assert told_at_the_door.return_url == f"{RETURN}?status=denied"
    assert (world.redeemed, await world.all()) == ([], [])


async def test_what_a_provider_refuses_leads_back_too_and_says_so(world: World) -> None:
    begun = await world.begin(return_url=RETURN)
    ended = await world.relay(await world.visit(begun, code_challenge="A" * 43))
    assert (ended.status, ended.return_url) == ("failed", f"{RETURN}?status=failed")
    assert (world.redeemed, await world.all()) == (["invalid_grant"], [])


async def test_the_answer_of_another_provider_is_refused(world: World) -> None:
    back = await world.visit(await world.begin())
    assert back["iss"] == world.box.url
    with refused(errors.NotFound, REFUSED):
        await world.complete({**back, "iss": "https://other.example.com"})
    assert (world.redeemed, await world.all()) == ([], [])


@pytest.mark.parametrize("name", ["return_url", "redirect_url"])
async def test_browsers_go_only_where_the_deployment_allows(world: World, name: str) -> None:
    for url in (
        "https://evil.example.com/connected",
        "https://app.example.com.evil.example.com/",
        "http://app.example.com/connected",
        "https://app.example.com@evil.example.com/",
        "javascript:alert(1)",
        "//app.example.com/connected",
    ):
        with refused(errors.InvalidArgument) as held:
            await world.begin(None, **{name: url})
        assert [violation.field for violation in held[0].violations] == [name]
    await world.begin(None, **{name: RETURN})


async def test_what_is_not_live_does_not_go_for_live(world: World) -> None:
    await world.apply(pay(world.box, environment="production"))
    back = await world.visit(await world.begin())
    with refused(errors.InvalidArgument) as held:
        await world.complete(back)
    assert any("livemode" in violation.field for violation in held[0].violations)
    listed = await world.admin.credentials.ListCredentials(
        credential_pb2.ListCredentialsRequest(parent="tenants/acme")
    )
    assert (await world.all(), [one.type for one in listed.credentials]) == ([], ["oauth2_client"])


async def test_an_account_that_is_connected_again_keeps_its_connection(world: World) -> None:
    first = await world.connect(user="user-7")
    name = f"tenants/acme/credentials/{first.spec.credential}"
    world.box.identity.revoke_family(ACCOUNT)
    request = credential_pb2.RefreshCredentialRequest(name=name, version=1)
    with refused(errors.FailedPrecondition, "CREDENTIAL_RECONNECT"):
        await world.ingress.credentials.RefreshCredential(request, timeout=5)
    assert (await world.see(first.name)).status == Status.STATUS_RECONNECT

    again = await world.connect(user="user-7")
    assert (again.name, again.uid, again.spec.credential) == (
        first.name,
        first.uid,
        first.spec.credential,
    )
    assert again.status == Status.STATUS_UNKNOWN
    answer = await world.resolve(again)
    assert answer.version == 2
    assert world.box.identity.holder(answer.values["token"].decode()) is not None
    other = await world.connect(login_hint="acct_grace")
    assert sorted(await world.all()) == sorted([first.name, other.name])


async def test_a_link_connects_one_account_in_the_browser_that_opened_it(world: World) -> None:
    token = await world.link(connection="ada", user="user-7", return_url=RETURN)
    begun, second = await world.open(token), await world.open(token)
    back = await world.visit(begun, login_hint=ACCOUNT)
    for browser in ("", second.browser, "guess"):
        with refused(errors.NotFound, REFUSED):
            await world.relay(back, browser)
    # Nor does its maker, who has not consented to anything.
    with refused(errors.NotFound, REFUSED):
        await world.complete(back)
    done = await world.relay(back, begun.browser)
    assert (done.status, done.return_url) == (
        "connected",
        f"{RETURN}?status=connected&connection=ada",
    )
    made = await world.see("tenants/acme/connections/ada")
    assert (made.spec.user, made.spec.external_account_id) == ("user-7", ACCOUNT)

    late = await world.visit(second)
    with refused(errors.NotFound, REFUSED):
        await world.relay(late, second.browser)
    with refused(errors.NotFound, "CONNECT_LINK_REFUSED"):
        await world.open(token)
    assert world.redeemed == ["issued"]


async def test_a_link_that_is_made_stands_in_the_audit_log(world: World) -> None:
    await world.link()
    told = await (
        await world.rows.execute(
            "SELECT action, object, risk FROM registry.audit_events WHERE kind = 'ConnectLink'"
        )
    ).fetchall()
    assert told == [("create", "pay", Risk.MEDIUM)]


async def test_a_link_that_is_taken_back_connects_nobody(world: World) -> None:
    used, token = await world.link(), await world.link(user="user-7", connection="ada")
    await world.relay(await world.visit(begun := await world.open(used)), begun.browser)
    under_way = await world.open(token)
    listed = pb2.ListConnectLinksRequest(parent="tenants/acme")
    (found,) = (await world.admin.connections.ListConnectLinks(listed)).connect_links
    assert (found.integration, found.connection, found.user) == ("pay", "ada", "user-7")
    assert not found.url and found.creator and found.expire_time.seconds > found.create_time.seconds
    taken = await world.admin.connections.RevokeConnectLink(
        pb2.RevokeConnectLinkRequest(name=found.name)
    )
    assert taken == found
    with refused(errors.NotFound, "CONNECT_LINK_REFUSED"):
        await world.open(token)
    with refused(errors.NotFound, REFUSED):
        await world.relay(await world.visit(under_way), under_way.browser)
    assert not (await world.admin.connections.ListConnectLinks(listed)).connect_links
    again = pb2.RevokeConnectLinkRequest(name=found.name)
    with refused(errors.NotFound):
        await world.admin.connections.RevokeConnectLink(again)
    told = await (
        await world.rows.execute(
            "SELECT object FROM registry.audit_events WHERE kind = 'ConnectLink'"
            " AND action = 'revoke'"
        )
    ).fetchall()
    assert told == [("pay",)]


async def test_links_that_are_over_or_not_ours_open_nothing(world: World) -> None:
    token = await world.link()
    # A bit of the tenant, of the link, and of what proves that we made it.
    changed = [
        token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in (5, 40, 60)
    ]
    heard = set()
    for wrong in (*changed, token[:-1], f"{token}A", "garbage", ""):
        with refused(errors.NotFound, "CONNECT_LINK_REFUSED") as held:
            await world.open(wrong)
        heard.add(held[0].message)
    assert await world.open(token)
    await world.rows.execute("UPDATE registry.connect_links SET expires_at = now()")
    with refused(errors.NotFound, "CONNECT_LINK_REFUSED") as held:
        await world.open(token)
    assert heard == {held[0].message}
    with refused(errors.InvalidArgument):
        await world.link(return_url="https://evil.example.com/")


async def test_a_link_is_worth_what_its_maker_still_may(world: World, calling: Calls) -> None:
    maker = await calling("ADMIN", "acme")
    begun = await world.open(await world.link(maker))
    back = await world.visit(begun)
    await world.rows.execute(
        "DELETE FROM registry.role_bindings WHERE subject ="
        " (SELECT principal_id::text FROM registry.connect_links)"
    )
    assert (await world.relay(back, begun.browser)).status == "failed"
    # Nobody holds tokens that nobody may keep.
    assert (world.redeemed, world.box.identity.families, await world.all()) == ([], [], [])


OF_MAKER: Final = "(SELECT principal_id FROM registry.connect_links)"
ENDED: Final = {
    "its key was revoked": f"UPDATE registry.api_keys SET revoked_at = now()"
    f" WHERE principal_id = {OF_MAKER}",
    "its key has expired": f"UPDATE registry.api_keys SET expires_at = now()"
    f" WHERE principal_id = {OF_MAKER}",
    "it may not call": f"UPDATE registry.principals SET disabled_at = now()"
    f" WHERE principal_id = {OF_MAKER}",
    "it lost its role": f"DELETE FROM registry.role_bindings WHERE subject = {OF_MAKER}::text",
}


@pytest.mark.parametrize("end", ENDED.values(), ids=ENDED)
async def test_a_link_does_not_outlive_its_makers_right_to_make_it(
    world: World, calling: Calls, end: str
) -> None:
    token = await world.link(await calling("ADMIN", "acme"))
    begun = await world.open(token)
    back = await world.visit(begun)
    with refused(errors.NotFound, "CONNECT_LINK_REFUSED") as unknown:
        await world.open("garbage")
    await world.rows.execute(end)
    with refused(errors.NotFound, "CONNECT_LINK_REFUSED") as held:
        await world.open(token)
    assert held[0].message == unknown[0].message
    # Nor does what it had begun end in a connection.
    assert (await world.relay(back, begun.browser)).status == "failed"
    assert (world.redeemed, await world.all()) == ([], [])


async def test_a_link_asks_for_its_own_key_and_for_no_more_than_that_may(
    world: World, calling: Calls
) -> None:
    maker = await calling("ADMIN", "acme", scopes=("connections.manage",))
    token = await world.link(maker)
    uid = (await maker.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    wish = key_pb2.CreateKeyRequest(
        principal=f"principals/{uid}", display_name="other", scopes=["tenants.read"]
    )
    other = await world.owner.keys.CreateKey(wish)
    name = key_pb2.RevokeKeyRequest(name=other.key.name)
    await world.owner.keys.RevokeKey(name)
    begun = await world.open(token)
    assert (await world.relay(await world.visit(begun), begun.browser)).status == "connected"


async def test_disconnecting_ends_it_here_and_at_the_provider(world: World) -> None:
    made = await world.connect()
    token = (await world.resolve(made)).values["token"].decode()
    request = pb2.DisconnectRequest(name=made.name, reason="the account moves")
    gone = await world.admin.connections.Disconnect(request, timeout=10)
    assert gone.status == Status.STATUS_REVOKED
    assert [family.revoked for family in world.box.identity.families] == ["revoked"]
    assert world.box.identity.holder(token) is None

    # What was remembered of it is forgotten at the word of the database.
    async with asyncio.timeout(10):
        with refused(errors.FailedPrecondition, "CREDENTIAL_REVOKED"):
            while True:
                await world.resolve(made)


async def test_under_a_policy_an_account_is_connected_by_the_approval(
    world: World, calling: Calls
) -> None:
    await world.apply(resource("review_policy", "four-eyes", min_risk="MEDIUM"))
    back = await world.visit(await world.begin(connection="ada"))
    done = await world.complete(back)
    assert done.pending_revision.startswith("tenants/acme/pendingRevisions/")
    assert await world.all() == []
    other = await calling("ADMIN", "acme")
    approved = await other.config.ApproveRevision(
        config_pb2.ApproveRevisionRequest(name=done.pending_revision), timeout=10
    )
    assert approved.state == config_pb2.PendingRevision.STATE_APPLIED
    made = await world.see("tenants/acme/connections/ada")
    answer = await world.resolve(made)
    holder = world.box.identity.holder(answer.values["token"].decode())
    assert holder is not None and holder.account == ACCOUNT


async def test_what_is_there_by_another_name_stays_what_it_is(world: World) -> None:
    await world.apply(secret("robot-token", "bearer", {"token": b"a robot's own"}))
    long = "c" * 57
    names = ["robot", f"{long}-one", f"{long}-two"]
    made = [
        await world.connect(connection=name, login_hint=f"acct_{at}")
        for at, name in enumerate(names)
    ]
    assert len({each.spec.credential for each in made}) == 3
    holders = [
        world.box.identity.holder((await world.resolve(each)).values["token"].decode())
        for each in made
    ]
    assert [found and found.account for found in holders] == ["acct_0", "acct_1", "acct_2"]
    name = "tenants/acme/credentials/robot-token"
    found = await world.ingress.credentials.ResolveCredential(
        credential_pb2.ResolveCredentialRequest(name=name), timeout=5
    )
    assert dict(found.values) == {"token": b"a robot's own"}


async def test_a_connection_becomes_nobody_elses_and_no_other_account(world: World) -> None:
    made = await world.connect(connection="ada", user="user-7")
    await world.apply(
        resource("integration", "pay-two", provider="http", app="app", base_url=world.box.url,
                 environment="sandbox")
    )  # fmt: skip
    others: list[tuple[dict[str, Any], str]] = [
        ({"user": "mallory"}, ACCOUNT),
        ({"venue": "north"}, ACCOUNT),
        ({"integration": "tenants/acme/integrations/pay-two"}, ACCOUNT),
        ({"connection": "ada"}, "acct_grace"),
    ]
    for wishes, hint in others:
        begun = await world.begin(login_hint=hint, **wishes)
        with refused(errors.AlreadyExists, "ACCOUNT_CONNECTED"):
            await world.complete(await world.visit(begun))
    assert await world.see(made.name) == made
    assert await world.all() == [made.name]


async def test_in_a_disabled_tenant_no_link_opens_and_nothing_comes_back(world: World) -> None:
    token = await world.link()
    begun = await world.open(token)
    back = await world.visit(begun)
    await world.apply(tenant(enabled=False))
    with refused(errors.NotFound, REFUSED):
        await world.open(token)
    with refused(errors.NotFound, REFUSED):
        await world.relay(back, begun.browser)
    assert (world.redeemed, world.box.identity.families) == ([], [])


async def test_a_state_holds_in_its_own_tenant_alone(world: World) -> None:
    await world.owner.apply("globex", [tenant("globex")])
    back = await world.visit(await world.begin(world.owner))
    request = pb2.CompleteOAuthRequest(parent="tenants/globex", **_words(back))
    with refused(errors.NotFound, REFUSED):
        await world.owner.connections.CompleteOAuth(request, timeout=10)
    assert await world.complete(back, world.owner)


async def test_who_lent_the_key_does_not_approve_what_came_by_it(
    world: World, calling: Calls
) -> None:
    person = await calling("SUPER_ADMIN")
    uid = (await person.access.WhoAmI(access_pb2.WhoAmIRequest())).principal.uid
    wish = key_pb2.CreateKeyRequest(
        principal=f"principals/{uid}", display_name="lent", scopes=["*"]
    )
    lent = await world.owner.keys.CreateKey(wish)
    await world.apply(resource("review_policy", "four-eyes", min_risk="MEDIUM"))
    async with world.registry.caller(lent.text) as borrower:
        begun = await world.open(await world.link(borrower))
    assert (await world.relay(await world.visit(begun), begun.browser)).status == "waits"
    ((pending_id,),) = await (
        await world.rows.execute("SELECT pending_id FROM registry.pending_revisions")
    ).fetchall()
    name = f"tenants/acme/pendingRevisions/{pending_id}"
    with refused(errors.PermissionDenied, "SELF_APPROVAL"):
        await world.owner.config.ApproveRevision(
            config_pb2.ApproveRevisionRequest(name=name), timeout=10
        )
