import io
import logging
import random
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline import progress
from pipeline.progress import WINDOW_S, Meter


class Terminal(io.StringIO):
    """A terminal of which what was written to it can be read."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The lines of a meter that speaks every few milliseconds, and not to a terminal."""
    monkeypatch.setattr(progress, "LINE_S", 0.005)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO, "pipeline.progress")
    return caplog


def later_line(log: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Wait for two lines more; the second was begun after this call."""
    before, deadline = len(log.records), time.monotonic() + 5
    while len(log.records) < before + 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    return log.records[before + 1]


@pytest.mark.parametrize("seed", range(10))
def test_rates_and_time_left_are_those_of_the_slow_computation(clock: SimpleNamespace, seed: int):
    rng = random.Random(seed)
    done, planned = rng.choice([0, 500]), 100_000
    meter = Meter(planned, done)
    writes = [(clock.now_s, 0)]
    for _ in range(60):
        clock.now_s += rng.choice([rng.uniform(0, 3), rng.uniform(0, 200)])
        writes.append((clock.now_s, rng.randrange(0, 1000)))
        meter.add(writes[-1][1], {})
        # Of the last two minutes, and of the time back to the write before, in which the first of their rows were made.
        since = max([at for at, _ in writes if at < clock.now_s - WINDOW_S], default=writes[0][0])
        recent = sum(rows for at, rows in writes if at > since)
        assert meter.rate_now() == pytest.approx(recent / (clock.now_s - since))
        clock.now_s += rng.uniform(0, 2)  # the mean is of this moment, whatever was written when
        rows, elapsed_s = sum(rows for _, rows in writes), clock.now_s - writes[0][0]
        assert meter.rows == done + rows
        assert meter.rate_mean() == pytest.approx(rows / elapsed_s)
        assert meter.left_s() == pytest.approx((planned - done - rows) * elapsed_s / rows if rows else None)


def test_the_rate_now_forgets_what_was_two_minutes_ago_and_the_mean_does_not(clock: SimpleNamespace):
    meter = Meter(10_000)
    for rate in (10, 2):
        for _ in range(100):
            clock.now_s += 2
            meter.add(2 * rate, {})
    assert meter.rate_now() == pytest.approx(2)
    assert meter.rate_mean() == pytest.approx(6)
    assert meter.left_s() == pytest.approx((10_000 - 2400) / 6)


def test_both_rates_fall_while_nothing_moves(clock: SimpleNamespace):
    meter = Meter(1000)
    clock.now_s += 10
    meter.add(100, {})
    rates = []
    for _ in range(5):
        clock.now_s += 30
        rates.append((meter.rate_now(), meter.rate_mean()))
    assert [mean for _, mean in rates] == pytest.approx([100 / s for s in (40, 70, 100, 130, 160)])
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 5


@pytest.mark.parametrize("done", [0, 70])
def test_there_is_no_time_left_to_tell_before_anything_is_done(clock: SimpleNamespace, done: int):
    meter = Meter(100, done)
    assert (meter.rate_now(), meter.rate_mean(), meter.left_s()) == (0, 0, None)
    clock.now_s += 60
    assert (meter.rate_now(), meter.rate_mean(), meter.left_s()) == (0, 0, None)
    clock.now_s += 40
    meter.add(100 - done, {})
    assert meter.left_s() == 0


def test_a_line_comes_again_and_again_also_when_nothing_moves(log: pytest.LogCaptureFixture):
    with Meter(100, 40) as meter:
        for _ in range(3):
            assert later_line(log).args[:2] == (40, 100)
        assert "left_s=None rejects={}" in log.records[-1].getMessage()
        meter.add(10, {})
        assert later_line(log).args[:2] == (50, 100)
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(5)
    lines = len(log.records)
    time.sleep(0.05)
    assert len(log.records) == lines  # it is over


def test_rejects_are_counted_by_reason(log: pytest.LogCaptureFixture):
    with Meter(100) as meter:
        for reasons in ({"truncated": 1, "null": 2}, {}, {"null": 1, "empty": 4}):
            meter.add(10, reasons)
        line = later_line(log)
    assert meter.reasons == {"truncated": 1, "null": 3, "empty": 4}
    assert line.getMessage().endswith("rejects={'empty': 4, 'null': 3, 'truncated': 1}")
    assert line.args[0] == 30  # rejects are rows too


def test_a_terminal_has_a_bar_and_no_lines(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with Meter(100, 20) as meter:
        meter.add(15, {"null": 3})
        time.sleep(0.05)
    assert log.records == []
    *_, last = (line for line in terminal.getvalue().splitlines() if "/100" in line)
    assert "35/100" in last
    assert "null=3" in last
