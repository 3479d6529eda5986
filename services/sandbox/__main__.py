"""`python -m services.sandbox`: serve until SIGTERM or SIGINT.

Prints one line of JSON when ready: {"url": …, "token_file": …, "client_id": …,
"client_secret_file": …}. The state directory keeps the comments and, unless their files are named,
the token and the client's secret made at the first start. What the identity provider gave is
forgotten with the process.
"""

import argparse
import asyncio
import json
import secrets
import signal
from pathlib import Path

from services.chassis.secret import Secret
from services.sandbox.identity import Identity
from services.sandbox.server import sandbox


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m services.sandbox")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--state", type=Path, required=True, help="a directory of its own")
    parser.add_argument("--token-file", type=Path, help="the token clients must send")
    parser.add_argument("--client-id", default="tenon", help="the OAuth client that is registered")
    parser.add_argument("--client-secret-file", type=Path, help="the secret of the OAuth client")
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    given.token_file = given.token_file or _made(given.state / "token")
    given.client_secret_file = given.client_secret_file or _made(given.state / "client_secret")
    try:
        asyncio.run(_serve(given))
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {error.strerror or error}\n")


async def _serve(given: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    token = given.token_file.read_text("utf-8").strip()
    secret = Secret(given.client_secret_file.read_text("utf-8").strip())
    identity = Identity(client_id=given.client_id, client_secret=secret)
    async with sandbox(
        token,
        host=given.host,
        port=given.port,
        state_file=given.state / "comments.json",
        identity=identity,
    ) as box:
        ready = {
            "url": box.url,
            "token_file": str(given.token_file),
            "client_id": identity.client_id,
            "client_secret_file": str(given.client_secret_file),
        }
        print(json.dumps(ready), flush=True)  # noqa: T201 -- the answer to who started us
        await stop.wait()


def _made(file: Path) -> Path:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24), "utf-8")
    return file


if __name__ == "__main__":
    main()
