"""Runs a module in a process whose clock is wrong: `python -m tests.faults.with_clock S MODULE …`."""

import datetime as dt
import runpy
import sys
import time
from typing import Any, Self


def shift(seconds: float) -> None:
    """Let all that is imported from now on take it for so much later than it is."""
    real, real_ns = time.time, time.time_ns
    by = dt.timedelta(seconds=seconds)

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Self:
            return super().now(tz) + by

    # By this name its values are known to those who write them.
    Shifted.__module__, Shifted.__qualname__ = "datetime", "datetime"
    dt.datetime = Shifted  # type: ignore[misc]
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


if __name__ == "__main__":
    shift(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
