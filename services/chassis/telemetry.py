"""Logs that explain themselves: one redacted way to stderr, every line with its request's ids."""

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import Final, NamedTuple

from services.chassis.errors import invalid
from services.chassis.ids import uuid7
from services.chassis.plain_text import CONTROL
from services.chassis.randomness import Randomness
from services.chassis.redaction import redact, redact_field, remember

__all__ = [
    "Beginning",
    "Trace",
    "bind",
    "configure_logging",
    "current_ids",
    "new_trace",
    "parse_traceparent",
    "redact",
    "remember",
    "traceparent",
]

FORMAT_SETTING: Final = "TENON_LOG_FORMAT"
LEVEL_SETTING: Final = "TENON_LOG_LEVEL"
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class Trace(NamedTuple):
    """A W3C trace as one party sees it; ids are lower-case hex of 16 and 8 bytes."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def header(self) -> str:
        """The `traceparent` header that stands for it."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


class Beginning:
    """The trace of a request that comes with none, and the request's id; for `bind`.

    Made when a log line or a call out first asks for them: most webhooks have neither, and to make
    them is 4 % of what the ingress does for one (measured).
    """

    @cached_property
    def trace(self) -> Trace:
        """The trace that begins with the request."""
        return new_trace()

    @cached_property
    def request_id(self) -> str:
        """The request's id."""
        return str(uuid7())


_ids: Final[ContextVar[Mapping[str, str]]] = ContextVar("ids", default=MappingProxyType({}))
_trace: Final[ContextVar[Trace | Beginning | None]] = ContextVar("trace", default=None)

_random: Final = Randomness()
_TRACEPARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)


def new_trace() -> Trace:
    """A trace that begins here."""
    return Trace(_random.taken(16).hex(), _random.taken(8).hex(), sampled=True)


def parse_traceparent(header: str) -> Trace | None:
    """The trace a caller sent, or None when the header is not valid (W3C Trace Context §3.2)."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None or found["version"] == "ff":
        return None
    if found["version"] == "00" and found["rest"]:
        return None
    if not int(found["trace"], 16) or not int(found["span"], 16):
        return None
    return Trace(found["trace"], found["span"], bool(int(found["flags"], 16) & 1))


def traceparent() -> str:
    """The header for a call made now: the bound trace (else a new one) with a span of its own."""
    bound = _trace.get()
    trace = bound.trace if isinstance(bound, Beginning) else bound or new_trace()
    return Trace(trace.trace_id, _random.taken(8).hex(), trace.sampled).header


def current_ids() -> Mapping[str, str]:
    """What is bound here: `request_id`, `tenant`, `method` … and `trace_id`."""
    bound = _trace.get()
    if isinstance(bound, Beginning):
        return {"request_id": bound.request_id, **_ids.get(), "trace_id": bound.trace.trace_id}
    return {**_ids.get(), **({"trace_id": bound.trace_id} if bound else {})}


class Binding:
    """Ids and a trace on every log line of this task until the block ends."""

    __slots__ = ("_ids", "_outer", "_trace")

    def __init__(self, trace: Trace | Beginning | None, ids: Mapping[str, str]) -> None:
        self._trace, self._ids = trace, ids

    def __enter__(self) -> None:
        """Put them there, beside those that are there."""
        self._outer = outer_ids, outer_trace = _ids.get(), _trace.get()
        _ids.set({**outer_ids, **self._ids})
        _trace.set(self._trace or outer_trace)

    def __exit__(self, *_: object) -> None:
        """Put back what was there."""
        # Not by token: an abandoned stream is closed from another task, where tokens do not count.
        _ids.set(self._outer[0])
        _trace.set(self._outer[1])


def bind(trace: Trace | Beginning | None = None, /, **ids: str) -> Binding:
    """Puts ids, and a trace if given, on every log line of this task until the block ends."""
    return Binding(trace, ids)


def configure_logging(service: str, log_format: str = "json", level: str = "INFO") -> None:
    """Send every log of the process, warnings and uncaught errors included, to stderr, redacted.

    Raises InvalidArgument naming the setting for a format or level there is not.
    """
    if log_format not in _FORMATTERS:
        raise invalid(FORMAT_SETTING, f"one of {', '.join(_FORMATTERS)}")
    if level.upper() not in LEVELS:
        raise invalid(LEVEL_SETTING, f"one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format](service))
    _take_over(handler, level.upper())
    logging.captureWarnings(capture=True)
    # Else a record that cannot be written is printed with its arguments, in clear.
    logging.raiseExceptions = False
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


# Chatty below warning, and SQLAlchemy shows bound values there.
_KEPT_QUIET: Final = ("sqlalchemy", "aiohttp.access", "asyncio", "grpc", "alembic", "psycopg")


def _take_over(handler: logging.Handler, level: str) -> None:
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _KEPT_QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("uncaught").critical("uncaught error", exc_info=(kind, error, at))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _line(record: logging.LogRecord, service: str) -> dict[str, object]:
    """What one record says, redacted, in the order in which it is read."""
    line: dict[str, object] = {
        "time": _rfc3339(record.created),
        "level": record.levelname,
        "service": service,
        "logger": record.name,
        "message": redact(_message(record)),
    }
    extras = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    for name, value in {**extras, **current_ids()}.items():
        line.setdefault(name, redact_field(name, value))
    if record.exc_info and record.exc_info[1] is not None:
        line["error"] = _told(record.exc_info[1])
    return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} (its arguments do not fit it)"


def _told(error: BaseException) -> dict[str, str]:
    trace = traceback.TracebackException.from_exception(error, capture_locals=False)
    return {
        "type": type(error).__qualname__,
        "message": redact(str(error)),
        "trace": redact("".join(trace.format())),
    }


def _rfc3339(moment: float) -> str:
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII."""
        return json.dumps(_line(record, self._service))


class _ConsoleFormatter(_JsonFormatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, message, the rest as name=value; a traceback indented below."""
        line = _line(record, self._service)
        error = line.pop("error", None)
        head = [str(line.pop(name)) for name in ("time", "level", "message")]
        rest = [f"{name}={value}" for name, value in line.items()]
        shown = _one_line("  ".join((head[0][11:-1], f"{head[1]:7}", head[2], *rest)))
        trace = error["trace"].rstrip().split("\n") if isinstance(error, dict) else []
        return "\n".join((shown, *(f"    {_one_line(each)}" for each in trace)))


def _one_line(text: str) -> str:
    """Control characters escaped: what a caller sent must not forge lines or colour a terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_FORMATTERS: Final = {"json": _JsonFormatter, "console": _ConsoleFormatter}
