"""Secrets that a command tells: to a new file for its owner alone, or to standard output."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from config.cli import UsageError

Write = Callable[[bytes], None]


def add_out(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a command say where its secret goes; the same command."""
    words = "write the secret to this new file, for its owner alone, and not to standard output"
    command.add_argument("--out", type=Path, metavar="FILE", help=words)
    return command


@contextmanager
def writing(path: Path | None) -> Iterator[Write]:
    """Where a secret goes, with a line break behind it. A file is made before anything is asked,
    so that no secret is made that cannot be kept, and goes again where nothing comes of it."""
    if path is None:
        yield _say
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        try:
            yield lambda secret: file.writelines((secret, b"\n"))
        except (grpc.RpcError, UsageError):
            path.unlink()
            raise


def _say(secret: bytes) -> None:
    sys.stdout.buffer.write(secret + b"\n")
    sys.stdout.flush()
