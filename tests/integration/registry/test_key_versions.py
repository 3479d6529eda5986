"""Versions of the key-encryption key: begun, waited for, used, disabled, given up."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tenon.registry.v1 import credential_service_pb2 as credentials
from tenon.registry.v1 import principal_service_pb2 as principals
from tenon.registry.v1 import vault_service_pb2 as pb2

from services.chassis import envelope, errors, sealed_box
from services.chassis.database import Database
from services.chassis.secret import Secret
from services.registry import opening
from services.registry.credentials.tampering import Tampering
from services.registry.keys import ring
from services.registry.keys.holding import Holding, WrongKeyError
from services.registry.keys.providers import KeyMissing
from services.registry.keys.rewrapping import Rewrapping
from services.registry.keys.sealing_keys import SealingKeys
from services.registry.keys.vault import Vault
from services.registry.settings import Settings
from tests.conftest import Conninfos
from tests.integration.registry import documents
from tests.integration.registry.apps import until
from tests.integration.registry.callers import Caller, Registry, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.documents import acme
from tests.wiring import settings

Rows = psycopg.AsyncConnection[tuple[Any, ...]]
State = pb2.KeyVersion.State
ELSEWHERE = "elsewhere"


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    """The file that the registry has its keys from."""
    path = tmp_path / "keyring"
    path.touch(0o600)
    return path


@pytest.fixture
def registry_settings(keyring: Path) -> Settings:
    return settings(key_encryption_key=None, key_encryption_key_file=keyring)


@pytest.fixture
def leader(registry: Registry) -> Rewrapping:
    return leading(registry)


def leading(registry: Registry) -> Rewrapping:
    """What the leader does, a round at a time."""
    log = opening.open_log(registry.vault)
    return Rewrapping(
        *(registry.database, registry.vault, registry.holding, log),
        *(Tampering(registry.database, log), timedelta(days=200)),
    )


@asynccontextmanager
async def another(
    registry: Registry, told: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Holding]:
    """Another registry, on a host of its own, that has said which keys it has."""
    async with opening.open_vault(told, registry.database) as (_, holding):
        await on_its_host(holding, monkeypatch)
        yield holding


async def on_its_host(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another registry look for keys and tell, as it does every two seconds."""
    await holding.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: ELSEWHERE)
        await holding.tell()


def line_of(keyring: Path, version: int) -> str:
    return next(line for line in keyring.read_text().splitlines() if line.startswith(f"{version}:"))


async def create(owner: Caller, registry: Registry, **asked: str) -> pb2.KeyVersion:
    """Begin a version; the registry has it at once."""
    made = await owner.vault.CreateKeyVersion(pb2.CreateKeyVersionRequest(**asked))
    await registry.holding.refresh()
    await registry.holding.tell()
    return made


async def rotate(owner: Caller, registry: Registry, leader: Rewrapping) -> None:
    await create(owner, registry)
    await leader.round()


async def versions(owner: Caller) -> dict[int, pb2.KeyVersion]:
    listed = await owner.vault.ListKeyVersions(pb2.ListKeyVersionsRequest())
    return {each.version: each for each in listed.versions}


async def states(owner: Caller) -> list[str]:
    """From the oldest version to the newest."""
    found = sorted((await versions(owner)).items())
    return [State.Name(each.state).removeprefix("STATE_") for _, each in found]


async def progress(owner: Caller) -> list[pb2.RewrapProgress]:
    return [each async for each in owner.vault.Rewrap(pb2.RewrapRequest(), timeout=20)]


async def first_progress(owner: Caller) -> pb2.RewrapProgress:
    stream = owner.vault.Rewrap(pb2.RewrapRequest(), timeout=20)
    found = await anext(aiter(stream))
    stream.cancel()
    return found


async def take(owner: Caller, step: str, version: int, **asked: str) -> pb2.KeyVersion:
    request = getattr(pb2, f"{step}KeyVersionRequest")(version=version, **asked)
    found: pb2.KeyVersion = await getattr(owner.vault, f"{step}KeyVersion")(request)
    return found


async def service(owner: Caller, name: str, request_id: str) -> str:
    """A principal of the platform, by a request that may be repeated; its uid."""
    request = principals.CreatePrincipalRequest(
        kind="service", display_name=name, request_id=request_id
    )
    return (await owner.principals.CreatePrincipal(request)).uid


