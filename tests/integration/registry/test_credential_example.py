"""The example of an app and its tokens does what it says, against a provider on this machine."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from tenon.registry.v1 import connection_service_pb2 as connection_pb2

from config.reading import read
from config.resolve import Batch, resolve_secrets
from services.registry.settings import Settings
from services.sandbox.server import Box, sandbox
from tests.integration.registry.callers import Caller
from tests.integration.registry.conftest import Calls
from tests.integration.registry.credential_calls import resolve
from tests.wiring import settings

EXAMPLE: Final = Path(__file__).parents[3] / "config" / "examples" / "oauth"
ITS_SANDBOX: Final = "127.0.0.1:50990"
TENANT: Final = "harbor"


@pytest.fixture
async def provider() -> AsyncIterator[Box]:
    async with sandbox("unused") as box:
        yield box


@pytest.fixture
def registry_settings(provider: Box) -> Settings:
    port = provider.url.rpartition(":")[2]
    return settings(egress_allow=f"127.0.0.1/32:{port}", public_url="https://tenon.example")


@pytest.fixture
def example(provider: Box, tmp_path: Path) -> Batch:
    """What the command would send for it, made for the provider that runs."""
    folder = tmp_path / "oauth"
    shutil.copytree(EXAMPLE, folder)
    for path in folder.glob("*.yaml"):
        address = provider.url.removeprefix("http://")
        path.write_text(path.read_text().replace(ITS_SANDBOX, address))
    found = read([folder])
    environment = {
        "HARBOR_LEDGER_CLIENT_ID": provider.identity.client_id,
        "HARBOR_LEDGER_CLIENT_SECRET": provider.identity.client_secret.reveal_text(),
    }
    (batch,), problems = resolve_secrets(found.documents, environment)
    assert not found.problems and not problems and batch.tenant == TENANT
    return batch


async def test_it_is_applied_and_its_tokens_come_by_themselves(
    owner: Caller, calling: Calls, provider: Box, example: Batch
) -> None:
    await owner.apply(TENANT, example.resources)
    assert not (await owner.plan(TENANT, example.resources)).changes
    executor = await calling("EXECUTOR", kind="service")
    found = await resolve(executor, "ledger-token", TENANT)
    assert found.type == "oauth2" and list(found.allowed_endpoints) == [f"{provider.url}/*"]
    (asked,) = provider.identity.requests
    assert (asked.grant, asked.outcome) == ("client_credentials", "issued")
    assert found.values["token"]
    made = await resolve(executor, "ledger-events", TENANT)
    assert made.values["secret"].startswith(b"whsec_")
    link = await owner.connections.CreateConnectLink(
        connection_pb2.CreateConnectLinkRequest(integration=f"tenants/{TENANT}/integrations/ledger")
    )
    assert link.url.startswith("https://tenon.example/connect/")
    # The tokens that came are no drift.
    assert not (await owner.plan(TENANT, example.resources)).changes
