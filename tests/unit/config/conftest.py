"""A registry, and an executor, that answer by script over a real socket, and `tenon` as typed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from services.chassis.errors import TenonError
from services.chassis.status import to_status
from services.command import main

KEY = "tnk_test_key"


@dataclass(slots=True)
class Registry(grpc.GenericRpcHandler):
    """What the other side answers to each method in turn (the last answer again and again), and
    what it was asked. An answer is a message, an error, or of a stream a list of both."""

    address: str = ""
    answers: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def answer(self, method: str, *answers: Any) -> None:
        self.answers[method] = list(answers)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]

    @property
    def request(self) -> Any:
        """The only one there was."""
        ((_, request),) = self.asked
        return request

    def service(self, details: Any) -> Any:
        service, _, name = details.method.removeprefix("/").partition("/")
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        self.keys |= {value for key, value in details.invocation_metadata if key == "authorization"}
        made = grpc.unary_unary_rpc_method_handler
        behaviour: Callable[..., Any] = self._unary(name)
        if method.server_streaming:
            made, behaviour = grpc.unary_stream_rpc_method_handler, self._stream(name)
        return made(
            behaviour,
            message_factory.GetMessageClass(method.input_type).FromString,
            lambda answer: answer.SerializeToString(),
        )

    def _unary(self, name: str) -> Callable[[Message, Any], Message]:
        def behaviour(request: Message, context: Any) -> Message:
            return _told(self._next(name, request), context)

        return behaviour

    def _stream(self, name: str) -> Callable[[Message, Any], Iterator[Message]]:
        def behaviour(request: Message, context: Any) -> Iterator[Message]:
            for each in self._next(name, request):
                yield _told(each, context)

        return behaviour

    def _next(self, name: str, request: Message) -> Any:
        self.asked.append((name, request))
        left = self.answers[name]
        return left.pop(0) if len(left) > 1 else left[0]


def _told(answer: Any, context: Any) -> Message:
    if isinstance(answer, TenonError):
        context.abort_with_status(to_status(answer, "r1"))
    found: Message = answer() if callable(answer) else answer
    return found


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = grpc.server(ThreadPoolExecutor(2))
    script = Registry()
    server.add_generic_rpc_handlers([script])
    script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield script
    server.stop(None).wait()


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard output with single spaces, however wide a table is."""
        return " ".join(self.out.split())


Tenon = Callable[..., Said]


@pytest.fixture
def tenon(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Tenon:
    """Run a command against `registry`; what it ends with."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("TENON_REGISTRY", registry.address)
    monkeypatch.setenv("TENON_EXECUTOR", registry.address)
    monkeypatch.setenv("TENON_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str | Path) -> Said:
        try:
            code = main([str(word) for word in words])
        except SystemExit as usage:
            code = int(str(usage.code))
        out, err = capsysbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return run


def rows(said: Said) -> list[Sequence[str]]:
    """The lines of a table, each by its words."""
    return [line.split() for line in said.out.splitlines() if line.strip()]
