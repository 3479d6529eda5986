"""Follows how all is wrapped by the newest keys: a bar at a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tenon.registry.v1 import vault_service_pb2, vault_service_pb2_grpc

from config.cli import UsageError
from config.render import printable

LINE_S: Final = 5.0
AWAY_S: Final = 60.0
AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""How a stream ends whose registry is stopped; another one, or the same again, goes on."""

RewrapProgress = vault_service_pb2.RewrapProgress
Tell = Callable[[RewrapProgress], None]


def follow(channel: grpc.Channel, tenant: str) -> RewrapProgress:
    """The last that is told of a tenant, or of the deployment, once nothing is left to do.

    Whoever stops to follow is told that the work goes on.
    """
    last = RewrapProgress()
    try:
        with _telling() as tell:
            for last in _told(channel, f"tenants/{tenant}" if tenant else ""):
                tell(last)
    except KeyboardInterrupt:
        again = f"tenon keys rewrap --tenant {tenant}" if tenant else "tenon keys rewrap"
        sys.stderr.write(f"it goes on by itself; `{again}` follows it again\n")
        raise
    return last


def _told(channel: grpc.Channel, name: str) -> Iterator[RewrapProgress]:
    """What the registry tells until its end, asked again where it went away in between."""
    request = vault_service_pb2.RewrapRequest(name=name)
    stub = vault_service_pb2_grpc.VaultServiceStub(channel)
    while True:
        heard = False
        try:
            for each in stub.Rewrap(request):
                heard = True
                yield each
        except grpc.RpcError as error:
            if not heard or error.code() not in AWAY:
                raise
        else:
            return
        _await(channel)


def _await(channel: grpc.Channel) -> None:
    """Return once the registry is there again. Raises UsageError after AWAY_S."""
    try:
        grpc.channel_ready_future(channel).result(timeout=AWAY_S)
    except grpc.FutureTimeoutError:
        raise UsageError(
            f"the registry has been away for {AWAY_S:.0f} s; `tenon keys rewrap` follows it again"
        ) from None


@contextmanager
def _telling() -> Iterator[Tell]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda now: bar.update(
            task, description=_doing(now), completed=now.done, total=now.total or None
        )


class _Lines:
    """A line where it begins or ends to wait, then one every LINE_S, and one at the end."""

    def __init__(self) -> None:
        self._doing = ""
        self._next = 0.0

    def tell(self, now: RewrapProgress) -> None:
        doing = _doing(now)
        if doing == self._doing and time.monotonic() < self._next and now.done < now.total:
            return
        self._doing, self._next = doing, time.monotonic() + LINE_S
        sys.stderr.write(f"{doing}: {now.done} of {now.total}\n")
        sys.stderr.flush()


def _doing(now: RewrapProgress) -> str:
    if now.waiting_for:
        return printable(f"version {now.version} waits for {', '.join(now.waiting_for)}")
    return f"wrapping by version {now.version}"
