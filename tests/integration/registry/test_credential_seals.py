"""Secrets that are sealed in Git: opened where they were sealed for, and nowhere else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pytest
from google.protobuf.json_format import ParseDict
from tenon.registry.v1 import config_service_pb2 as config_pb2
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import wanted_pb2

from services.chassis import errors, sealed_box
from services.chassis.sealed_box import Purpose
from services.chassis.secret import Secret
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.conftest import Calls
from tests.integration.registry.credential_calls import ACME, Rows, get, put, resolve, version_of
from tests.integration.registry.documents import CANARY, resource, tenant

VALUE: Final = Secret(f"{CANARY}-in-git")
RIGHT: Final = Purpose("acme", "Credential", "sealed", "token")


async def sealing_key(who: Caller) -> pb2.SealingKey:
    return await who.credentials.GetSealingKey(pb2.GetSealingKeyRequest(parent=ACME), timeout=5)


async def seal(who: Caller, purpose: Purpose = RIGHT) -> str:
    key = await sealing_key(who)
    return sealed_box.seal(key.public_key, key.version, purpose, VALUE)


def document(sealed: str, name: str = "sealed", **more: object) -> wanted_pb2.Resource:
    spec = {"type": "bearer", "values": {"token": {"sealed": sealed}}, **more}
    return ParseDict({"metadata": {"name": name}, "credential": spec}, wanted_pb2.Resource())


async def test_what_was_sealed_for_it_opens(
    owner: Caller, executor: Caller, calling: Calls
) -> None:
    viewer = await calling("MANAGER", "acme")
    text = await seal(viewer)
    assert (await owner.apply("acme", [document(text)])).plan.changes
    assert dict((await resolve(executor, "sealed")).values) == {"token": VALUE.reveal()}
    # Sealed again it is other text and the same value.
    again = await seal(owner)
    assert again != text
    assert not (await owner.plan("acme", [document(again)])).changes
    assert (await get(owner, "sealed")).version == 1


async def test_it_may_come_with_the_tenant_and_by_a_put(owner: Caller, executor: Caller) -> None:
    text = await seal(owner, replace(RIGHT, tenant="third"))
    await owner.apply("third", [tenant("third"), document(text)])
    assert (await resolve(executor, "sealed", "third")).values["token"] == VALUE.reveal()
    await put(owner, "sealed", document(await seal(owner)).credential)
    assert (await resolve(executor, "sealed")).values["token"] == VALUE.reveal()


WRONG: Final[Mapping[str, Purpose]] = {
    "another tenant": replace(RIGHT, tenant="globex"),
    "another kind": replace(RIGHT, kind="Integration"),
    "another name": replace(RIGHT, name="other"),
    "another part": replace(RIGHT, part="key"),
}


async def test_what_was_sealed_for_something_else_is_a_fault_at_its_part(
    owner: Caller, executor: Caller
) -> None:
    private, public = sealed_box.new_pair()
    assert private
    texts = [await seal(owner, purpose) for purpose in WRONG.values()]
    good = await seal(owner)
    head, version, body = good.split(".")
    texts += [
        sealed_box.seal(public, 1, RIGHT, VALUE),
        f"{head}.{int(version) + 1}.{body}",
        f"{head}.{version}.{'A' if body[0] != 'A' else 'B'}{body[1:]}",
        good[:-4],
        CANARY,
    ]
    for text in texts:
        for ask in (owner.plan, owner.apply):
            with refused(errors.InvalidArgument) as held:
                await ask("acme", [document(text)])
            (fault,) = held[0].violations
            assert fault.field == "Credential/sealed#spec.values.token"
            assert "was not sealed for this tenant, kind, name and part" in fault.description
            assert CANARY not in str(held[0].violations) and text not in str(held[0].violations)
    with refused(errors.InvalidArgument) as held:
        await owner.apply("acme", [document(texts[0], "a"), document(texts[1], "b")])
    assert {one.field for one in held[0].violations} == {
        "Credential/a#spec.values.token",
        "Credential/b#spec.values.token",
    }
    with refused(errors.NotFound):
        await get(owner, "sealed")


@pytest.mark.parametrize("wrong", [False, True])
async def test_one_that_waits_for_approval_waits_sealed(
    owner: Caller, executor: Caller, calling: Calls, rows: Rows, wrong: bool
) -> None:
    await owner.apply("acme", [resource("review_policy", "four-eyes", min_risk="MEDIUM")])
    author, other = [await calling("ADMIN", "acme") for _ in range(2)]
    if wrong:
        with refused(errors.InvalidArgument) as held:
            await author.apply("acme", [document(await seal(owner, WRONG["another name"]))])
        assert [one.field for one in held[0].violations] == ["Credential/sealed#spec.values.token"]
        return
    text = await seal(owner)
    pending = (await author.apply("acme", [document(text)])).pending
    assert pending.name
    kept = await (await rows.execute("SELECT p::text FROM registry.pending_revisions p")).fetchall()
    assert CANARY not in str(kept) and VALUE.reveal().hex() not in str(kept)
    with refused(errors.NotFound):
        await resolve(executor, "sealed")
    request = config_pb2.ApproveRevisionRequest(name=pending.name)
    await other.config.ApproveRevision(request, timeout=5)
    found = await version_of(executor, 1, "sealed")
    assert dict(found.values) == {"token": VALUE.reveal()}


async def test_the_public_key_is_the_same_for_all_and_told_to_who_may_plan(
    owner: Caller, executor: Caller, calling: Calls
) -> None:
    assert await sealing_key(owner) == await sealing_key(owner)
    assert len((await sealing_key(owner)).public_key) == 32
    stranger = await calling("MANAGER", "globex")
    with refused(errors.PermissionDenied):
        await sealing_key(stranger)
