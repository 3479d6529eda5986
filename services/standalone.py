"""PostgreSQL, the registry and the executor as one supervised family on one machine.

Run as `python -m services.standalone --state DIR`. It ends when it is told to, or when one of the
family ends; then all end. Killed without warning, it takes the family with it: each child asked the
kernel for a signal at its parent's death.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from services import embedded
from services.chassis.child import bound
from services.chassis.errors import FailedPrecondition, TenonError, Unavailable
from services.chassis.secret import Secret
from services.chassis.telemetry import configure_logging
from services.deployment import DATABASE, Deployment, create_database
from services.executor.settings import INGRESS_PORT

log = logging.getLogger(__name__)

READY_S: Final = 60.0
STOP_S: Final = 20.0
GLANCE_S: Final = 0.2
SANDBOX_PORT: Final = 50990
ROOT: Final = Path(__file__).resolve().parents[1]


class AlreadyRunning(TenonError):
    """This state directory is in use."""

    reason = "ALREADY_RUNNING"


def supervise(state: Path, *, with_sandbox: bool = False) -> None:
    """Run the family until a signal or a death ends it."""
    deployment = Deployment(state.resolve())
    with _alone(deployment.state), _told() as told, database(deployment.state) as (admin, server):
        deployment.prepare(admin)
        with contextlib.ExitStack() as family:
            children, where = _start(family, deployment, with_sandbox=with_sandbox)
            deployment.say_running({"pid": os.getpid(), **where})
            family.callback(deployment.say_stopped)
            _watch(children, server, told)


@contextlib.contextmanager
def database(state: Path) -> Iterator[tuple[Secret, embedded.Embedded | None]]:
    """The administrator's way into the database: TENON_DATABASE_URL, or an embedded server."""
    given = os.environ.get("TENON_DATABASE_URL")
    if given:
        yield Secret(given), None
        return
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with embedded.start(state) as server:
        create_database(server.conninfo())
        yield server.conninfo(DATABASE), server


def _start(
    family: contextlib.ExitStack, deployment: Deployment, *, with_sandbox: bool
) -> tuple[dict[str, "subprocess.Popen[str]"], dict[str, Any]]:
    where: dict[str, Any] = {}
    allow = ""
    children: dict[str, subprocess.Popen[str]] = {}
    if with_sandbox:
        port = os.environ.get("TENON_SANDBOX_PORT", str(SANDBOX_PORT))
        arguments = ["--port", port, "--state", str(deployment.state / "sandbox")]
        children["sandbox"], ready = _child(family, "services.sandbox", {}, arguments)
        where |= {"sandbox": ready["url"], "sandbox_token_file": ready["token_file"]}
        allow = f"127.0.0.1/32:{ready['url'].rpartition(':')[2]}"
    settings = deployment.environment("registry") | {"TENON_REGISTRY_EGRESS_ALLOW": allow}
    settings["TENON_REGISTRY_PUBLIC_URL"] = _public_url()
    children["registry"], ready = _child(family, "services.registry.main", settings)
    where["registry"] = f"127.0.0.1:{ready['grpc']}"
    settings = deployment.environment("executor") | {"TENON_EXECUTOR_EGRESS_ALLOW": allow}
    # Several deployments may stand on one machine; who wants metrics says where.
    settings["TENON_EXECUTOR_METRICS_PORT"] = "0"
    settings["TENON_EXECUTOR_PUBLIC_URL"] = _public_url()
    settings["TENON_EXECUTOR_REGISTRY"] = where["registry"]
    children["executor"], ready = _child(family, "services.executor.main", settings)
    if not {"grpc", "ingress"} <= ready.keys():
        raise FailedPrecondition(
            "the executor must run every role here: set all of TENON_EXECUTOR_*_PROCESSES or none"
        )
    where |= {
        "executor": f"127.0.0.1:{ready['grpc']}",
        "ingress": f"http://127.0.0.1:{ready['ingress']}",
    }
    return children, where


def _public_url() -> str:
    """Where browsers and senders find the ingress: TENON_PUBLIC_URL, or else this machine's port.

    Empty where that may be any.
    """
    if said := os.environ.get("TENON_PUBLIC_URL"):
        return said
    port = os.environ.get("TENON_EXECUTOR_INGRESS_PORT", str(INGRESS_PORT))
    return f"http://127.0.0.1:{port}" if port != "0" else ""


def _child(
    family: contextlib.ExitStack,
    module: str,
    settings: Mapping[str, str],
    arguments: Sequence[str] = (),
) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
    """Start one of the family and wait for the line in which it says where it listens."""
    command = bound([sys.executable, "-m", module, *arguments])
    child = subprocess.Popen(
        command, env={**settings, **os.environ}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    family.callback(_stop, child, module)
    return child, _ready(child, module)


def _ready(child: "subprocess.Popen[str]", module: str) -> dict[str, Any]:
    stream = child.stdout
    if stream is not None and select.select([stream], [], [], READY_S)[0]:
        line = stream.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
    raise Unavailable(f"{module} did not start; its last words are in the log")


def _stop(child: "subprocess.Popen[str]", module: str) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        log.warning("%s did not drain in %.0f s and is killed", module, STOP_S)
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _watch(
    children: Mapping[str, "subprocess.Popen[str]"],
    server: embedded.Embedded | None,
    told: list[int],
) -> None:
    while not told:
        ended = [name for name, child in children.items() if child.poll() is not None]
        if server is not None and not server.alive():
            ended.append("postgres")
        if ended:
            raise Unavailable(f"{ended[0]} ended by itself, so everything stops")
        time.sleep(GLANCE_S)


@contextlib.contextmanager
def _told() -> Iterator[list[int]]:
    """The signals that asked us to stop, as they come."""
    told: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda n, _: told.append(n)) for number in numbers]
    try:
        yield told
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(
                f"{state} is in use; `tenon down --state {state}` stops it"
            ) from None
        yield


def is_running(state: Path) -> bool:
    """Whether a family holds this state directory."""
    try:
        with _alone(state):
            return False
    except AlreadyRunning:
        return True


def main() -> int:
    """Supervise by the arguments."""
    parser = argparse.ArgumentParser(prog="python -m services.standalone")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--with-sandbox", action="store_true")
    given = parser.parse_args()
    configure_logging("standalone", os.environ.get("TENON_LOG_FORMAT", "json"))
    try:
        supervise(given.state, with_sandbox=given.with_sandbox)
    except TenonError as error:
        sys.stderr.write(f"tenon: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