@pytest.mark.parametrize("provider", ["file", "environment"])
async def test_the_first_start_makes_version_1_and_no_other_key_starts_after(
    registry_database: Database, keyring: Path, rows: Rows, provider: str
) -> None:
    def told() -> Settings:
        if provider == "environment":
            return settings()
        return settings(key_encryption_key=None, key_encryption_key_file=keyring)

    first = told()
    async with opening.open_vault(first, registry_database) as (vault, _):
        key = vault.ring.key(1)
    query = "SELECT version, state, provider, proof, wrapped FROM registry.key_versions"
    ((version, state, name, proof, wrapped),) = await (await rows.execute(query)).fetchall()
    assert (version, state, name, wrapped) == (1, "active", provider, b"")
    assert len(proof) == 32 and key.reveal() not in proof
    async with opening.open_vault(first, registry_database) as (again, _):
        assert again.ring.key(1) == key
    if provider == "file":
        assert line_of(keyring, 1) == f"1:{key.reveal().hex()}"
        keyring.write_text("1:" + "ab" * 32)
    with pytest.raises(WrongKeyError) as wrong:
        async with opening.open_vault(told(), registry_database):
            pass
    assert key.reveal().hex() not in str(wrong.value)
    if provider == "file":
        keyring.write_text("")
        with pytest.raises(KeyMissing, match="1:"):
            async with opening.open_vault(told(), registry_database):
                pass


