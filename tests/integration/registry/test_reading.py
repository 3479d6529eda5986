"""Lists and snapshots of wanted state."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tenon.registry.v1 import audit_service_pb2 as audit_pb2
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import credential_service_pb2 as credential_pb2
from tenon.registry.v1 import integration_service_pb2 as integration_pb2
from tenon.registry.v1 import tenant_service_pb2 as tenant_pb2

from services.chassis import errors
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme

Ask = Callable[..., Awaitable[Any]]
COUNT = 11


def asks(owner: Caller) -> dict[str, tuple[Ask, str]]:
    """For each list: how to ask for a page of it, and which field has the things."""

    async def integrations(**page: Any) -> Any:
        request = integration_pb2.ListIntegrationsRequest(parent="tenants/acme", **page)
        return await owner.integrations.ListIntegrations(request)

    async def credentials(**page: Any) -> Any:
        request = credential_pb2.ListCredentialsRequest(parent="tenants/acme", **page)
        return await owner.credentials.ListCredentials(request)

    async def revisions(**page: Any) -> Any:
        request = config_pb2.ListRevisionsRequest(parent="tenants/acme", **page)
        return await owner.config.ListRevisions(request)

    async def events(**page: Any) -> Any:
        paging = {name: page.pop(name) for name in ("page_size", "page_token") if name in page}
        asked = audit_pb2.AuditFilter(**{"kind": "Integration"} | page)
        request = audit_pb2.ListAuditEventsRequest(parent="tenants/acme", filter=asked, **paging)
        return await owner.audit.ListAuditEvents(request)

    async def tenants(**page: Any) -> Any:
        return await owner.tenants.ListTenants(tenant_pb2.ListTenantsRequest(**page))

    return {
        "integrations": (integrations, "integrations"),
        "credentials": (credentials, "credentials"),
        "revisions": (revisions, "revisions"),
        "events": (events, "audit_events"),
        "tenants": (tenants, "tenants"),
    }


@pytest.fixture
async def many(owner: Caller) -> None:
    """Eleven of everything a list lists."""
    await owner.apply("acme", [documents.tenant()])
    for number in range(1, COUNT):
        await owner.apply(
            "acme",
            [
                documents.credential(f"c{number:02}", token=b"x"),
                documents.integration(
                    f"i{number:02}",
                    credential=f"c{number:02}",
                    environment="sandbox" if number % 2 else "production",
                    is_active=number > 3,
                    is_primary=number == 1,
                ),
            ],
        )
        await owner.apply(f"t{number:02}", [documents.tenant(f"t{number:02}")])
    last = [documents.credential("c11", token=b"x"), documents.integration("i11", credential="c11")]
    await owner.apply("acme", last)


@pytest.mark.usefixtures("many")
async def test_pages_walk_everything_exactly_once(owner: Caller) -> None:
    for name, (ask, field) in asks(owner).items():
        whole = [each.name for each in getattr(await ask(), field)]
        assert len(whole) == len(set(whole)) >= COUNT, name
        for size in (1, 3, len(whole), len(whole) + 1):
            walked, token, pages = [], "", 0
            while True:
                page = await ask(page_size=size, page_token=token)
                walked += [each.name for each in getattr(page, field)]
                token, pages = page.next_page_token, pages + 1
                if not token:
                    break
            assert walked == whole, (name, size)
            assert pages == -(-len(whole) // size), (name, size)


@pytest.mark.usefixtures("many")
async def test_a_foreign_token_and_a_negative_size_are_refused(owner: Caller) -> None:
    tokens = {
        name: (await ask(page_size=1)).next_page_token for name, (ask, _) in asks(owner).items()
    }
    for name, (ask, _) in asks(owner).items():
        with refused(errors.InvalidArgument):
            await ask(page_size=-1)
        for token in (
            "x",
            tokens[name][:-1] + "!",
            "ä",
            tokens["integrations" if name != "integrations" else "events"],
        ):
            with refused(errors.InvalidArgument):
                await ask(page_token=token)
    ask, _ = asks(owner)["integrations"]
    with refused(errors.InvalidArgument):
        await ask(page_token=tokens["integrations"], provider="github")
    ask, _ = asks(owner)["events"]
    with refused(errors.InvalidArgument):
        await ask(page_token=tokens["events"], kind="Credential")


@pytest.mark.usefixtures("many")
async def test_filters_narrow_lists(owner: Caller) -> None:
    integrations, _ = asks(owner)["integrations"]

    async def names(**filters: Any) -> list[str]:
        answer = await integrations(**filters)
        return [each.name.rpartition("/")[2] for each in answer.integrations]

    assert await names(environment="sandbox") == ["i01", "i03", "i05", "i07", "i09"]
    assert await names(active=False) == ["i01", "i02", "i03"]
    assert await names(primary=True) == ["i01"]
    assert len(await names(primary=False)) == COUNT - 1
    assert await names(provider="http") == []
    assert await names(environment="sandbox", active=True) == ["i05", "i07", "i09"]
    events, _ = asks(owner)["events"]
    assert {e.object for e in (await events(object="i03")).audit_events} == {"i03"}
    assert {e.kind for e in (await events(kind="Credential")).audit_events} == {"Credential"}
    risky = (await events(kind="", min_risk=3)).audit_events
    assert {e.kind for e in risky} == {"Credential", "Integration"}
    assert (await events(min_risk=4)).audit_events == []


async def test_one_integration_is_told_whole(owner: Caller) -> None:
    await owner.apply("acme", acme())
    request = integration_pb2.GetIntegrationRequest(name="tenants/acme/integrations/github")
    found = await owner.integrations.GetIntegration(request)
    assert (found.name, found.category, found.spec.credential) == (request.name, "scm", "token")
    assert found.spec.config["owner"] == "acme" and found.spec.is_active
    assert found.spec.environment == "production"
    await owner.apply("acme", [documents.subscription(event_types=["push"])])
    assert (await owner.integrations.GetIntegration(request)).etag == found.etag
    await owner.apply("acme", [documents.integration()])
    assert (await owner.integrations.GetIntegration(request)).etag != found.etag
    request.name = "tenants/acme/integrations/none"
    with refused(errors.NotFound):
        await owner.integrations.GetIntegration(request)


async def test_a_snapshot_has_every_default_filled_in(owner: Caller) -> None:
    await owner.apply("acme", acme())
    found = await owner.snapshot("acme")
    assert len(found) == 6
    step = found["connector", "triage"].resource.connector.steps[0]
    assert (step.timeout.ToJsonString(), step.retry.max_attempts) == ("30s", 3)
    assert step.retry.cap.ToJsonString() == "60s"
    github = found["integration", "github"].resource.integration
    assert (github.environment, github.is_active, github.is_primary) == ("production", True, False)
    assert found["webhook_endpoint", "events"].resource.webhook_endpoint.direction == "INBOUND"
    assert found["credential", "token"].resource.credential.values["token"].plain == b""


async def test_a_snapshot_is_of_one_moment(owner: Caller, calling: Calls) -> None:
    """All subscriptions say the same number at every revision; a torn snapshot would show two."""
    executor = await calling("EXECUTOR", kind="service")

    def change(number: int) -> list[Any]:
        return [
            documents.subscription(f"s{each:02}", event_types=[f"kind.n{number}"])
            for each in range(40)
        ]

    await owner.apply("acme", [*acme()[:-1], *change(0)])
    done = asyncio.Event()

    async def keep_changing() -> None:
        for number in range(1, 15):
            await owner.apply("acme", change(number))
        done.set()

    async def keep_reading() -> set[int]:
        seen = set()
        while not done.is_set():
            head, kinds = 0, set()
            request = config_pb2.GetSnapshotRequest(name="tenants/acme")
            async for part in executor.config.GetSnapshot(request):
                head = part.head.revision or head
                kinds |= {
                    one.resource.subscription.event_types[0]
                    for one in part.chunk.objects
                    if one.resource.WhichOneof("spec") == "subscription"
                }
            assert kinds == {f"kind.n{head - 1}"}
            seen.add(head)
        return seen

    _, first, second = await asyncio.gather(keep_changing(), keep_reading(), keep_reading())
    assert len(first | second) > 3


async def test_what_the_executor_works_by_is_seen_and_never_goes_back(
    owner: Caller, calling: Calls, registry: Registry
) -> None:
    await owner.apply("acme", acme())
    executor = await calling("EXECUTOR", kind="service")
    for revision in (3, 2):
        await executor.config.ReportProjection(
            config_pb2.ReportProjectionRequest(
                name=f"tenants/{await registry.tenant_id('acme')}", revision=revision
            )
        )
    tenant = await owner.tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme"))
    assert (tenant.display_name, tenant.enabled, tenant.revision) == ("Acme", True, 1)
    assert tenant.projected_revision == 3
    listed = await owner.tenants.ListTenants(tenant_pb2.ListTenantsRequest())
    assert list(listed.tenants) == [tenant]
