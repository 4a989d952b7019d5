import os
import signal
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.embedding import sandbox as sandbox_module
from pipeline.embedding.fit import pixels_of
from pipeline.embedding.sandbox import Sandbox
from pipeline.model import OPENAI_MEAN, OPENAI_STD, Limits, PreprocessSpec
from tests.conftest import encoded, saved

SPEC = PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD)
GOOD = [encoded(i) for i in range(4)]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(SPEC)
    yield made
    made.close()


def child(sandbox: Sandbox) -> psutil.Process:
    return psutil.Process(sandbox._process.pid)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_pixels_are_those_of_the_same_call_in_this_process(sandbox: Sandbox, count: int):
    pixels, outcomes = sandbox.pixels(GOOD[:count])
    assert outcomes == [None] * count
    expected = (
        np.zeros((0, 3, 64, 64), np.uint8) if count == 0 else np.stack([pixels_of(g, SPEC) for g in GOOD[:count]])
    )
    np.testing.assert_array_equal(pixels, expected)


def test_each_image_has_its_own_outcome_in_its_own_place(sandbox: Sandbox):
    pixels, outcomes = sandbox.pixels([b"text", GOOD[0], None, GOOD[1][:-40], b"", GOOD[2]])
    reasons = [outcome.reason if outcome else None for outcome in outcomes]
    assert reasons == ["not_an_image", None, "null", "truncated", "empty", None]
    np.testing.assert_array_equal(pixels[[1, 5]], [pixels_of(GOOD[0], SPEC), pixels_of(GOOD[2], SPEC)])
    assert not pixels[[0, 2, 3, 4]].any()


def test_earlier_pixels_stay_as_they_are(sandbox: Sandbox):
    first, _ = sandbox.pixels(GOOD[:1])
    before = first.copy()
    sandbox.pixels(GOOD[1:])
    np.testing.assert_array_equal(first, before)


def test_a_slow_image_is_ended_and_its_batch_is_not():
    sandbox = Sandbox(PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD, limits=Limits(max_decode_s=0.2)))
    slow = saved(Image.new("RGB", (9900, 9900), "red"), compress_level=1)
    before = child(sandbox).pid
    pixels, outcomes = sandbox.pixels([GOOD[0], slow, GOOD[1], slow, b"text"])
    reasons = [outcome.reason if outcome else None for outcome in outcomes]
    assert reasons == [None, "too_slow", None, "too_slow", "not_an_image"]
    assert str(outcomes[1]) == "more than 0.2 s of processor time"
    np.testing.assert_array_equal(pixels[[0, 2]], [pixels_of(GOOD[0], SPEC), pixels_of(GOOD[1], SPEC)])
    assert child(sandbox).pid != before
    sandbox.close()


