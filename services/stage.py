"""Real services in a directory of their own and on free ports, for the story and the benches."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from services.chassis.secret import Secret

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "config" / "examples" / "acme"
# The address the example's YAML names; a stage puts the sandbox's real port there.
SANDBOX_ADDRESS: Final = "127.0.0.1:50990"


class StageError(Exception):
    """A command did not end as it must."""


class Stage:
    """A running deployment with a sandbox, and a person's shell beside it.

    `folder` must be reachable by every account; it is the caller's to remove.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / "state"
        self._stack = ExitStack()
        self._port = _free_port()
        self._environment = _settings(folder, self._port)
        self.webhook_secret = Secret(secrets.token_urlsafe(24))
        self.where: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        self.run("up", "--sandbox", "--state", str(self._state), shown=False)
        self._stack.callback(self.run, "down", "--state", str(self._state), shown=False)
        self.where = json.loads((self._state / "run.json").read_text())
        self._environment |= {
            "TENON_REGISTRY": self.where["registry"],
            "TENON_EXECUTOR": self.where["executor"],
            "TENON_KEY_FILE": str(self.owner_key),
            "TENON_REASON": "a rehearsal on a deployment of its own",
            "ACME_GITHUB_TOKEN": Path(self.where["sandbox_token_file"]).read_text(),
            "ACME_GITHUB_WEBHOOK_SECRET": self.webhook_secret.reveal_text(),
            "ACME_NOTIFY_KEY": secrets.token_urlsafe(16),
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def owner_key(self) -> Path:
        """The first owner's API key."""
        return self._state / "owner.key"

    def example(self) -> str:
        """A copy of the example whose integrations point at this stage's sandbox."""
        copy = self._folder / "acme"
        shutil.copytree(EXAMPLE, copy, dirs_exist_ok=True)
        for path in copy.glob("*.yaml"):
            text = path.read_text()
            path.write_text(text.replace(SANDBOX_ADDRESS, f"127.0.0.1:{self._port}"))
        return str(copy)

    def run(self, *arguments: str, expect: int = 0, shown: bool = True) -> str:
        """Run one `tenon` command; its output unless it is shown. StageError for another end."""
        done = subprocess.run(
            [sys.executable, "-m", "services.command", *arguments],
            env=self._environment,
            cwd=ROOT,
            text=True,
            check=False,
            stdout=None if shown else subprocess.PIPE,
        )
        if done.returncode != expect:
            raise StageError(f"`tenon {arguments[0]}` exited {done.returncode}, not {expect}")
        return done.stdout or ""


def _settings(folder: Path, sandbox_port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}
    return inherited | {
        "TENON_REGISTRY_LISTEN": "127.0.0.1:0",
        "TENON_EXECUTOR_LISTEN": "127.0.0.1:0",
        "TENON_EXECUTOR_INGRESS_PORT": "0",
        "TENON_SANDBOX_PORT": str(sandbox_port),
        "TENON_HOME": str(folder / "home"),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
