"""The executor as several processes: which posts there are, and the ports they share."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from services.chassis.processes import Post, holding, supervise
from services.chassis.settings import SettingsError
from services.executor.settings import PREFIX, Settings

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "services.executor.main")


async def supervise_crew(settings: Settings) -> None:
    """Run the processes of each role until told to stop. Raises what `supervise` does."""
    for role, count in settings.processes.items():
        if count < 0:
            raise SettingsError(f"{PREFIX}_{role.upper()}_PROCESSES must be 0 or more")
        if count == 0:
            log.warning("no %s process runs here: another host must have one", role)
    with _shared_ports(settings) as ports:
        await supervise(_posts(settings, ports), **ports)


@contextmanager
def _shared_ports(settings: Settings) -> Iterator[dict[str, int]]:
    """The ports of the roles that run here, kept for them."""
    with ExitStack() as held:
        ports: dict[str, int] = {}
        if settings.rpc_processes:
            ports["grpc"] = held.enter_context(holding(*_address(settings.listen)))
        if settings.ingress_processes:
            address = (settings.ingress_host, settings.ingress_port)
            ports["ingress"] = held.enter_context(holding(*address))
        yield ports


def _posts(settings: Settings, ports: Mapping[str, int]) -> list[Post]:
    host = settings.listen.rpartition(":")[0]
    told = {"REUSE_PORT": "true"}
    if "grpc" in ports:
        told["LISTEN"] = f"{host}:{ports['grpc']}"
    if "ingress" in ports:
        told["INGRESS_PORT"] = str(ports["ingress"])
    posts = [
        (role, number)
        for role, count in settings.processes.items()
        for number in range(1, count + 1)
    ]
    return [
        Post(f"{role} {number}", COMMAND, _environment(settings, nth, {**told, "ROLE": role}))
        for nth, (role, number) in enumerate(posts)
    ]


def _environment(settings: Settings, nth: int, told: Mapping[str, str]) -> dict[str, str]:
    """What one process is told; each has a port of its own for its metrics."""
    metrics_port = settings.metrics_port + nth if settings.metrics_port else 0
    own = {**told, "METRICS_PORT": str(metrics_port)}
    return {f"{PREFIX}_{name}": value for name, value in own.items()}


def _address(listen: str) -> tuple[str, int]:
    """Host and port of `host:port`, the only kind of address that processes can share."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"{PREFIX}_LISTEN must be host:port where several processes listen")
    return host.strip("[]"), int(port)
