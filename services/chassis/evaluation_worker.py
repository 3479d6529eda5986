"""A process that answers one question after the other, and that its own clock kills.

It says one byte when it is ready. A question is three lengths and as many pieces: the kind, what is
asked, and the values; an answer is a length and JSON, `{"is": …}` or `{"refused": …}`. It reads
the values first, since that takes time by their size, and then has the kind's processor time: no
wall clock, so that an honest question does not fail for what else the machine is doing. Timers with
the kernel's default action end it wherever it is: CEL holds the interpreter while it runs. Nothing
outlives its parent: the end of its input ends it, and whatever it is at then ends by those timers.
"""

import json
import os
import resource
import signal
import struct
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from services.chassis.evaluation import Kind

READY: Final = b"!"
HEAD: Final = struct.Struct("!III")
LENGTH: Final = struct.Struct("!I")
LARGEST_ANSWER: Final = 2**20
"""Bytes of an answer."""
MEMORY: Final = 256 * 2**20
"""Bytes of address space; about 40 MiB of it are taken before the first question."""
WALL_S: Final = 5.0
"""From the question to the answer, however little of that it could spend at work."""


def main() -> None:
    """Answer until the input ends."""
    _confine()
    # The library's command line would take most of the start.
    sys.modules["cel.cli"] = ModuleType("cel.cli")
    from services.chassis.evaluation import KINDS, REFUSALS

    refusals = tuple(REFUSALS.values())
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _write(sink, READY)
    while head := source.read(HEAD.size):
        kind, asked, values = (source.read(length) for length in HEAD.unpack(head))
        answer = _answer(KINDS[kind.decode()], json.loads(asked), values, refusals)
        _write(sink, LENGTH.pack(len(answer)) + answer)


def _confine() -> None:
    """Take from this process what it does not need, and let others go first."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)


def _answer(kind: "Kind", asked: Any, values: bytes, refusals: tuple[type[Any], ...]) -> bytes:
    """The answer as JSON, in time or not at all."""
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        read = kind.read(values)
        signal.setitimer(signal.ITIMER_PROF, kind.limit_s(len(values)))
        answer = _json({"is": kind.answer(asked, read)})
        if len(answer) > LARGEST_ANSWER:
            answer = _refused(
                "EXPRESSION_INVALID", f"the result is longer than {LARGEST_ANSWER} bytes"
            )
    except refusals as error:
        position = getattr(error, "position", None)
        answer = _refused(error.code, error.message, position)
    except RecursionError:
        answer = _refused("EXPRESSION_INVALID", "a value is nested too deep")
    except MemoryError:
        answer = _refused("EXPRESSION_INVALID", f"it takes more than {MEMORY >> 20} MiB")
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
    return answer


def _refused(reason: str, message: str, position: int | None = None) -> bytes:
    return _json({"refused": {"reason": reason, "message": message, "position": position}})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write(sink: BinaryIO, answer: bytes) -> None:
    sink.write(answer)
    sink.flush()


if __name__ == "__main__":
    main()
