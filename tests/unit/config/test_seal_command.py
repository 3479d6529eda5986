"""`tenon seal` against a registry that tells its key, over the real channel; and with none at all."""

import io
import itertools
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tenon.registry.v1 import credential_service_pb2 as pb2
from tenon.registry.v1 import credential_service_pb2_grpc

from services.chassis import sealed_box
from services.chassis.envelope import Unsealable
from services.chassis.sealed_box import Purpose
from services.command import main

PRIVATE, PUBLIC = sealed_box.new_pair()
PURPOSE = Purpose("acme", "Credential", "github", "token")
FOR_IT = ("--tenant", "acme", "--name", "github", "--part", "token")
CANARY = "hunter2canary"


@dataclass(slots=True)
class Registry(credential_service_pb2_grpc.CredentialServiceServicer):
    """Tells its key, and keeps who asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    denies: bool = False

    def GetSealingKey(  # noqa: N802
        self, request: pb2.GetSealingKeyRequest, context: Any
    ) -> pb2.SealingKey:
        metadata = dict(context.invocation_metadata())
        self.asked.append((request.parent, metadata["authorization"]))
        if self.denies:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this needs config.plan")
        return pb2.SealingKey(version=7, public_key=PUBLIC)


@pytest.fixture
def registry() -> Registry:
    return Registry()  # type: ignore[abstract]


@pytest.fixture
def _serving(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(2))
    credential_service_pb2_grpc.add_CredentialServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    (tmp_path / "key").write_text("tnk_test_key\n")
    monkeypatch.setenv("TENON_REGISTRY", f"127.0.0.1:{port}")
    monkeypatch.setenv("TENON_KEY_FILE", str(tmp_path / "key"))
    yield
    server.stop(None).wait()


Pipe = Callable[[bytes], None]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    """Puts bytes on standard input, which is no terminal."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the public key, where there is neither a registry nor a key for it."""
    monkeypatch.setenv("TENON_REGISTRY", "127.0.0.1:1")
    monkeypatch.setenv("TENON_KEY_FILE", "/nowhere/key")
    path = tmp_path / "sealing.key"
    path.write_text(sealed_box.sealing_key_text(3, PUBLIC) + "\n")
    return path


def opened(printed: str, purpose: Purpose = PURPOSE) -> bytes:
    """What stands in printed YAML."""
    return sealed_box.open_box(PRIVATE, purpose, yaml.safe_load(printed)["sealed"]).reveal()


