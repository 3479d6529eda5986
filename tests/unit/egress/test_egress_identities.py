"""Client certificates: shown to whom they are for, each over connections of its own."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from services.chassis.egress import (
    BadIdentity,
    ConnectFailed,
    Egress,
    EgressError,
    Identity,
    Request,
    Unsendable,
    parse_allow,
)
from services.chassis.egress_identities import Identities
from services.chassis.secret import Secret
from tests.certificates import Authority
from tests.tls_receiver import TlsReceiver, issued, tls_receiver


@pytest.fixture
def clients(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "clients", "clients")


@pytest.fixture
async def receiver(
    tmp_path: Path, clients: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TlsReceiver]:
    async with tls_receiver(tmp_path, clients, monkeypatch) as made:
        yield made


@pytest.fixture
async def out(receiver: TlsReceiver) -> AsyncIterator[Egress]:
    async with Egress(parse_allow(f"127.0.0.1/32:{receiver.port}")) as egress:
        yield egress


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def identity(authority: Authority, name: str, known_as: str = "") -> Identity:
    return Identity(known_as or name, **issued(authority, name))


def post(receiver: TlsReceiver, shown: Identity | None) -> Request:
    return Request("POST", receiver.url, {}, b"{}", identity=shown)


async def test_a_certificate_is_shown_over_connections_of_its_own(
    out: Egress, receiver: TlsReceiver, clients: Authority
) -> None:
    ours, theirs = identity(clients, "ours"), identity(clients, "theirs")
    for shown in (ours, ours, theirs, ours, theirs):
        assert (await out.send(post(receiver, shown))).status == 200
    assert receiver.names == ["ours", "ours", "theirs", "ours", "theirs"]
    connections = [port for _, port in receiver.got]
    assert connections[0] == connections[1] == connections[3]
    assert connections[2] == connections[4] != connections[0]


async def test_the_same_certificate_for_somebody_else_goes_over_another_connection(
    out: Egress, receiver: TlsReceiver, clients: Authority
) -> None:
    values = issued(clients, "shared")
    for name in ("one/c/1", "two/c/1"):
        await out.send(post(receiver, Identity(name, **values)))
    (_, first), (_, second) = receiver.got
    assert first != second


async def test_nobody_elses_certificate_and_none_is_refused(
    out: Egress, receiver: TlsReceiver, clients: Authority, tmp_path: Path
) -> None:
    await out.send(post(receiver, identity(clients, "ours")))
    stranger = identity(Authority(tmp_path / "strangers", "strangers"), "stranger")
    for shown in (stranger, None):
        with pytest.raises(EgressError):
            await out.send(post(receiver, shown))
    assert receiver.names == ["ours"]


async def test_who_answers_is_checked_as_ever(
    receiver: TlsReceiver, clients: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = Authority(tmp_path / "others", "others")
    monkeypatch.setenv("SSL_CERT_FILE", str(others.certificate))
    async with Egress(parse_allow("127.0.0.1/32:*")) as out:
        with pytest.raises(ConnectFailed, match="certificate is not accepted"):
            await out.send(post(receiver, identity(clients, "ours")))
    assert receiver.got == []


async def test_a_certificate_that_cannot_be_shown_is_said_and_nothing_is_sent(
    out: Egress, receiver: TlsReceiver, clients: Authority
) -> None:
    good, other = issued(clients, "good"), issued(clients, "other")
    key = load_pem_private_key(good["private_key"].reveal(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    for number, wrong in enumerate(
        (
            {**good, "private_key": other["private_key"]},
            {**good, "private_key": Secret(locked)},
            {**good, "certificate": Secret("no certificate")},
            {"certificate": Secret(""), "private_key": Secret("")},
        )
    ):
        for _ in range(2):
            with pytest.raises(BadIdentity) as refused:
                await out.send(post(receiver, Identity(f"wrong-{number}", **wrong)))
        assert refused.value.fault == "certificate"
    with pytest.raises(Unsendable, match="https"):
        await out.send(Request("GET", "http://127.0.0.1/", identity=Identity("x", **good)))
    assert receiver.got == []


async def test_so_many_contexts_are_kept_and_no_descriptor(clients: Authority) -> None:
    identities = Identities(most=2)
    values = issued(clients, "many")
    await identities.context(Identity("0", **values))
    before = open_files()
    first = [await identities.context(Identity(name, **values)) for name in "abab"]
    assert first[0] is first[2] and first[1] is first[3] and first[0] is not first[1]
    await identities.context(Identity("c", **values))
    assert await identities.context(Identity("b", **values)) is first[1]
    assert await identities.context(Identity("a", **values)) is not first[0]
    assert open_files() <= before


async def test_what_could_not_be_read_once_is_read_again(
    clients: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities, shown = Identities(), identity(clients, "late")

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr(os, "memfd_create", none_left)
        with pytest.raises(ConnectFailed):
            await identities.context(shown)
    assert await identities.context(shown) is await identities.context(shown)