async def test_a_version_waits_until_every_registry_has_it(
    registry: Registry,
    owner: Caller,
    leader: Rewrapping,
    keyring: Path,
    registry_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    copy.write_text(keyring.read_text())
    told = settings(key_encryption_key=None, key_encryption_key_file=copy)
    async with another(registry, told, monkeypatch) as other:
        made = await create(owner, registry)
        assert (made.version, made.state, made.provider) == (2, State.STATE_PENDING, "file")
        for wrong in ("", "2:" + "ab" * 32):
            copy.write_text("\n".join([line_of(keyring, 1), wrong]))
            await on_its_host(other, monkeypatch)
            await leader.round()
            assert await states(owner) == ["ACTIVE", "PENDING"]
            found = await first_progress(owner)
            assert (list(found.waiting_for), found.version) == ([ELSEWHERE], 2)
            assert found.done < found.total
        listed = await owner.vault.ListKeyVersions(pb2.ListKeyVersionsRequest())
        held = {holder.host: list(holder.versions) for holder in listed.holders}
        assert held.pop(ELSEWHERE) == [1] and list(held.values()) == [[1, 2]]
        # A registry that starts anew without the line is one that lacks it.
        async with opening.open_vault(told, registry.database) as (late, _):
            assert set(late.ring.keys) == {1}

        with refused(errors.FailedPrecondition, "KEY_VERSION_PENDING"):
            await create(owner, registry)
        assert "3:" not in keyring.read_text()

        copy.write_text(keyring.read_text())
        await on_its_host(other, monkeypatch)
        await leader.round()
        assert await states(owner) == ["DECRYPT_ONLY", "ACTIVE"]
        await other.refresh()
        assert registry.vault.ring.active == 2


@pytest.mark.parametrize("how", ["silent", "ended"])
async def test_a_registry_that_is_gone_is_not_waited_for(
    registry: Registry,
    owner: Caller,
    leader: Rewrapping,
    keyring: Path,
    tmp_path: Path,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    copy = tmp_path / "copy"
    copy.write_text(keyring.read_text())
    told = settings(key_encryption_key=None, key_encryption_key_file=copy)
    async with another(registry, told, monkeypatch) as other:
        async with other.following() if how == "ended" else nullcontext():
            await create(owner, registry)
            await leader.round()
            assert await states(owner) == ["ACTIVE", "PENDING"]
        for age in (13, 16) if how == "silent" else ():
            assert (await states(owner))[-1] == "PENDING"
            await rows.execute(
                "UPDATE registry.key_holders SET seen_at = now() - make_interval(secs => %s)"
                " WHERE holder_id = %s",
                [age, other.holder_id],
            )
            await leader.round()
    await leader.round()
    assert await states(owner) == ["DECRYPT_ONLY", "ACTIVE"]


async def test_a_leader_that_lacks_the_version_itself_does_not_let_it_wrap(
    registry: Registry, owner: Caller, leader: Rewrapping, rows: Rows
) -> None:
    log, vault = opening.open_log(registry.vault), Vault(envelope.new_key())
    blind = Rewrapping(
        *(registry.database, vault, registry.holding, log),
        *(Tampering(registry.database, log), timedelta(days=1)),
    )
    await create(owner, registry)
    await rows.execute("DELETE FROM registry.key_holders")
    await blind.round()
    assert await states(owner) == ["ACTIVE", "PENDING"]
    await leader.round()
    assert await states(owner) == ["DECRYPT_ONLY", "ACTIVE"]


async def test_all_that_a_version_wrapped_is_wrapped_by_the_next_and_opens(
    registry: Registry,
    owner: Caller,
    leader: Rewrapping,
    calling: Calls,
    registry_settings: Settings,
) -> None:
    request_id = str(uuid4())
    for slug in ("acme", "globex"):
        await owner.apply(slug, acme(slug), request_id=request_id)
    applied = await owner.apply("acme", acme(), request_id=request_id)
    uid = await service(owner, "reports", request_id)
    told = await owner.credentials.GetSealingKey(
        credentials.GetSealingKeyRequest(parent="tenants/acme")
    )
    purpose = sealed_box.Purpose("acme", "Credential", "token", "token")
    text = sealed_box.seal(told.public_key, told.version, purpose, Secret(b"sealed in Git"))
    before = await versions(owner)
    assert before[1].wraps == 2 + 1 + 2 + 1  # data keys, the sealing key, tenants' answers, ours

    await create(owner, registry)
    assert [each.version for each in await rounds(owner, leader)][-1] == 2
    after = await versions(owner)
    assert (after[1].wraps, after[2].wraps) == (0, before[1].wraps)
    assert (await progress(owner))[-1] == pb2.RewrapProgress(version=2)

    assert await owner.apply("acme", acme(), request_id=request_id) == applied
    assert await service(owner, "reports", request_id) == uid
    # By a process that has opened nothing before.
    async with opening.open_vault(registry_settings, registry.database) as (vault, _):
        private = SealingKeys(registry.database, vault)
        assert await private.opened(purpose, text) == Secret(b"sealed in Git")
    executor = await calling("EXECUTOR", kind="service")
    for slug in ("acme", "globex"):
        asked = credentials.ResolveCredentialRequest(name=f"tenants/{slug}/credentials/token")
        answer = await executor.credentials.ResolveCredential(asked)
        assert dict(answer.values) == {"token": documents.TOKEN}
    document = documents.credential("token")
    document.credential.values["token"].sealed = text
    await owner.apply("acme", [document])

    async def is_the_sealed_one() -> bool:
        asked = credentials.ResolveCredentialRequest(name="tenants/acme/credentials/token")
        answer = await executor.credentials.ResolveCredential(asked)
        return dict(answer.values) == {"token": b"sealed in Git"}

    # What is remembered is dropped within a second.
    await until(is_the_sealed_one)


async def rounds(owner: Caller, leader: Rewrapping) -> list[pb2.RewrapProgress]:
    """The progress of a rotation: the leader's round begins with the first word of it."""
    found = []
    async for each in owner.vault.Rewrap(pb2.RewrapRequest(), timeout=20):
        found.append(each)
        await leader.round()
    assert [each.done for each in found] == sorted(each.done for each in found)
    assert found[0].done == 0 and found[-1].done == found[-1].total > 0
    return found


async def test_progress_never_goes_back_though_more_is_wrapped_by_what_is_old(
    registry: Registry, owner: Caller, leader: Rewrapping, rows: Rows
) -> None:
    for number in range(3):
        await service(owner, f"service {number}", str(uuid4()))
    query = "SELECT answer, request_id FROM registry.platform_answers"
    kept = await (await rows.execute(query)).fetchall()
    late = "UPDATE registry.platform_answers SET key_version = 1, answer = %s WHERE request_id = %s"
    await create(owner, registry)
    done = []
    async for each in owner.vault.Rewrap(pb2.RewrapRequest(), timeout=20):
        done.append(each.done)
        assert each.done <= each.total
        if len(done) != 2:
            await leader.round()
        if len(done) <= 2:
            await rows.execute(late, kept.pop())
    assert done == sorted(done) and done[-1] > done[1] > 0


async def test_a_version_that_is_needed_cannot_be_disabled_and_a_destroyed_one_is_gone(
    registry: Registry,
    owner: Caller,
    leader: Rewrapping,
    registry_conninfos: Conninfos,
    rows: Rows,
) -> None:
    await owner.apply("acme", acme())
    with refused(errors.FailedPrecondition, "KEY_VERSION_STATE"):
        await take(owner, "Disable", 1)
    await create(owner, registry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leader, "_rewrap", _nothing)
        await leader.round()
    assert await states(owner) == ["DECRYPT_ONLY", "ACTIVE"]
    with refused(errors.FailedPrecondition, "KEY_VERSION_IN_USE"):
        await take(owner, "Disable", 1)
    async with await psycopg.AsyncConnection.connect(registry_conninfos[1].reveal_text()) as system:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await system.execute(
                "UPDATE registry.key_versions SET state = 'disabled' WHERE version = 1"
            )
    await leader.round()
    request_id = str(uuid4())
    for _ in range(2):
        assert (await take(owner, "Disable", 1, request_id=request_id)).state == (
            State.STATE_DISABLED
        )
    await registry.holding.refresh()
    assert set(registry.vault.ring.keys) == {2}
    with refused(errors.InvalidArgument, "REQUEST_ID_REUSED"):
        await take(owner, "Disable", 2, request_id=request_id)
    assert (await take(owner, "Enable", 1)).state == State.STATE_DECRYPT_ONLY
    await registry.holding.refresh()
    assert set(registry.vault.ring.keys) == {1, 2}
    with refused(errors.FailedPrecondition, "KEY_VERSION_STATE"):
        await take(owner, "Destroy", 1)
    await take(owner, "Disable", 1)
    assert (await take(owner, "Destroy", 1)).state == State.STATE_DESTROYED
    query = "SELECT wrapped, proof FROM registry.key_versions WHERE version = 1"
    assert await (await rows.execute(query)).fetchall() == [(b"", b"")]
    for step, version, kind in (
        ("Enable", 1, errors.FailedPrecondition),
        ("Destroy", 1, errors.FailedPrecondition),
        ("Disable", 2, errors.FailedPrecondition),
        ("Disable", 9, errors.NotFound),
    ):
        with refused(kind):
            await take(owner, step, version)
    assert await told(rows) == [
        *(("create", "version 2", 4), ("activate", "version 2", 3)),
        *(("disable", "version 1", 4), ("enable", "version 1", 3)),
        *(("disable", "version 1", 4), ("destroy", "version 1", 4)),
    ]


async def _nothing(*_: object) -> None:
    """A leader that is stopped once the new version wraps."""


async def told(rows: Rows) -> list[tuple[Any, ...]]:
    """What the platform's audit log says was done to versions, the oldest first."""
    return await (
        await rows.execute(
            "SELECT action, object, risk FROM registry.platform_audit_events"
            " WHERE kind = 'KeyVersion' AND outcome = 'done' ORDER BY seq"
        )
    ).fetchall()


async def test_a_data_key_that_was_shredded_holds_no_version_back(
    registry: Registry, owner: Caller, leader: Rewrapping, rows: Rows
) -> None:
    await owner.apply("acme", acme())
    await owner.vault.ReplaceTenantKey(pb2.ReplaceTenantKeyRequest(name="tenants/acme"))
    await leader.round()
    await rows.execute(
        "UPDATE registry.data_keys SET retired_at = now() - interval '201 days'"
        " WHERE state = 'retired'"
    )
    await leader.round()
    query = "SELECT count(*) FROM registry.data_keys WHERE state = 'shredded'"
    assert await (await rows.execute(query)).fetchall() == [(1,)]
    await rotate(owner, registry, leader)
    assert (await take(owner, "Disable", 1)).state == State.STATE_DISABLED


async def test_wraps_are_counted_and_a_worn_version_wraps_no_key_until_it_is_rotated(
    registry: Registry, owner: Caller, leader: Rewrapping, rows: Rows
) -> None:
    await registry.holding.tell()
    before = (await versions(owner))[1].wrapped_in_all
    for number in range(3):
        await service(owner, f"service {number}", str(uuid4()))
    await registry.holding.tell()
    assert (await versions(owner))[1].wrapped_in_all == before + 3

    await rows.execute("UPDATE registry.key_versions SET wraps = %s", [ring.MOST_WRAPS - 1])
    await registry.holding.refresh()
    await owner.apply("acme", acme())
    await registry.holding.tell()
    await registry.holding.refresh()
    with refused(errors.FailedPrecondition, "KEY_WORN"):
        await owner.apply("globex", acme("globex"))
    await create(owner, registry, request_id=str(uuid4()))
    await leader.round()
    await owner.apply("globex", acme("globex"))
    assert (await versions(owner))[2].wraps > 0


async def test_counting_wraps_and_a_change_of_state_do_not_lock_each_other_out(
    registry: Registry, owner: Caller, leader: Rewrapping, rows: Rows
) -> None:
    await rotate(owner, registry, leader)
    before = {number: each.wrapped_in_all for number, each in (await versions(owner)).items()}
    registry.vault.count_wraps({1: 1000, 2: 1000})
    hold = b"SELECT 1 FROM registry.key_versions WHERE version = %s FOR UPDATE"
    waits = "SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"

    async def somebody_waits() -> bool:
        return bool(await (await rows.execute(waits)).fetchall())

    async with rows.transaction():
        # As whoever changes a state holds them, the newest first.
        await rows.execute(hold, [2])
        telling = asyncio.create_task(registry.holding.tell())
        await until(somebody_waits)
        await rows.execute(hold, [1])
    await telling

    async def are_counted() -> bool:
        after = {number: each.wrapped_in_all for number, each in (await versions(owner)).items()}
        return all(after[number] >= before[number] + 1000 for number in (1, 2))

    await until(are_counted)


async def test_while_no_version_waits_the_leader_keeps_nobody_from_wrapping(
    leader: Rewrapping, rows: Rows
) -> None:
    async with rows.transaction():
        # As whoever adds a data key or a kept answer.
        await rows.execute("SELECT 1 FROM registry.key_versions FOR KEY SHARE")
        async with asyncio.timeout(3):
            await leader.round()


async def test_wraps_that_could_not_be_kept_are_counted_the_next_time(
    registry: Registry, owner: Caller, rows: Rows
) -> None:
    await registry.holding.tell()
    before = (await versions(owner))[1].wrapped_in_all
    await service(owner, "reports", str(uuid4()))
    await rows.execute("ALTER TABLE registry.key_holders RENAME TO gone")
    with pytest.raises(errors.TenonError):
        await registry.holding.tell()
    await rows.execute("ALTER TABLE registry.gone RENAME TO key_holders")
    await registry.holding.tell()
    assert (await versions(owner))[1].wrapped_in_all == before + 1


async def test_a_repeated_request_makes_no_second_version_nor_a_line_for_one(
    registry: Registry, owner: Caller, leader: Rewrapping, keyring: Path
) -> None:
    request_id = str(uuid4())
    made = await create(owner, registry, request_id=request_id)
    await leader.round()
    assert await create(owner, registry, request_id=request_id) == made
    assert await states(owner) == ["DECRYPT_ONLY", "ACTIVE"]
    assert "3:" not in keyring.read_text()


async def test_keys_are_changed_by_who_may_manage_the_vault_alone(
    registry: Registry, owner: Caller, calling: Calls
) -> None:
    await owner.apply("acme", acme())
    reader = await registry.key("SUPER_ADMIN", scopes=("vault.read",))
    ways: list[Callable[[Caller], Awaitable[object]]] = [
        lambda who: who.vault.CreateKeyVersion(pb2.CreateKeyVersionRequest()),
        progress,
        *(partial(take, step=step, version=1) for step in ("Disable", "Enable", "Destroy")),
        lambda who: who.vault.ReplaceTenantKey(pb2.ReplaceTenantKeyRequest(name="tenants/acme")),
    ]
    async with registry.caller(reader.reveal_text()) as looking:
        assert set(await versions(looking)) == {1}
        for caller in (looking, await calling("ADMIN", "acme")):
            for way in ways:
                with refused(errors.PermissionDenied):
                    await way(caller)
    with refused(errors.PermissionDenied):
        await versions(await calling("ADMIN", "acme"))
    assert await states(owner) == ["ACTIVE"]
