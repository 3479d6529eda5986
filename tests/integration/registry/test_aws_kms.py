"""Key-encryption keys of KMS: real HTTP, to a server that keeps keys as KMS does, and to none."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from boto3.session import Session
from moto.server import ThreadedMotoServer

from services.chassis.errors import TenonError
from services.chassis.redaction import redact
from services.registry.keys.aws_kms import AwsKms
from services.registry.keys.providers import KeyMissing, KeyProviderDown

REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of a server that keeps keys as KMS does."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def admin(endpoint: str) -> Any:
    """Who makes keys in KMS."""
    return Session().client("kms", region_name=REGION, endpoint_url=endpoint)


@pytest.fixture
def arn(admin: Any) -> str:
    """A key in KMS."""
    return str(admin.create_key()["KeyMetadata"]["Arn"])


def kms(key_id: str, endpoint: str) -> AwsKms:
    return AwsKms(key_id, endpoint=endpoint, region=REGION)


async def test_a_key_is_made_once_and_opened_by_any_process(
    endpoint: str, admin: Any, arn: str
) -> None:
    admin.create_alias(AliasName="alias/tenon", TargetKeyId=arn)
    made = await kms("alias/tenon", endpoint).make(1)
    assert len(made.key.reveal()) == 32
    assert made.reference == arn
    assert made.key.reveal() not in made.wrapped
    # The alias may lead elsewhere by then: what was made says by which key.
    other = kms("alias/tenon-of-today", endpoint)
    assert await other.open(1, made.reference, made.wrapped) == made.key
    assert (await kms(arn, endpoint).make(1)).key != made.key


async def test_a_key_opens_for_its_own_version_alone(endpoint: str, arn: str) -> None:
    provider = kms(arn, endpoint)
    first, second = await provider.make(1), await provider.make(2)
    with pytest.raises(KeyMissing, match=f"{arn}: InvalidCiphertextException"):
        await provider.open(1, arn, second.wrapped)
    with pytest.raises(KeyMissing, match="InvalidCiphertextException"):
        await provider.open(2, arn, first.wrapped)
    assert await provider.open(2, arn, second.wrapped) == second.key


async def test_a_key_that_is_not_there_is_named(endpoint: str, arn: str) -> None:
    made = await kms(arn, endpoint).make(1)
    gone = arn.replace(arn.rsplit("/", maxsplit=1)[-1], "00000000-0000-0000-0000-000000000000")
    with pytest.raises(KeyMissing, match=f"{gone}: NotFoundException"):
        await kms(gone, endpoint).make(1)
    with pytest.raises(KeyMissing, match=f"{gone}: NotFoundException"):
        await kms(arn, endpoint).open(1, gone, made.wrapped)


async def test_no_log_shows_a_key(
    endpoint: str, arn: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = kms(arn, endpoint)
    with caplog.at_level(logging.DEBUG):
        made = await provider.make(1)
        opened = await provider.open(1, arn, made.wrapped)
    assert caplog.text == redact(caplog.text)
    assert "Plaintext" not in caplog.text
    assert opened.reveal().hex() not in redact(f"the key is {opened.reveal().hex()}")


ANSWERS = {
    "AccessDeniedException": (400, KeyMissing),
    "DisabledException": (400, KeyMissing),
    "KMSInvalidStateException": (400, KeyMissing),
    "IncorrectKeyException": (400, KeyMissing),
    "ExpiredTokenException": (400, KeyMissing),
    "ThrottlingException": (400, KeyProviderDown),
    "LimitExceededException": (400, KeyProviderDown),
    "KeyUnavailableException": (500, KeyProviderDown),
    "DependencyTimeoutException": (503, KeyProviderDown),
}


@pytest.fixture
async def refusing() -> AsyncIterator[str]:
    """A server that refuses with the code that is asked for as a key, as KMS writes it."""

    async def refuse(request: web.Request) -> web.Response:
        code = json.loads(await request.read())["KeyId"]
        return web.Response(
            status=ANSWERS[code][0],
            text=json.dumps({"__type": code}),
            content_type="application/x-amz-json-1.1",
        )

    application = web.Application()
    application.router.add_post("/", refuse)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_refusal_is_told_from_an_outage(refusing: str) -> None:
    faults = await asyncio.gather(
        *(kms(code, refusing).make(1) for code in ANSWERS), return_exceptions=True
    )
    for (code, (_, expected)), fault in zip(ANSWERS.items(), faults, strict=True):
        assert type(fault) is expected, code
        assert isinstance(fault, TenonError)
        assert code in fault.message


async def test_a_server_that_is_down_says_nothing_about_the_key() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(KeyProviderDown, match="EndpointConnectionError") as caught:
            await kms("any", nowhere).open(1, "any", b"wrapped")
    assert caught.value.code == "KEY_PROVIDER_DOWN"


async def test_without_credentials_kms_is_not_asked(
    refusing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(KeyMissing, match="NoCredentialsError"):
        await kms("AccessDeniedException", refusing).make(1)
