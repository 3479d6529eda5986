"""The whole story on the example: every command a person would type, against real services.

It runs in a directory of its own and on free ports, so it can be told beside a running deployment,
and it leaves nothing behind.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from services.sandbox.sender import send_webhook
from services.stage import EXAMPLE, Stage, StageError

PATIENCE_S: Final = 30.0
GLANCE_S: Final = 0.1
# What `tenon plan` exits with when there is something to do.
CHANGES: Final = 2
ENDED: Final = {"STATE_SUCCESS", "STATE_FAILED", "STATE_TIMEOUT"}


def tell() -> int:
    """Tell it; 0 when every part went as it must."""
    begun = time.monotonic()
    _say("PostgreSQL, the registry, the executor and a sandbox provider start.")
    try:
        with tempfile.TemporaryDirectory(prefix="tenon-story-") as name:
            Path(name).chmod(0o755)
            with Stage(Path(name)) as stage:
                _chapters(stage)
    except StageError as error:
        sys.stderr.write(f"story: {error}\n")
        return 1
    _say(f"The end, after {time.monotonic() - begun:.0f} s. Nothing is left running.")
    return 0


def _chapters(stage: Stage) -> None:
    folder = stage.example()
    _say("A platform engineer has written what Acme wants as YAML, and looks at the plan.")
    _type(stage, "plan", folder, expect=CHANGES)
    _say("It is applied, all or nothing; --wait returns when the executor works by it.")
    _type(stage, "apply", "--wait", folder)
    _say("Nothing is left to do: the second plan is empty.")
    _type(stage, "plan", folder)
    _say("Somebody opens an issue, and GitHub sends a signed webhook.")
    _send_issue_opened(stage)
    _say("It started the connector `triage`: three calls, each recorded.")
    _await_success(stage)
    _type(stage, "executions", "acme", "last")
    _say("Its issues are kept here, too, by a schedule or when somebody asks.")
    _type(stage, "sync", "trigger", "acme", "github/issues", "--wait")
    _say("And who changed what is in the audit log.")
    _type(stage, "audit", "list", "acme")


def _type(stage: Stage, *arguments: str, expect: int = 0) -> None:
    shown = " ".join("config/examples/acme" if word.startswith("/") else word for word in arguments)
    sys.stdout.write(f"\n$ tenon {shown}\n")
    sys.stdout.flush()
    stage.run(*arguments, expect=expect)


def _send_issue_opened(stage: Stage) -> None:
    body = (EXAMPLE / "issue-opened.json").read_bytes()
    url = f"{stage.where['ingress']}/v1/acme/github-events"
    status, _ = asyncio.run(send_webhook(url, "issues", body, stage.webhook_secret))
    sys.stdout.write(f"\nPOST /v1/acme/github-events  X-GitHub-Event: issues  →  {status}\n")
    if status != 202:
        raise StageError(f"the webhook was answered {status}")


def _await_success(stage: Stage) -> None:
    end, state = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < end and state not in ENDED:
        time.sleep(GLANCE_S)
        answer = stage.run("executions", "acme", "--output", "json", shown=False)
        state = next((each["state"] for each in json.loads(answer)), "")
    if state != "STATE_SUCCESS":
        _type(stage, "executions", "acme", "last")
        raise StageError("the connector did not succeed")


def _say(words: str) -> None:
    sys.stdout.write(f"\n— {words}\n")
    sys.stdout.flush()
