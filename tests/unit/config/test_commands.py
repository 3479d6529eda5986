"""The commands against a registry that answers by script, over the real channel."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from tenon.registry.v1 import (
    config_service_pb2,
    config_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    wanted_pb2,
)

from config import cli
from config.client import LARGEST_CHUNK, RegistryClient, Submission, chunks
from config.reading import read
from config.reconcile import Exit, Reconciler
from config.resolve import resolve_secrets
from services.chassis.channel import open_sync_channel
from services.chassis.errors import Aborted, DeadlineExceeded, ResourceExhausted, TenonError
from services.chassis.status import to_status

EXAMPLES = Path(__file__).parents[3] / "config/examples/acme"
SECRETS = {
    "ACME_GITHUB_TOKEN": "canary-token",
    "ACME_GITHUB_WEBHOOK_SECRET": "canary-secret",
    "ACME_NOTIFY_KEY": "canary-key",
}
Header = config_service_pb2.ConfigHeader


@dataclass(slots=True)
class Script(
    config_service_pb2_grpc.ConfigServiceServicer, tenant_service_pb2_grpc.TenantServiceServicer
):
    """What the other side answers, and what it was asked."""

    changes: int = 1
    away: int = 0
    refuse: dict[str, TenonError] = field(default_factory=dict)
    projected: list[int] = field(default_factory=lambda: [4])
    headers: list[Header] = field(default_factory=list)
    resources: list[wanted_pb2.Resource] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def PlanConfig(  # noqa: N802
        self, requests: Iterator[Any], context: Any
    ) -> config_service_pb2.Plan:
        return self._plan(self._read(requests, context, "plan"))

    def ApplyConfig(  # noqa: N802
        self, requests: Iterator[Any], context: Any
    ) -> config_service_pb2.ApplyConfigResponse:
        header = self._read(requests, context, "apply")
        return config_service_pb2.ApplyConfigResponse(revision=4, plan=self._plan(header))

    def GetTenant(  # noqa: N802
        self, request: tenant_service_pb2.GetTenantRequest, context: Any
    ) -> tenant_service_pb2.Tenant:
        revision = self.projected.pop(0) if len(self.projected) > 1 else self.projected[0]
        return tenant_service_pb2.Tenant(name=request.name, projected_revision=revision)

    def _read(self, requests: Iterator[Any], context: Any, call: str) -> Header:
        first, *rest = requests
        self.headers.append(first.header)
        self.resources += [resource for part in rest for resource in part.chunk.resources]
        self.keys |= {str(v) for k, v in context.invocation_metadata() if k == "authorization"}
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        for key in (call, f"{call} {first.header.tenant}"):
            if key in self.refuse:
                _refuse(context, self.refuse[key])
        header: Header = first.header
        return header

    def _plan(self, header: Header) -> config_service_pb2.Plan:
        change = config_service_pb2.Change(kind="Tenant", name=header.tenant)
        return config_service_pb2.Plan(
            tenant=header.tenant,
            base_revision=3,
            plan_hash=f"hash-{header.tenant}",
            changes=[change] * self.changes,
        )


def _refuse(context: Any, error: TenonError) -> NoReturn:
    context.abort_with_status(to_status(error, "r1"))
    raise AssertionError


@pytest.fixture
def script() -> Script:
    return Script()  # type: ignore[abstract]


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    config_service_pb2_grpc.add_ConfigServiceServicer_to_server(script, server)
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


Tenon = Callable[..., int]


@pytest.fixture
def tenon(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    (tmp_path / "key").write_text("tnk_test_key\n")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TENON_REGISTRY", address)
    monkeypatch.setenv("TENON_KEY_FILE", str(tmp_path / "key"))

    def run(*words: str | Path) -> int:
        parser = argparse.ArgumentParser()
        cli.register(parser.add_subparsers())
        args = parser.parse_args([str(word) for word in words])
        code: int = args.run(args)
        return code

    return run


def test_a_plan_sends_everything_with_the_key_and_exits_by_what_it_finds(
    tenon: Tenon, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tenon("plan", EXAMPLES, "--source", "git", "--commit", "abc") == 2
    (header,) = script.headers
    assert (header.tenant, header.source, header.commit) == ("acme", "git", "abc")
    assert not header.HasField("base_revision")
    assert script.keys == {"Bearer tnk_test_key"}
    assert len(script.resources) == 9
    token = next(r for r in script.resources if r.metadata.name == "github-token")
    assert token.credential.values["token"].plain == b"canary-token"
    said = capsys.readouterr()
    assert "tenant acme at revision 3" in said.out
    assert "canary" not in said.out + said.err
    script.changes = 0
    assert tenon("plan", EXAMPLES) == 0


def test_an_apply_is_bound_to_the_plan_it_showed(
    tenon: Tenon, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tenon("apply", EXAMPLES) == 0
    planned, applied = script.headers
    assert (applied.base_revision, applied.plan_hash) == (3, "hash-acme")
    assert applied.request_id
    assert not planned.request_id
    assert "tenant acme: applied, now at revision 4" in capsys.readouterr().out


def test_nothing_to_do_is_not_applied(tenon: Tenon, script: Script) -> None:
    script.changes = 0
    assert tenon("apply", EXAMPLES) == 0
    assert len(script.headers) == 1


def test_apply_waits_until_the_executor_works_by_it(tenon: Tenon, script: Script) -> None:
    script.projected = [3, 3, 4]
    assert tenon("apply", EXAMPLES, "--wait") == 0
    assert script.projected == [4]


def test_a_registry_that_is_away_is_asked_again_with_the_same_request_id(
    address: str, script: Script
) -> None:
    script.away = 5
    wanted = Submission("acme", "cli", [resource(10)])
    plan = config_service_pb2.Plan(base_revision=3, plan_hash="h")
    with open_sync_channel(address) as channel:
        client = RegistryClient(channel, sleep=lambda _: None)
        assert client.apply(wanted, plan, "one-id").revision == 4
    assert [header.request_id for header in script.headers] == ["one-id"] * 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Aborted("moved"), 5),
        (TenonError("no"), 1),
        (ResourceExhausted("too many deletions", reason="DELETION_BUDGET"), 4),
    ],
)
def test_a_refused_apply_has_its_own_exit_code(
    tenon: Tenon,
    script: Script,
    capsys: pytest.CaptureFixture[str],
    error: TenonError,
    code: int,
) -> None:
    script.refuse = {"apply": error}
    assert tenon("apply", EXAMPLES) == code
    assert "tenant acme: " in capsys.readouterr().err


def test_one_tenant_that_fails_does_not_stop_the_others(
    tenon: Tenon, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "apiVersion: tenon/v1\nkind: Tenant\nmetadata: {{name: {}}}\nspec: {{}}\n"
    path = tmp_path / "tenants.yaml"
    path.write_text("---\n".join(text.format(name) for name in ("globex", "acme", "initech")))
    script.refuse = {"apply acme": Aborted("moved")}
    assert tenon("apply", path, "--output", "json") == 5
    document = json.loads(capsys.readouterr().out)
    assert [(t["tenant"], t["exit"]) for t in document["tenants"]] == [
        ("acme", 5),
        ("globex", 0),
        ("initech", 0),
    ]
    assert document["problems"][0]["message"] == "moved"


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_wrong_files_stop_everything_before_anybody_is_asked(
    tenon: Tenon,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES, source)
    monkeypatch.delenv("ACME_NOTIFY_KEY")
    assert tenon(command, source) == 1
    assert "credentials.yaml:27:16: the environment variable named" in capsys.readouterr().err
    (source / "more.yaml").write_text("a: [")
    assert tenon(command, source) == 1
    assert "more.yaml:1:5: not YAML" in capsys.readouterr().err
    assert script.headers == []


def test_an_unreachable_registry_is_named_with_what_to_try(
    tenon: Tenon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tenon("plan", EXAMPLES, "--registry", "127.0.0.1:1") == 1
    err = capsys.readouterr().err
    assert "the registry at 127.0.0.1:1 cannot be reached: is it running (`make up`)?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key-file", "/nowhere/key"], "/nowhere/key: the key"),
        (["--key-file", str(EXAMPLES / "tenant.yaml")], "not a key"),
        (["--ca-file", "/nowhere/ca"], "/nowhere/ca: the CA file"),
        (["--registry", "registry.example:50051"], "is not on this machine"),
    ],
)
def test_a_channel_that_cannot_be_opened_is_explained(
    tenon: Tenon, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert tenon("plan", EXAMPLES, *options) == 1
    assert message in capsys.readouterr().err


def resource(size: int, name: str = "r") -> wanted_pb2.Resource:
    found = wanted_pb2.Resource()
    found.metadata.name = name
    found.connector.description = "x" * size
    return found


def test_chunks_keep_the_order_and_stay_below_a_mebibyte() -> None:
    wanted = [resource(size, str(size)) for size in (400_000, 600_000, 1_000_000, 10, 20)]
    found = list(chunks(wanted))
    assert [r for chunk in found for r in chunk.resources] == wanted
    sizes = [config_service_pb2.PlanConfigRequest(chunk=chunk).ByteSize() for chunk in found]
    assert len(sizes) == 2
    assert max(sizes) <= LARGEST_CHUNK


def test_a_chunk_at_the_limit_fits_and_one_past_it_is_refused() -> None:
    largest = next(
        size for size in range(LARGEST_CHUNK, 0, -1) if len(_chunked(resource(size))) == 1
    )
    (chunk,) = _chunked(resource(largest))
    assert config_service_pb2.PlanConfigRequest(chunk=chunk).ByteSize() <= LARGEST_CHUNK
    with pytest.raises(ResourceExhausted):
        list(chunks([resource(largest + 1)]))
    with pytest.raises(ResourceExhausted):
        list(chunks([resource(1_000_000)] * 17))


def _chunked(one: wanted_pb2.Resource) -> list[config_service_pb2.ConfigChunk]:
    try:
        return list(chunks([one]))
    except ResourceExhausted:
        return []


def test_waiting_ends_when_the_executor_stays_behind(address: str, script: Script) -> None:
    script.projected = [3]
    clock = iter(range(100))
    with open_sync_channel(address) as channel:
        client = RegistryClient(channel, sleep=lambda _: None, now=lambda: next(clock))
        with pytest.raises(DeadlineExceeded, match="is it running"):
            client.wait_projected("acme", 4, timeout_s=10)
        assert next(clock) == 11


def test_an_apply_whose_wait_fails_still_says_what_it_applied(script: Script, address: str) -> None:
    script.projected = [3]
    clock = iter(range(0, 1000, 10))
    (batch,), _ = resolve_secrets(read([EXAMPLES]).documents, SECRETS)
    with open_sync_channel(address) as channel:
        client = RegistryClient(channel, sleep=lambda _: None, now=lambda: next(clock))
        outcome = Reconciler(client, address, "cli").apply(batch, lambda _: None, wait=True)
    assert (outcome.exit, outcome.revision) == (Exit.ERROR, 4)
    assert "applied as revision 4" in outcome.problems[0].message


def test_a_large_submission_survives_a_registry_that_is_away(address: str, script: Script) -> None:
    """The channel itself retries only what fits its buffer."""
    script.away = 1
    wanted = Submission("acme", "cli", [resource(900_000) for _ in range(3)])
    with open_sync_channel(address) as channel:
        plan = RegistryClient(channel, sleep=lambda _: None).plan(wanted)
    assert plan.tenant == "acme"
    assert len(script.headers) == 2
