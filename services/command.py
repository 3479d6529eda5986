"""The `tenon` command: where every command of the project comes together."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from services.chassis.errors import TenonError

STATE: Final = Path(".tenon")
UP_S: Final = 120.0
DOWN_S: Final = 60.0
GLANCE_S: Final = 0.1
LAST_WORDS: Final = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not hasattr(given, "run"):
        parser.print_help()
        return 0
    try:
        run: Callable[[argparse.Namespace], int] = given.run
        return run(given)
    except TenonError as error:
        return _fail(error.message)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from config import cli, look, tenants
    from config.access import register as register_access
    from config.approvals import register as register_approvals
    from config.audit import register as register_audit
    from config.connections import register as register_connections
    from config.credentials import register as register_credentials
    from config.deliveries import register as register_deliveries
    from config.events import register as register_events
    from config.removal import register as register_removal
    from config.run import register as register_run
    from config.seal import register as register_seal
    from config.syncs import register as register_syncs
    from services.first_callers import register as register_bootstrap

    parser = argparse.ArgumentParser(
        prog="tenon", description="A multi-tenant integration platform."
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    cli.register(commands)
    register_removal(commands)
    register_approvals(commands)
    look.register(commands)
    register_audit(commands)
    register_run(commands)
    register_seal(commands)
    tenants.register(commands)
    register_access(commands)
    register_credentials(commands)
    register_connections(commands)
    register_events(commands)
    register_deliveries(commands)
    register_syncs(commands)
    register_bootstrap(commands)
    for name, run, words in (
        ("up", up, "start PostgreSQL, the registry and the executor, and leave them running"),
        ("down", down, "stop what `up` started"),
        ("story", story, "tell the whole story on the example, then stop everything"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(run=run)
        if run is not story:
            state = os.environ.get("TENON_STATE", str(STATE))
            command.add_argument("--state", type=Path, default=Path(state), help="(%(default)s)")
        if run is up:
            sandbox = "also start the local stand-in provider the example calls"
            command.add_argument("--sandbox", action="store_true", help=sandbox)
    words = "the schemas of the database at TENON_DATABASE_URL"
    command = commands.add_parser("migrate", help=words, description=words)
    command.add_argument("what", choices=("status", "up"))
    command.set_defaults(run=migrate)
    return parser


def up(given: argparse.Namespace) -> int:
    """Start the family in the background, wait until it serves, and say where."""
    from services.deployment import Deployment
    from services.standalone import is_running

    deployment = Deployment(given.state.resolve())
    if is_running(deployment.state):
        sys.stdout.write(f"already running; `tenon down --state {given.state}` stops it\n")
    else:
        failure = _launch(deployment.state, deployment.log, with_sandbox=given.sandbox)
        if failure:
            return _fail(failure)
    where = deployment.running() or {}
    sys.stdout.write(_where(where, given.state))
    return 0


def down(given: argparse.Namespace) -> int:
    """Ask the family to stop, and wait until it has."""
    import signal

    from services.deployment import Deployment
    from services.standalone import is_running

    deployment = Deployment(given.state.resolve())
    where = deployment.running()
    if not deployment.state.exists() or where is None or not is_running(deployment.state):
        sys.stdout.write("nothing is running\n")
        return 0
    os.kill(where["pid"], signal.SIGTERM)
    if not _until(lambda: not is_running(deployment.state), DOWN_S):
        return _fail(f"still running after {DOWN_S:.0f} s; see {deployment.log}")
    sys.stdout.write("stopped\n")
    return 0


def story(_: argparse.Namespace) -> int:
    """Tell the story."""
    from services.story import tell

    return tell()


def migrate(given: argparse.Namespace) -> int:
    """Show where the schemas stand, or bring them to their heads."""
    from migrations import runner
    from services.chassis.secret import Secret
    from services.deployment import Deployment

    url = os.environ.get("TENON_DATABASE_URL")
    if not url:
        return _fail("TENON_DATABASE_URL is not set; `tenon up` migrates its own embedded server")
    if given.what == "up":
        state = os.environ.get("TENON_STATE", str(STATE))
        Deployment(Path(state).resolve()).prepare(Secret(url))
    behind = 0
    for service, (current, head) in runner.status(url).items():
        behind += current != head
        sys.stdout.write(f"{service:10} at {current or 'nothing'}, newest {head}\n")
    return 2 if behind else 0


def _launch(state: Path, log: Path, *, with_sandbox: bool) -> str:
    """Start the supervisor apart from this terminal; why it failed, or nothing."""
    from services.deployment import Deployment

    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "services.standalone", "--state", str(state)]
    if with_sandbox:
        command.append("--with-sandbox")
    with log.open("a") as words:
        log.chmod(0o600)
        begun = words.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[1],
        )
    deployment = Deployment(state)

    def serves() -> bool:
        return (deployment.running() or {}).get("pid") == child.pid

    _until(lambda: child.poll() is not None or serves(), UP_S)
    if child.poll() is None and serves():
        return ""
    child.terminate()
    last = log.read_text()[begun:].splitlines()[-LAST_WORDS:]
    return "\n".join(["it did not start; the last words of its log:", *last])


def _where(where: dict[str, str], state: Path) -> str:
    lines = [
        "Tenon is running.",
        f"  registry   {where.get('registry')}   (gRPC)",
        f"  executor   {where.get('executor')}   (gRPC)",
        f"  webhooks   {where.get('ingress')}/v1/TENANT/ENDPOINT",
        f"  key        {state}/owner.key   (the first owner's; keep it safe)",
        f"  log        {state}/log",
    ]
    if "sandbox" in where:
        lines += [f"  sandbox    {where['sandbox']}   (stands in for GitHub)", *_try(where, state)]
    lines.append("`make down` stops it; the data stays.")
    return "\n".join(lines) + "\n"


def _try(where: dict[str, str], state: Path) -> list[str]:
    sender = ".venv/bin/python -m services.sandbox.sender --event issues"
    return [
        "Try:",
        f"  head -c 24 /dev/urandom | base64 > {state}/webhook-secret",
        f"  export ACME_GITHUB_WEBHOOK_SECRET=$(cat {state}/webhook-secret)",
        "  export ACME_NOTIFY_KEY=any-key",
        "  export TENON_REASON='trying Tenon'   # the owner enters a tenant only with a reason",
        f"  export ACME_GITHUB_TOKEN=$(cat {state}/sandbox/token)",
        "  .venv/bin/tenon plan config/examples/acme",
        "  .venv/bin/tenon apply --wait config/examples/acme",
        f"  {sender} --payload config/examples/acme/issue-opened.json \\",
        f"      --secret-file {state}/webhook-secret \\",
        f"      --url {where['ingress']}/v1/acme/github-events",
        "  .venv/bin/tenon executions acme last",
        "  .venv/bin/tenon lanes acme",
        "  .venv/bin/tenon audit list acme",
    ]


def _until(done: Callable[[], bool], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(GLANCE_S)
    return True


def _fail(message: str) -> int:
    sys.stderr.write(f"tenon: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
