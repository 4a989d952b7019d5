import contextlib
import io
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from jobs.launch import JsonLines, launch
from pipeline.config import Config
from pipeline.errors import IncompleteError, InputError, LeaseHeldError, RunError

LOGGERS = ("", "pipeline", "jobs")


class Small(Config):
    """A job of one option."""

    unit_rows: int = 3
    """Rows."""


def launched(call: Callable[[Small], None], *flags: str) -> tuple[int, list[str]]:
    """Run a job in this process as in one whose logging nobody has set up yet: its status, and what it says."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(one.level, one.handlers[:]) for one in loggers]
    loggers[0].handlers = []
    try:
        with contextlib.redirect_stderr(io.StringIO()) as written:
            status = launch(Small, call, "jobs.small", list(flags))
    finally:
        for one, (level, handlers) in zip(loggers, before, strict=True):
            one.setLevel(level)
            one.handlers = handlers
    return status, written.getvalue().splitlines()


def line(message: str, *arguments: object, **fields: object) -> dict:
    """Put a message into a line, and read it as a stranger would."""
    record = logging.LogRecord("pipeline.store", logging.INFO, __file__, 1, message, arguments, None)
    record.__dict__.update(fields)
    written = JsonLines().format(record)
    assert "\n" not in written
    return json.loads(written)


def test_what_a_message_says_as_key_and_value_are_fields_in_their_types():
    read = line(
        "unit=%s rows=%d seconds=%.2f left_s=%s rejects=%s", "a-1", 8192, 1.23456, None, {"null": 2, "truncated": 1}
    )
    del read["time"]
    assert read == {
        "level": "INFO",
        "logger": "pipeline.store",
        "message": "unit=a-1 rows=8192 seconds=1.23 left_s=None rejects={'null': 2, 'truncated': 1}",
        "unit": "a-1",
        "rows": 8192,
        "seconds": 1.23456,
        "left_s": None,
        "rejects": {"null": 2, "truncated": 1},
    }


@pytest.mark.parametrize(
    ("message", "arguments", "text"),
    [
        ("shard=%s left out: %s", ("a", "why"), "shard=a left out: why"),  # whose is the second?
        ("SIGTERM: stopping in %.0f s", (20.0,), "SIGTERM: stopping in 20 s"),
        ("nothing to add", (), "nothing to add"),
        ("100 % of rows=7", (), "100 % of rows=7"),
        ("share=%d%% of %s", (5, "rows"), "share=5% of rows"),
        ("rows=%(rows)d", ({"rows": 3},), "rows=3"),
    ],
)
def test_a_message_whose_values_have_no_names_is_text_alone(message: str, arguments: tuple, text: str):
    read = line(message, *arguments)
    assert read["message"] == text
    assert read.keys() == {"time", "level", "logger", "message"}


@pytest.mark.parametrize("value", [OSError(28, "No space"), {1, 2}, b"bytes", object, datetime(2026, 1, 1, tzinfo=UTC)])
def test_values_that_json_does_not_know_are_text(value: object):
    assert line("why=%s", value)["why"] == str(value)


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote"', "ä\u2028\x00", "back\\slash"])
def test_a_line_is_a_line_whatever_it_says(text: str):
    read = line("why=%s", text)
    assert (read["why"], read["message"]) == (text, f"why={text}")


@pytest.mark.parametrize("created", [0.0, 1767225599.9996, 1767225600.0, 1767225600.0625])
def test_times_are_utc_to_the_millisecond(created: float):
    record = logging.makeLogRecord({"created": created, "msecs": (created - int(created)) * 1000, "msg": "x"})
    at = json.loads(JsonLines().format(record))["time"]
    assert at.endswith("Z")
    assert 0 <= created - datetime.fromisoformat(at).timestamp() < 0.0011


def test_a_traceback_is_a_field_of_its_line():
    with pytest.raises(ValueError, match="x") as error:
        int("x")
    read = line("failed", exc_info=error._excinfo)
    assert read["message"] == "failed"
    assert read["traceback"].startswith("Traceback (most recent call last):\n")
    assert read["traceback"].endswith("\nValueError: invalid literal for int() with base 10: 'x'")


def speak(config: Small) -> None:
    logging.getLogger("pipeline.embedding.receipts").info("unit=%s rows=%d seconds=%.1f", "a-1", config.unit_rows, 0.25)
    logging.getLogger("jobs.demo").warning("two\nlines")
    logging.getLogger("s3fs.core").info("not ours")
    logging.getLogger("s3fs.core").warning("%d tries left", 2)
    logging.getLogger("pipeline").debug("too much")


@pytest.mark.parametrize("flags", [["--log-format", "json"], ["--log-format=json"], ["--log_format", "json"]])
@pytest.mark.parametrize("in_front", [True, False])
def test_every_line_of_a_job_that_logs_json_is_an_object(flags: list[str], in_front: bool):
    others = ["--unit-rows", "7"]
    status, lines = launched(speak, *([*flags, *others] if in_front else [*others, *flags]))
    config, unit, *rest = map(json.loads, lines)
    assert (status, config["config"]) == (0, '{"unit_rows": 7}')
    assert (unit["logger"], unit["level"]) == ("pipeline.embedding.receipts", "INFO")
    assert (unit["message"], unit["unit"]) == ("unit=a-1 rows=7 seconds=0.2", "a-1")
    assert (unit["rows"], unit["seconds"]) == (7, 0.25)
    assert [(one["logger"], one["level"], one["message"]) for one in rest] == [
        ("jobs.demo", "WARNING", "two\nlines"),
        ("s3fs.core", "WARNING", "2 tries left"),
    ]


@pytest.mark.parametrize("flags", [[], ["--log-format", "text"]])
def test_without_it_lines_are_for_people(flags: list[str]):
    status, lines = launched(speak, *flags)
    assert status == 0
    assert lines[0].endswith('INFO jobs.small config={"unit_rows": 3}')
    assert lines[1].endswith("INFO pipeline.embedding.receipts unit=a-1 rows=3 seconds=0.2")
    assert not any(one.startswith("{") for one in lines)


def failing(error: BaseException) -> Callable[[Small], None]:
    def fail(config: Small) -> None:
        raise error

    return fail


ENDS = pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (RunError("a\n  b"), 1, "a b"),
        (InputError("no such column"), 2, "no such column"),
        (IncompleteError("3 rows missing"), 3, "3 rows missing"),
        (LeaseHeldError("held"), 4, "held"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)


@ENDS
def test_what_ends_a_job_is_its_last_line_and_its_status(error: BaseException, status: int, why: str):
    ended, lines = launched(failing(error))
    assert (ended, lines[-1]) == (status, f"jobs.small: {why}")


@ENDS
def test_what_ends_a_job_that_logs_json_is_an_object_too(error: BaseException, status: int, why: str):
    ended, lines = launched(failing(error), "--log-format", "json")
    assert ended == status
    assert why in json.loads(lines[-1])["message"]


def test_an_error_that_nobody_expected_is_not_caught():
    with pytest.raises(ZeroDivisionError):
        launched(failing(ZeroDivisionError()))


def test_a_format_that_there_is_not_ends_with_status_2():
    with pytest.raises(SystemExit) as ended:
        launched(speak, "--log-format", "xml")
    assert ended.value.code == 2
