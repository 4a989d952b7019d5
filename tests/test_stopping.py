"""Signals are the main thread's, so most of this happens in processes of their own, by a clock that is set by hand."""

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import stopping
from pipeline.errors import IncompleteError
from pipeline.stopping import Stopping

ROOT = Path(__file__).parent.parent

# A run whose every step takes as long as it says, and then waits until the guard has looked at the clock.
PRELUDE = """
import ctypes, logging, os, signal, sys, threading, time
from pipeline import stopping
from pipeline.errors import IncompleteError
from pipeline.stopping import Stopping

class Clock:
    now_s = 1000.0
    looks = 0

    def monotonic(self):
        if threading.current_thread().name == "stopping":
            self.looks += 1
        return self.now_s

clock = stopping.time = Clock()
stopping.TICK_S, stopping.LAST_S = 0.005, 60.0
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

def step(seconds):
    clock.now_s += seconds
    looked = clock.looks + 3  # the first may have been on its way, and of the last it is not known what it found
    while clock.looks < looked:
        time.sleep(0.001)
    print("step", flush=True)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

def run(body, deadline_s=None, hang_s=1e9, drain_s=1e9):
    try:
        with Stopping(lambda: "embed", deadline_s, hang_s, drain_s) as watch:
            body(watch)
    except IncompleteError as error:
        print(error)
        sys.exit(error.exit_status)
"""


def process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_after_sigterm_what_ends_in_time_is_done_and_then_the_run_stops_naming_its_stage():
    done = process("""
def body(watch):
    step(7)
    terminate()
    while True:
        step(1)

run(body, drain_s=20)
""")
    *steps, said = done.stdout.splitlines()
    assert steps == ["step"] * 21  # one before, and those of 20 s
    assert said == "stage embed: stopped by SIGTERM; what was committed stays, run the same command again"
    assert done.returncode == 3
    assert "SIGTERM: committing what ends within 20 s" in done.stderr


def test_sigterm_from_outside_ends_a_run_that_waits():
    waits = "run(lambda watch: (print('ready', flush=True), time.sleep(60)), drain_s=-1)"
    with subprocess.Popen([sys.executable, "-c", PRELUDE + waits], cwd=ROOT, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout.readline() == "ready\n"
        one.send_signal(signal.SIGTERM)
        assert one.communicate(timeout=30)[0].startswith("stage embed: stopped by SIGTERM")
    assert one.returncode == 3


def test_a_run_that_ends_while_it_drains_ends_well():
    done = process("""
def body(watch):
    terminate()
    for _ in range(3):
        step(6)
    print("done")

run(body, drain_s=20)
""")
    assert (done.stdout.splitlines(), done.returncode) == (["step"] * 3 + ["done"], 0)


def test_a_second_sigterm_gives_no_more_time():
    done = process("""
def body(watch):
    while True:
        terminate()
        step(8)

run(body, drain_s=20)
""")
    assert (done.stdout.count("step\n"), done.returncode) == (2, 3)


def test_a_deadline_ends_a_run_however_lively():
    done = process("""
def body(watch):
    while True:
        stopping.alive()
        logging.getLogger("pipeline.embedding").info("unit=a")
        step(10)

run(body, deadline_s=100, hang_s=15)
""")
    *steps, said = done.stdout.splitlines()
    assert steps == ["step"] * 10
    assert said.startswith("stage embed: the deadline of 100 s has passed; ")
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("speak", "is_life"),
    [
        ("logging.getLogger('pipeline.embedding.receipts').info('unit=a')", True),
        ("stopping.alive()", True),
        ("logging.getLogger('pipeline.progress').info('rows=0')", False),
        ("logging.getLogger('ray.data').warning('still running')", False),
        ("None", False),
    ],
)
def test_log_lines_are_signs_of_life_and_those_of_progress_are_not(speak: str, is_life: bool):
    done = process(f"""
def body(watch):
    for _ in range(10):
        step(40)
        {speak}

run(body, hang_s=60)
""")
    assert done.returncode == (0 if is_life else 3)
    assert done.stdout.count("step\n") == (10 if is_life else 1)
    assert ("stage embed: nothing has moved for 60 s; " in done.stdout) == (not is_life)


def test_what_a_run_does_on_its_way_out_is_waited_for():
    done = process("""
def body(watch):
    try:
        clock.now_s += 101
        time.sleep(60)
    finally:
        time.sleep(0.2)
        print("released")

run(body, deadline_s=100)
""")
    assert done.stdout.startswith("released\nstage embed: the deadline")
    assert done.returncode == 3


@pytest.mark.parametrize(
    "body",
    [
        """
    mutex = ctypes.create_string_buffer(64)  # zeros are PTHREAD_MUTEX_INITIALIZER
    lock = ctypes.CDLL(None).pthread_mutex_lock  # which no signal interrupts
    lock(mutex)
    lock(mutex)
""",
        """
    while True:
        try:
            time.sleep(60)
        except IncompleteError:
            print("not now", flush=True)
""",
        """
    try:
        time.sleep(60)
    finally:
        time.sleep(60)
""",
    ],
    ids=["in_c_code", "swallows_it", "cleans_up_for_ever"],
)
def test_a_main_thread_that_does_not_come_round_ends_with_its_process(body: str):
    began = time.monotonic()
    done = process(f"""
def body(watch):
    clock.now_s += 101
{body}

stopping.LAST_S = 0.2
run(body, deadline_s=100)
""")
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stage embed: the deadline of 100 s has passed; ")
    assert last.endswith("the main thread did not stop within 0 s")
    assert 'File "<string>"' in done.stderr  # where it was
    assert time.monotonic() - began < 30


def test_a_limit_passed_just_as_a_run_ends_does_not_kill_its_process():
    done = process("""
left = threading.Event()

class SlowLog(logging.Handler):
    def emit(self, record):
        left.wait(0.5)

logging.getLogger("pipeline.stopping").addHandler(SlowLog())

def body(watch):
    clock.now_s += 101
    time.sleep(0.1)

run(body, deadline_s=100)
left.set()
time.sleep(0.2)
print("done")
""")
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_signals_and_logging_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "TICK_S", 0.005)

    def state() -> tuple:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
        return *handlers, list(logging.getLogger("pipeline").handlers)

    before = state()
    with Stopping(lambda: "embed", None, 60, 60):
        assert all(now != then for now, then in zip(state(), before, strict=True))
    assert state() == before
    with pytest.raises(KeyError), Stopping(lambda: "embed", None, 60, 60):
        raise KeyError
    assert state() == before
    with pytest.raises(IncompleteError, match="deadline"), Stopping(lambda: "embed", -1, 60, 60):
        time.sleep(60)
    assert state() == before


def test_nothing_happens_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "TICK_S", 0.005)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    seen = []

    def body() -> None:
        with Stopping(lambda: "embed", -1, -1, -1):
            time.sleep(0.1)  # long past all limits
            seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)))
            seen.append([thread.name for thread in threading.enumerate() if thread.name == "stopping"])
            seen.append(logging.getLogger("pipeline").handlers)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before, [], []]
