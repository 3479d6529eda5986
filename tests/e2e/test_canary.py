"""Secrets go through everything Tenon does, and are found nowhere afterwards."""

import base64
import json
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.types.string import TextLoader
from tenon.registry.v1 import (
    config_service_pb2,
    config_service_pb2_grpc,
    credential_service_pb2,
    credential_service_pb2_grpc,
)

from services.chassis.channel import open_sync_channel
from services.chassis.secret import Secret
from services.embedded import Embedded
from tests.accounts import descendants
from tests.e2e import canary_calls
from tests.family import Family, family_on, until

SCHEMAS: Final = ("registry", "executor")
LAST: Final = "SELECT state, failure_reason FROM executor.executions WHERE trigger_id = %s::uuid AND ended_at IS NOT NULL"
CALL_S: Final = 20.0
OF_YAML: Final = {"github-token", "github-webhook", "notify-key", "from-file"}
BEARER: Final = """
apiVersion: tenon/v1
kind: Credential
metadata: {{name: {name}, tenant: acme}}
spec: {{type: bearer, values: {{token: {{{form}: {text}}}}}}}
"""


def canary(name: str) -> str:
    """A secret with signs that each encoding spells in its own way."""
    return f"cnry-{name}+{secrets.token_hex(12)}/{secrets.token_hex(4)}="


@dataclass
class Canaries:
    """Every secret by name, each in all its spellings."""

    values: dict[str, str] = field(default_factory=dict)

    def found_in(self, where: bytes) -> set[str]:
        """The names of those that are there."""
        return {
            name
            for name, value in self.values.items()
            if any(spelling in where for spelling in spellings(value.encode()))
        }


def spellings(value: bytes) -> list[bytes]:
    """As it is, in hex, percent-encoded, and in base64 however it is aligned there."""
    plain = [value, value.hex().encode(), value.hex().upper().encode()]
    plain += [urllib.parse.quote(value, safe=safe).encode() for safe in ("", "/")]
    plain += [urllib.parse.quote_plus(value).encode(), json.dumps(value.decode())[1:-1].encode()]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            # What a character at either end is, its neighbours decide too.
            whole = encode(bytes(shift) + value)
            plain.append(whole[4 if shift else 0 : -4])
    return plain


