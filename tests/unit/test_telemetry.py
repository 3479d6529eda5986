import asyncio
import base64
import gc
import io
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import telemetry
from services.chassis.errors import InvalidArgument
from services.chassis.redaction import redact, remember
from services.chassis.secret import Secret
from services.chassis.telemetry import (
    Beginning,
    Trace,
    bind,
    configure_logging,
    current_ids,
    new_trace,
    parse_traceparent,
    traceparent,
)

CANARY = "c4n4ry-?>?>?>/ü"
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Log:
    """A process that logs as `configure_logging` says, and what came to its stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stderr = io.StringIO()
        self._monkeypatch = monkeypatch

    def configure(self, log_format: str = "json", level: str = "INFO") -> None:
        # Here, not in the fixture: between set-up and test, pytest changes stderr and handlers.
        self._monkeypatch.setattr(sys, "stderr", self._stderr)
        configure_logging("registry", log_format, level)

    def text(self) -> str:
        return self._stderr.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, logging.raiseExceptions)
    hooks = (sys.excepthook, threading.excepthook)
    levels = {name: logging.getLogger(name).level for name in telemetry._KEPT_QUIET}
    yield Log(monkeypatch)
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, logging.raiseExceptions = kept
    sys.excepthook, threading.excepthook = hooks
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_says_when_who_and_what(log: Log) -> None:
    log.configure()
    logging.getLogger("registry.apply").info("applied %d changes", 3, extra={"revision": 7})
    (line,) = log.lines()
    assert line == {
        "time": line["time"],
        "level": "INFO",
        "service": "registry",
        "logger": "registry.apply",
        "message": "applied 3 changes",
        "revision": 7,
    }


def test_the_time_is_utc_in_rfc_3339(log: Log) -> None:
    log.configure()
    record = logging.makeLogRecord({"created": 1_772_366_400.123, "msg": "x", "levelno": 20})
    logging.getLogger().handle(record)
    assert log.lines()[0]["time"] == "2026-03-01T12:00:00.123Z"


def test_ids_bound_here_stand_on_every_line_until_the_block_ends(log: Log) -> None:
    log.configure()
    here = logging.getLogger("x")
    with bind(parse_traceparent(HEADER), request_id="r1", tenant="acme"):
        with bind(method="Apply", tenant="other"):
            here.info("inner")
        here.info("outer")
    here.info("outside")
    ids = [
        {name: line.get(name) for name in ("request_id", "tenant", "method", "trace_id")}
        for line in log.lines()
    ]
    assert [list(each.values()) for each in ids] == [
        ["r1", "other", "Apply", TRACE_ID],
        ["r1", "acme", None, TRACE_ID],
        [None, None, None, None],
    ]


async def test_tasks_do_not_see_each_others_ids() -> None:
    both_bound = asyncio.Barrier(2)

    async def serve(request_id: str) -> str:
        with bind(request_id=request_id):
            await both_bound.wait()
            return current_ids()["request_id"]

    assert list(await asyncio.gather(serve("a"), serve("b"))) == ["a", "b"]
    assert not current_ids()


async def test_a_stream_closed_from_another_task_does_not_fail() -> None:
    async def stream() -> AsyncGenerator[int, None]:
        with bind(request_id="a"):
            yield 1

    running = stream()
    await anext(running)
    await asyncio.create_task(running.aclose())


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (HEADER, True),
        (HEADER[:-2] + "00", False),
        (HEADER[:-2] + "03", True),
        (f" {HEADER} ", True),
    ],
)
def test_a_callers_trace_is_read(header: str, sampled: bool) -> None:
    assert parse_traceparent(header) == Trace(TRACE_ID, SPAN_ID, sampled)


def test_a_later_version_is_read_as_far_as_we_know_it() -> None:
    assert parse_traceparent(f"01{HEADER[2:]}-more") == Trace(TRACE_ID, SPAN_ID, sampled=True)


@pytest.mark.parametrize(
    "header",
    [
        *("", "x", HEADER[:-1], HEADER + "-more", HEADER + "0", "ff" + HEADER[2:], HEADER.upper()),
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01\nX: y",
    ],
)
def test_a_trace_that_is_not_valid_is_none(header: str) -> None:
    assert parse_traceparent(header) is None


@given(st.text())
def test_no_header_whatever_breaks_the_parser(header: str) -> None:
    assert parse_traceparent(header) is None


def test_a_call_out_carries_the_trace_with_a_span_of_its_own() -> None:
    with bind(parse_traceparent(HEADER[:-2] + "00")):
        sent = parse_traceparent(traceparent())
    assert sent is not None
    assert (sent.trace_id, sent.sampled) == (TRACE_ID, False)
    assert sent.span_id != SPAN_ID


def test_without_a_trace_a_call_out_begins_one() -> None:
    assert parse_traceparent(traceparent()) is not None
    made = new_trace()
    assert parse_traceparent(made.header) == made
    assert new_trace().trace_id != made.trace_id


def test_all_lines_and_calls_of_a_request_that_begins_here_are_of_one_trace(log: Log) -> None:
    log.configure()
    here = logging.getLogger("x")
    with bind(Beginning()):
        here.info("outer")
        with bind(tenant="acme"):
            here.info("inner")
            sent = parse_traceparent(traceparent())
    with bind(Beginning()):
        here.info("another")
    outer, inner, another = log.lines()
    assert sent is not None
    assert outer["trace_id"] == inner["trace_id"] == sent.trace_id
    assert UUID(outer["request_id"]) == UUID(inner["request_id"])
    for name in ("trace_id", "request_id"):
        assert another[name] != outer[name]


SHAPED = [
    "tnk_live_abc_Zx81canary_1a2b3c",
    "Authorization: Bearer canary.canary-canary",
    "authorization: Basic Y2FuYXJ5OmNhbmFyeQ==",
    "{'Authorization': 'token canary canary'}",
    '{"authorization": "canary"}',
    "bearer canary",
    "sent Basic Y2FuYXJ5OmNhbmFyeQ==",
    "ghp_canary0123456789canary0123456789",
    "gho_canary",
    "github_pat_canary_canary",
    "glpat-canary",
    "whsec_canary+/=",
    "sk_live_canary",
    "rk_test_canary",
    "xoxb-canary-canary",
    "eyJcanary.eyJcanary.canary",
    "postgresql://tenon:canary@db/tenon",
    "postgresql+psycopg://tenon:can@ary@db/tenon",
    "https://:canary@host/",
    "password=canary dbname=x",
    "password='canary canary' dbname=x",
    '{"password": "cana\\"canary"}',
    "{'client_secret': 'canary', 'a': 1}",
    "https://h/?access_token=canary&b=1",
    "api_key=canary",
    "x-api-key: canary",
    "Cookie: a=canary; b=canary",
    "-----BEGIN PRIVATE KEY-----\ncanary\ncanary\n-----END PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----\\ncanary\\ncana",
    "[SQL: SELECT 1]\n[parameters: {'a': 'canary'}]",
    "DETAIL:  Failing row contains (1, canary, 2).",
]


@pytest.mark.parametrize("text", SHAPED)
@pytest.mark.parametrize("around", ["{}", "before {} after", "({})", "x={}", '"{}"', "{}\nnext"])
def test_what_looks_like_a_secret_is_not_shown(text: str, around: str) -> None:
    shown = redact(around.format(text))
    assert "canary" not in shown.lower()
    assert "Y2Fu" not in shown
    assert "•••" in shown


@pytest.mark.parametrize(
    "text",
    [
        "applied revision 7 of acme",
        "tenants/acme/integrations/github",
        "https://api.github.com:443/repos/a/b?page=2",
        "a secret must be a reference: {env: NAME}",
        "the token is missing",
        "019ca945-0a7b-7000-8000-000000000000",
    ],
)
def test_plain_words_are_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", ["eyJ" * 60_000, "token" * 40_000, "a" * 200_000, "://" * 60_000])
def test_long_text_is_redacted_in_time(text: str) -> None:
    begun = time.process_time()
    redact(text)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "spell",
    [
        str,
        repr,
        lambda text: repr(text.encode()),
        lambda text: urllib.parse.quote(text, safe=""),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
        lambda text: text.encode().hex(),
    ],
)
def test_a_remembered_secret_is_hidden_in_every_spelling(spell: Callable[[str], str]) -> None:
    held = remember(Secret(CANARY))
    assert redact(f"at {spell(CANARY)} end").replace("b'", "").replace("'", "") == "at ••• end"
    assert held


def test_a_remembered_secret_of_bytes_is_hidden() -> None:
    held = remember(Secret(b"\xff\xfe-canary"))
    assert "canary" not in redact(repr(held.reveal()))


def test_a_secret_is_forgotten_with_its_last_holder() -> None:
    secret = remember(Secret(CANARY))
    assert remember(secret) is secret
    assert CANARY not in redact(CANARY)
    del secret
    gc.collect()
    assert redact(CANARY) == CANARY


def test_a_secret_that_begins_another_leaves_no_rest_behind() -> None:
    held = [remember(Secret("swordfish")), remember(Secret("swordfish-canary"))]
    assert redact("it is swordfish-canary") == "it is •••"
    assert len(held) == 2


def test_short_words_are_not_blotted_out() -> None:
    held = remember(Secret("acme"))
    assert redact("tenant acme") == "tenant acme"
    assert held


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_part_of_a_record_shows_a_secret(log: Log, log_format: str) -> None:
    log.configure(log_format, "DEBUG")
    secret = remember(Secret(CANARY))
    here = logging.getLogger("x")

    def fail(password: str) -> None:
        inner = password + "!"
        raise ValueError(f"cannot use {inner}")

    try:
        fail(CANARY)
    except ValueError as error:
        error.add_note(f"note {CANARY}")
        here.exception("failed with %s", CANARY)
        here.warning("extras", extra={"body": CANARY, "api_key": "plain", "held": secret})
    here.error(f"wrong arguments {CANARY}", 1, 2)
    here.error("%d", CANARY)
    with bind(method=CANARY):
        here.info("ids")
    shown = log.text()
    assert "c4n4ry" not in shown
    assert "plain" not in shown
    assert "ValueError" in shown
    assert len(shown.splitlines()) >= 5


def test_an_error_is_told_with_type_message_and_trace_but_no_locals(log: Log) -> None:
    log.configure()

    def fail(argument: str) -> None:
        raise KeyError("absent")

    try:
        fail("local-value")
    except KeyError:
        logging.getLogger("x").exception("oops")
    error = log.lines()[0]["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["message"]) == ("KeyError", "'absent'")
    assert "in fail" in error["trace"]
    assert "local-value" not in error["trace"].replace('fail("local-value")', "")


def test_other_peoples_loggers_go_the_same_way_and_quietly(log: Log) -> None:
    log.configure()
    theirs = logging.getLogger("aiohttp.server")
    theirs.addHandler(logging.StreamHandler())
    theirs.propagate = False
    log.configure("json", "DEBUG")
    theirs.error("broken %s", "password=canary")
    logging.getLogger("sqlalchemy.engine.Engine").info("SELECT 1 %r", {"a": "canary"})
    assert [line["logger"] for line in log.lines()] == ["aiohttp.server"]
    assert "canary" not in log.text()


def test_a_warning_is_a_line_like_any_other(log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure()
        warnings.warn("old password=canary", UserWarning, stacklevel=1)
    assert [line["logger"] for line in log.lines()] == ["py.warnings"]
    assert "canary" not in log.text()


def test_a_console_line_cannot_be_forged(log: Log) -> None:
    log.configure("console")
    logging.getLogger("x").info(
        "asked for \n12:00:00.000  INFO  forged \x1b[31m", extra={"a": "b\nc"}
    )
    (line,) = log.text().splitlines()
    assert "\x1b" not in line


def test_a_console_line_is_for_reading(log: Log) -> None:
    log.configure("console")
    with bind(tenant="acme"):
        logging.getLogger("apply").warning("slow")
    line = log.text()
    assert line[12:] == "  WARNING  slow  service=registry  logger=apply  tenant=acme\n"


@pytest.mark.parametrize(
    ("log_format", "level", "setting"),
    [("xml", "INFO", "TENON_LOG_FORMAT"), ("json", "LOUD", "TENON_LOG_LEVEL")],
)
def test_a_setting_there_is_not_is_named(log_format: str, level: str, setting: str) -> None:
    with pytest.raises(InvalidArgument, match=setting):
        configure_logging("registry", log_format, level)


@pytest.mark.parametrize(
    "ending",
    [
        "raise ValueError('password=canary')",
        "import threading; t = threading.Thread(target=lambda: int('tnk_canary')); t.start(); t.join()",
        "import asyncio\nasync def main():\n asyncio.get_running_loop().call_soon(int, 'tnk_canary')\n await asyncio.sleep(0)\nasyncio.run(main())",
    ],
)
def test_an_uncaught_error_is_a_line_like_any_other(ending: str) -> None:
    program = (
        f"from services.chassis.telemetry import configure_logging as c\nc('registry')\n{ending}"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (line,) = [json.loads(each) for each in done.stderr.splitlines()]
    assert line["error"]["type"] == "ValueError"
    assert "canary" not in done.stderr
    assert not done.stdout
