"""`python -m services.sandbox`: serve until SIGTERM or SIGINT.

Prints one line of JSON when ready: {"url": …, "token_file": …}. The state directory keeps the
comments and, unless a token file is named, a token made at the first start.
"""

import argparse
import asyncio
import json
import secrets
import signal
from pathlib import Path

from services.sandbox.server import sandbox


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m services.sandbox")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--state", type=Path, required=True, help="a directory of its own")
    parser.add_argument("--token-file", type=Path, help="the token clients must send")
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    token_file = given.token_file or _made_token(given.state / "token")
    try:
        asyncio.run(_serve(given.host, given.port, given.state, token_file))
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {error.strerror or error}\n")


async def _serve(host: str, port: int, state: Path, token_file: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    token = token_file.read_text("utf-8").strip()  # noqa: ASYNC240 -- before serving
    comments = state / "comments.json"
    async with sandbox(token, host=host, port=port, state_file=comments) as box:
        ready = {"url": box.url, "token_file": str(token_file)}
        print(json.dumps(ready), flush=True)  # noqa: T201 -- the answer to who started us
        await stop.wait()


def _made_token(file: Path) -> Path:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24), "utf-8")
    return file


if __name__ == "__main__":
    main()