@dataclass
class Stage:
    """The family, and all that anybody has said to a person."""

    family: Family
    canaries: Canaries
    said: dict[str, bytes] = field(default_factory=dict)

    def tenon(
        self, *arguments: object, expect: int = 0, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a command whose words are kept; what it said on standard output."""
        done = self.family.tenon(*arguments, environment=environment)
        assert done.returncode == expect, done.stdout + done.stderr
        said = (done.stdout + done.stderr).encode()
        self.keep(f"tenon {' '.join(map(str, arguments))}", said)
        return done.stdout

    def keep(self, what: str, said: bytes) -> None:
        """Keep what was said."""
        self.said[f"{len(self.said)}: {what}"] = said

    def run(self, expect: tuple[str, str]) -> None:
        """A webhook, and how the connector it starts ends."""
        body = json.dumps(
            {
                "action": "opened",
                "issue": {"number": 9, "locked": False},
                "repository": {"name": "shop", "owner": {"login": "acme"}},
                "sender": {"login": "octocat"},
            }
        ).encode()
        status, answer = self.family.webhook(body)
        assert status == 202
        self.keep("webhook", json.dumps(answer).encode())
        assert until(lambda: self.family.rows(LAST, answer["event"])) == [expect]

    def look(self) -> None:
        """Every way to look at what happened."""
        for output in ("table", "json"):
            for command in (
                ("executions", "acme"),
                ("executions", "acme", "last"),
                ("audit", "list", "acme"),
            ):
                self.tenon(*command, "--output", output)
        key = Secret(self.family.deployment.owner_key.read_text())
        with open_sync_channel(self.family.registry, key=key, reason="a test") as channel:
            config = config_service_pb2_grpc.ConfigServiceStub(channel)
            asked = config_service_pb2.GetSnapshotRequest(name="tenants/acme")
            parts = list(config.GetSnapshot(asked, timeout=CALL_S))
            self.said["snapshot"] = b"".join(part.SerializeToString() for part in parts)
            credentials = credential_service_pb2_grpc.CredentialServiceStub(channel)
            listing = credential_service_pb2.ListCredentialsRequest(parent="tenants/acme")
            listed = credentials.ListCredentials(listing, timeout=CALL_S)
            assert {one.name.rpartition("/")[2] for one in listed.credentials} >= OF_YAML
            self.said["credentials"] = listed.SerializeToString()


@pytest.fixture(scope="module")
def stage(postgres: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Everything that can be done with a secret has been done."""
    with family_on(postgres, tmp_path_factory.mktemp("family")) as family:
        names = ("token", "stale", "webhook", "notify", "plain", *canary_calls.CANARIES)
        values = {name: canary(name) for name in names}
        family.webhook_secret, family.notify_key = (
            Secret(values["webhook"]),
            Secret(values["notify"]),
        )
        _keep_token(family, values["token"])
        family.start("sandbox")
        settings = canary_calls.settings_for(family)
        family.start("registry", canary_calls.FAILPOINTS, **settings)
        family.start("executor")
        values |= _keys(family)
        stage = Stage(family, Canaries(values))
        _live(stage, tmp_path_factory.mktemp("elsewhere"))
        yield stage


def _keep_token(family: Family, token: str) -> None:
    (family.folder / "sandbox").mkdir()
    (family.folder / "sandbox" / "token").write_text(token)


def _keys(family: Family) -> dict[str, str]:
    """The deployment's own secrets."""
    files = [family.deployment.owner_key, family.deployment.executor_key]
    kept = family.deployment.state / "keys"
    files += [path for path in kept.iterdir() if path.suffix != ".conninfo"]
    return {path.name: path.read_text().strip() for path in files}


def _key_versions(family: Family) -> dict[str, str]:
    """The versions of the key-encryption key, by their lines."""
    lines = (family.deployment.state / "keys" / "key_encryption_key").read_text().split()
    assert len(lines) == 2
    return {f"key version {line.partition(':')[0]}": line.partition(":")[2] for line in lines}


def _live(stage: Stage, elsewhere: Path) -> None:
    """The life of the secrets: refused, planned, applied, wrong, rotated, used, thrown in an error."""
    family, values = stage.family, stage.canaries.values
    folder, stale = family.example(), {"ACME_GITHUB_TOKEN": values["stale"]}
    (elsewhere / "secret").write_text(values["file"])
    file = BEARER.format(name="from-file", form="file", text=elsewhere / "secret")
    (folder / "file.yaml").write_text(file)
    _refused(stage, elsewhere)
    for output in ("table", "json"):
        stage.tenon("plan", folder, "--output", output, expect=2, environment=stale)
    stage.tenon("apply", "--wait", folder, environment=stale)
    with canary_calls.calls_to(family, values, stage.keep) as calls:
        canary_calls.live_by_calls(calls)
        sealed = calls.seal("from-git", "in git")
    text = BEARER.format(name="from-git", form="sealed", text=sealed)
    (folder / "sealed.yaml").write_text(text)
    values |= _key_versions(family)
    _hand_out_keys(stage, elsewhere)
    stage.run(("failed", "AUTH"))
    stage.look()
    for output in ("table", "json"):
        stage.tenon("plan", folder, "--output", output, expect=2)
    stage.tenon("apply", "--wait", "--output", "json", folder)
    stage.run(("success", ""))
    assert family.webhook(b"{}", secret=Secret(values["plain"]))[0] == 404
    family.restart("executor", "run.after_call=error@1,run.before_record=error@2")
    stage.run(("failed", "OUTCOME_UNKNOWN"))
    stage.tenon("plan", folder, expect=0)
    stage.look()
    assert b"from-git" in stage.said["credentials"]


def _hand_out_keys(stage: Stage, elsewhere: Path) -> None:
    """A key of a service is made, used, rotated, shown and taken back."""
    acme, output = ("--tenant", "acme"), ("--output", "json")
    (billing,) = json.loads(
        stage.tenon("principals", "create", "service", "billing", *acme, *output)
    )
    first, second = elsewhere / "first.key", elsewhere / "second.key"
    create = ("keys", "create", *acme, billing["uid"], "ledger")
    (key,) = json.loads(stage.tenon(*create, "--out", first, *output))
    key_id = key["name"].rpartition("/")[2]
    stage.tenon("keys", "rotate", *acme, key_id, "--out", second)
    for path in (first, second):
        stage.canaries.values[path.name] = path.read_text().strip()
        stage.tenon("whoami", "--key-file", path)
        stage.tenon("executions", "acme", "--key-file", path, expect=1)
    for shape in ("table", "json"):
        stage.tenon("keys", "list", *acme, "--output", shape)
        stage.tenon("keys", "usage", *acme, key_id, "--output", shape)
    stage.tenon("keys", "revoke", *acme, key_id, "--why", "a test")


def _refused(stage: Stage, elsewhere: Path) -> None:
    """A secret in plain text, one where none belongs, and a key that is not right."""
    head = "apiVersion: tenon/v1\nkind: {}\nmetadata: {{name: extra, tenant: acme}}\nspec:\n"
    plain = stage.canaries.values["plain"]
    wrong = elsewhere / "wrong.yaml"
    faulty = (
        head.format("Credential") + f"  type: bearer\n  values:\n    token: {plain}\n",
        head.format("Credential") + f"  type: bearer\n  values: {{{plain}: {{env: HOME}}}}\n",
        head.format("Integration") + f"  provider: http\n  credential: {plain}\n",
        head.format("Integration") + f"  provider: {plain}\n  {plain}: 1\n",
    )
    wrong.write_text("---\n".join(faulty))
    for command in ("validate", "plan", "apply"):
        stage.tenon(command, wrong, expect=1)
    (elsewhere / "key").write_text(plain)
    owner = stage.family.deployment.owner_key.read_text()
    (elsewhere / "other-key").write_text(owner[:-1] + ("0" if owner[-1] != "0" else "1"))
    for key in ("key", "other-key"):
        stage.tenon("plan", stage.family.example(), "--key-file", elsewhere / key, expect=1)
        stage.tenon("audit", "list", "acme", "--key-file", elsewhere / key, expect=1)


def clean(stage: Stage, places: Mapping[str, bytes]) -> None:
    """No canary in any of the places."""
    assert places
    found = {name: stage.canaries.found_in(content) for name, content in places.items()}
    assert {name: sorted(names) for name, names in found.items() if names} == {}


def test_search_finds_what_is_there(stage: Stage) -> None:
    for name, value in stage.canaries.values.items():
        for spelling in (
            value,
            base64.b64encode(f"user:{value}".encode()).decode(),
            value.encode().hex(),
        ):
            assert name in stage.canaries.found_in(f"before {spelling} after".encode())


def test_what_commands_say(stage: Stage) -> None:
    clean(stage, stage.said)


def test_logs_of_all_processes(stage: Stage, postgres: Embedded) -> None:
    folder = stage.family.folder
    logs = {path.name: path.read_bytes() for path in [*folder.glob("*.out"), *folder.glob("*.err")]}
    for service in ("executor", "registry"):
        assert b"FailpointError" in logs[f"{service}.err"]
    clean(stage, logs | {"postgres": (postgres.home / "log").read_bytes()})


def test_every_row_and_byte_of_both_schemas(stage: Stage) -> None:
    with closing(psycopg.connect(stage.family.admin.reveal_text(), autocommit=True)) as connection:
        # Some are infinite, which no datetime is.
        connection.adapters.register_loader("timestamptz", TextLoader)
        tables = connection.execute(
            "SELECT relnamespace::regnamespace::text, relname FROM pg_class "
            "WHERE relnamespace::regnamespace::text = ANY(%s) "
            "AND relkind IN ('r', 'p', 'v', 'm') AND NOT relispartition",
            [list(SCHEMAS)],
        ).fetchall()
        dump = {".".join(name): _rows(connection, name) for name in tables}
        dump["activity"] = _rows(connection, ("pg_catalog", "pg_stat_activity"))
        dump["roles"] = _rows(connection, ("pg_catalog", "pg_authid"))
    assert dump["executor.execution_steps"]
    assert dump["registry.credential_versions"]
    clean(stage, dump)


def _rows(connection: psycopg.Connection[Any], name: tuple[str, str]) -> bytes:
    """Every value of a relation, bytes as they are."""
    query = sql.SQL("SELECT one.*, row_to_json(one)::text FROM {} AS one").format(
        sql.Identifier(*name)
    )
    found = connection.execute(query).fetchall()
    return b"\n".join(
        value if isinstance(value, bytes) else str(value).encode() for row in found for value in row
    )


def test_the_write_ahead_log(stage: Stage, postgres: Embedded) -> None:
    segments = sorted((postgres.home / "data" / "pg_wal").glob("0*"))
    clean(stage, {path.name: path.read_bytes() for path in segments})


def test_process_list(stage: Stage, postgres: Embedded) -> None:
    pids = {name: member.process.pid for name, member in stage.family.members.items()}
    pids |= {f"postgres {pid}": pid for pid, _ in descendants(postgres.pid)}
    shown: dict[str, bytes] = {}
    for name, pid in pids.items():
        for what in ("cmdline", "environ"):
            shown[f"{name} {what}"] = Path(f"/proc/{pid}/{what}").read_bytes()
    assert b"services.executor.main" in shown["executor cmdline"]
    clean(stage, shown)


def test_files_of_the_deployment(stage: Stage) -> None:
    folder, state = stage.family.folder, stage.family.deployment.state
    holders = {state / "owner.key", state / "executor.key"}
    holders |= {folder / "sandbox" / name for name in ("token", "client_secret")}
    holders |= set((state / "keys").iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders if state in path.parents)
    files = {path for path in folder.rglob("*") if path.is_file()}
    clean(stage, {str(path): path.read_bytes() for path in files - holders})