def die_when_ready(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Kill the process just before it is given its first image, so often; gives the processes killed."""
    killed, await_ready = list[int](), Sandbox._await_ready

    def dying(self: Sandbox) -> None:
        await_ready(self)
        if len(killed) < times:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(Sandbox, "_await_ready", dying)
    return killed


def test_a_death_by_accident_costs_no_row(monkeypatch: pytest.MonkeyPatch):
    sandbox, killed = Sandbox(SPEC), die_when_ready(monkeypatch, 1)
    pixels, outcomes = sandbox.pixels(GOOD)
    assert len(killed) == 1
    assert outcomes == [None] * 4
    np.testing.assert_array_equal(pixels, [pixels_of(image, SPEC) for image in GOOD])
    sandbox.close()


@pytest.mark.parametrize("times", [2, 3, 4])
def test_an_image_that_kills_twice_is_the_one_that_is_rejected(monkeypatch: pytest.MonkeyPatch, times: int):
    sandbox, killed = Sandbox(SPEC), die_when_ready(monkeypatch, times)
    pixels, outcomes = sandbox.pixels([b"text", *GOOD])
    assert len(killed) == times
    reasons = [outcome.reason if outcome else None for outcome in outcomes]
    bad = ["decode_failed"] * (times // 2)
    assert reasons == [*bad, *["not_an_image", None, None, None, None][len(bad) :]]
    assert "died of it, twice" in str(outcomes[0])
    np.testing.assert_array_equal(pixels[3:], [pixels_of(image, SPEC) for image in GOOD[2:]])
    sandbox.close()


def test_large_images_are_given_to_it_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """128 of them would not fit into its memory bound; three of these do not either."""
    monkeypatch.setattr(sandbox_module, "EXTRA_BYTES", 300 << 20)
    large = encoded(1) + bytes(60 << 20)
    limits = Limits(max_image_pixels=1_000_000, max_image_bytes=61 << 20)
    sandbox = Sandbox(PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD, limits=limits))
    pixels, outcomes = sandbox.pixels([large] * 12)
    assert outcomes == [None] * 12
    assert (pixels == pixels_of(encoded(1), SPEC)).all()
    assert [len(group) for group in sandbox_module._groups(dict(enumerate([b"x" * (20 << 20)] * 7)))] == [3, 3, 1]
    sandbox.close()


def test_an_interrupted_call_does_not_poison_the_next(monkeypatch: pytest.MonkeyPatch):
    sandbox = Sandbox(SPEC)
    with monkeypatch.context() as patched:
        patched.setattr(Sandbox, "_reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sandbox.pixels([b"text", GOOD[0]])
    pixels, outcomes = sandbox.pixels([GOOD[1], b"text"])
    assert [outcome.reason if outcome else None for outcome in outcomes] == [None, "not_an_image"]
    np.testing.assert_array_equal(pixels[0], pixels_of(GOOD[1], SPEC))
    sandbox.close()


def interrupt(sandbox: Sandbox, memory: object) -> None:
    raise KeyboardInterrupt


def test_a_process_that_waits_for_ever_is_ended_by_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox_module, "WALL_EXTRA_S", 0.5)
    sandbox = Sandbox(PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD, limits=Limits(max_decode_s=0.05)))
    sandbox.pixels([b"text"])
    sandbox._await_ready()  # one that is stopped before has not begun with any image
    os.kill(sandbox._process.pid, signal.SIGSTOP)
    _, outcomes = sandbox.pixels([GOOD[0], b"text"])
    assert [outcome.reason if outcome else None for outcome in outcomes] == ["too_slow", "not_an_image"]
    assert str(outcomes[0]) == "nothing came of it within 1 s"
    sandbox.close()


@pytest.mark.parametrize("said", [b"[", b"[7]", b'{"a": 1}', b'["x", "null", ""]', b'[0, "no such reason", ""]'])
def test_a_process_that_says_what_it_should_not_is_ended(monkeypatch: pytest.MonkeyPatch, said: bytes):
    sandbox, await_ready, lies = Sandbox(SPEC), Sandbox._await_ready, [said]

    def lying(self: Sandbox) -> None:
        await_ready(self)
        if lies:
            receive = self._connection.recv_bytes
            self._connection.recv_bytes = lambda: lies.pop() if lies else receive()  # type: ignore[method-assign]

    monkeypatch.setattr(Sandbox, "_await_ready", lying)
    before = sandbox._process.pid
    assert sandbox.pixels(GOOD)[1] == [None] * 4
    assert sandbox._process.pid != before
    sandbox.close()


def test_nothing_is_left_open_after_many_batches(sandbox: Sandbox):
    sandbox.pixels(GOOD)
    ours, its = psutil.Process().num_fds(), child(sandbox).num_fds()
    for _ in range(50):
        sandbox.pixels([*GOOD, b"text"])
    assert (psutil.Process().num_fds(), child(sandbox).num_fds()) == (ours, its)


def test_a_limit_above_pillows_own_is_the_one_that_holds():
    limits = Limits(max_image_pixels=200_000_000)
    sandbox = Sandbox(PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD, limits=limits))
    pixels, [reject] = sandbox.pixels([saved(Image.new("1", (14_000, 14_000), 1), "PNG")])
    assert reject is None
    assert (pixels == 255).all()
    sandbox.close()


def test_the_process_has_no_credentials_and_no_core_dumps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    sandbox = Sandbox(SPEC)
    sandbox.pixels(GOOD[:1])
    process = child(sandbox)
    assert not [name for name in process.environ() if name.startswith("AWS")]
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert 0 < process.rlimit(psutil.RLIMIT_AS)[0] < 8 << 30
    sandbox.close()


def test_memory_beyond_the_bound_is_a_reject_and_not_the_machines():
    sandbox = Sandbox(SPEC)
    sandbox.pixels(GOOD[:1])
    process = child(sandbox)
    used = process.memory_info().vms
    process.rlimit(psutil.RLIMIT_AS, (used + (100 << 20), used + (100 << 20)))
    big = saved(Image.new("RGB", (9000, 9000), "red"), compress_level=1)
    _, outcomes = sandbox.pixels([big, GOOD[0]])
    assert [outcome.reason if outcome else None for outcome in outcomes] == ["decode_failed", None]
    assert "MemoryError" in str(outcomes[0])
    sandbox.close()


def test_it_ends_with_the_one_it_works_for():
    sandbox = Sandbox(SPEC)
    sandbox.pixels(GOOD[:1])
    process = child(sandbox)
    sandbox._connection.close()
    assert process.wait(10) in (0, None)


def test_a_process_that_cannot_start_is_an_error_and_not_a_reject(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    sandbox = Sandbox(SPEC)
    with pytest.raises(RuntimeError, match="ended with status 1 before it was ready"):
        sandbox.pixels(GOOD[:1])