@pytest.mark.usefixtures("_serving")
def test_a_secret_is_sealed_to_the_registrys_key(
    registry: Registry, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(CANARY.encode() + b"\n")
    assert main(["seal", *FOR_IT]) == 0
    said = capsys.readouterr()
    assert registry.asked == [("tenants/acme", "Bearer tnk_test_key")]
    assert said.out.startswith("{sealed: tenon-seal-1.7.") and said.out.endswith("}\n")
    assert said.out.count("\n") == 1 and said.err == "" and CANARY not in said.out
    assert opened(said.out) == CANARY.encode()
    with pytest.raises(Unsealable):
        opened(said.out, Purpose("acme", "Credential", "github", "secret"))


@pytest.mark.usefixtures("_serving")
def test_programs_read_an_object(pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(CANARY.encode())
    assert main(["seal", *FOR_IT, "--output", "json"]) == 0
    (sealed,) = json.loads(text := capsys.readouterr().out).values()
    assert sealed_box.version_of(sealed) == 7 and opened(text) == CANARY.encode()


@pytest.mark.usefixtures("_serving")
def test_the_printed_key_seals_without_asking_anybody(
    registry: Registry, tmp_path: Path, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["seal", "--print-key"]) == 0
    saved = tmp_path / "saved.key"
    saved.write_text(capsys.readouterr().out)
    pipe(CANARY.encode())
    assert main(["seal", *FOR_IT, "--public-key", str(saved), "--key-file", "/nowhere"]) == 0
    printed = capsys.readouterr().out
    assert [parent for parent, _ in registry.asked] == [""]
    assert printed.startswith("{sealed: tenon-seal-1.7.") and opened(printed) == CANARY.encode()


@pytest.mark.usefixtures("_serving")
def test_a_refusal_of_the_registry_is_told(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.denies = True
    assert main(["seal", *FOR_IT]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "tenon: this needs config.plan\n")


@pytest.mark.parametrize(
    ("held", "secret"),
    [
        (b"two\nlines\n\n", b"two\nlines\n"),
        (b"of Windows\r\n", b"of Windows"),
        (b"\x00\xff", b"\x00\xff"),
        (b"x" * sealed_box.LARGEST, b"x" * sealed_box.LARGEST),
    ],
)
def test_one_line_break_at_the_end_is_no_part_of_it(
    key_file: Path,
    tmp_path: Path,
    pipe: Pipe,
    capsys: pytest.CaptureFixture[str],
    held: bytes,
    secret: bytes,
) -> None:
    pipe(held)
    assert main(["seal", *FOR_IT, "--public-key", str(key_file)]) == 0
    assert opened(capsys.readouterr().out) == secret
    (tmp_path / "secret").write_bytes(held)
    file = ("--from-file", str(tmp_path / "secret"))
    assert main(["seal", *FOR_IT, "--public-key", str(key_file), *file]) == 0
    assert opened(capsys.readouterr().out) == secret


def test_a_variable_is_sealed_as_it_is(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_SECRET", f"{CANARY}\n")
    assert main(["seal", *FOR_IT, "--public-key", str(key_file), "--from-env", "THE_SECRET"]) == 0
    assert opened(capsys.readouterr().out) == f"{CANARY}\n".encode()


@pytest.mark.parametrize(
    ("words", "piped", "told"),
    [
        (FOR_IT, b"", "the secret on standard input is empty"),
        (FOR_IT, b"\n", "the secret on standard input is empty"),
        (FOR_IT, b"x" * (sealed_box.LARGEST + 1), "a secret has at most 64 KiB"),
        ((*FOR_IT, "--from-env", "THE_SECRET"), b"x", "the secret named here is empty"),
        ((*FOR_IT, "--from-env", CANARY), b"x", "the environment variable named here is not set"),
        (
            (*FOR_IT, "--from-file", f"/nowhere/{CANARY}"),
            b"x",
            "the file named here: cannot be read: No such file or directory",
        ),
        ((*FOR_IT[:4],), b"x", "--part must be the name of a secret part, such as token"),
        ((*FOR_IT[:5], "Token"), b"x", "--part must be the name of a secret part"),
        (FOR_IT[2:], b"x", "--tenant must be 1 to 63 lower-case letters"),
        ((*FOR_IT, "--name", "tenants/acme"), b"x", "--name must be 1 to 63 lower-case letters"),
        ((*FOR_IT, "--public-key", "/nowhere/key"), b"x", "/nowhere/key: the public key: cannot"),
        ((*FOR_IT, "--public-key", __file__), b"x", f"{__file__}: the public key: larger"),
    ],
)
def test_what_cannot_be_sealed_is_told_in_a_sentence(
    key_file: Path,
    pipe: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    piped: bytes,
    told: str,
) -> None:
    monkeypatch.setenv("THE_SECRET", "")
    pipe(piped)
    assert main(["seal", "--public-key", str(key_file), *words]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"tenon: {told}") and said.err.count("\n") == 1
    assert CANARY not in said.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        CANARY,
        sealed_box.sealing_key_text(3, PUBLIC)[:-1],
        sealed_box.sealing_key_text(3, PUBLIC) * 2,
        "é",
    ],
    # Each process that runs tests has another key: the texts cannot name them.
    ids=itertools.count(),
)
def test_a_file_that_is_no_public_key_is_named(
    key_file: Path, pipe: Pipe, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    key_file.write_text(text)
    pipe(b"x")
    assert main(["seal", *FOR_IT, "--public-key", str(key_file)]) == 1
    told = f"tenon: {key_file}: not what `tenon seal --print-key` prints\n"
    assert capsys.readouterr().err == told


def test_nothing_is_sealed_to_a_key_that_anybody_opens(
    key_file: Path, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file.write_text(sealed_box.sealing_key_text(3, bytes(32)))
    pipe(b"x")
    assert main(["seal", *FOR_IT, "--public-key", str(key_file)]) == 1
    assert "not what `tenon seal --print-key` prints" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (CANARY,),
        ("--from-env", "A", "--from-file", "b"),
        ("--kind", "Connector"),
        ("--print-key", "--public-key", "a"),
    ],
)
def test_a_secret_is_no_word_of_the_command_and_has_one_source(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["seal", *FOR_IT, *words])
    assert ended.value.code == 2


def test_at_a_terminal_it_is_asked_for_and_not_shown(key_file: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "services.command", "seal", *FOR_IT]
    with subprocess.Popen(
        [*command, "--public-key", str(key_file)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        # Without a terminal of its own it would ask at the one that the tests are run at.
        start_new_session=True,
    ) as child:
        os.close(theirs)
        shown = b""
        while b"not shown: " not in shown:
            if not select.select([ours], [], [], 20)[0]:
                child.kill()
                pytest.fail("nothing was asked for")
            shown += os.read(ours, 1000)
        os.write(ours, f"{CANARY}\n".encode())
        printed, _ = child.communicate(timeout=20)
    try:
        while more := os.read(ours, 1000):
            shown += more
    except OSError:
        pass
    os.close(ours)
    assert child.returncode == 0 and CANARY.encode() not in shown
    assert opened(printed.decode()) == CANARY.encode()
