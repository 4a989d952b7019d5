"""Encoded images in, pixels out, through a process of its own that may die of any of them.

A decoder is C that reads what strangers wrote: it can loop, crash, or ask for all memory. Here that costs one row. The
process has no credentials in its environment, no core dumps, a bound on its memory, and a clock that counts processor
time, so that a busy machine rejects the same images as an idle one. What it says is parsed as JSON, never unpickled.
"""

import contextlib
import json
import logging
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.decode import check_bytes, open_rgb, take_over
from pipeline.embedding.fit import fitted, thumbnail_of
from pipeline.model import PreprocessSpec
from pipeline.schema import Reason, RejectedRowError

START_S = 120.0  # to start and import, on a machine that is busy starting others
# A decoder may also wait for ever and use no processor; then the wall clock ends it, late enough for busy machines.
WALL_FACTOR, WALL_EXTRA_S = 10.0, 60.0
BURIAL_S = 10.0  # for a process that hung up to be gone
EXTRA_BYTES = 1 << 30  # of address space, beside what a picture takes: libraries map more than they touch
KEPT_VARIABLES = ("PATH", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")

# Given back to the system after each image, and asked for again, memory costs a quarter of the time (glibc; measured on
# 640 x 480 JPEGs, 2026-11-21: 0.86 s for 128, and 0.67 s with these).
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
GROUP_BYTES = 64 << 20  # of encoded images that the process is given at a time, or one image
HEADER_BYTES = 64  # before the pixels: how many of a group's images are done
LENGTH_BYTES = 8  # before each thumbnail

Encoded = bytes | memoryview
Task = tuple[int, int, int]  # number of the image, and where its bytes start and stop among its group's


class Sandbox:
    """Decodes and fits images for one caller at a time; its process starts at once, and again after each death."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._start()

    def pixels(self, images: Sequence[Encoded | None]) -> tuple[NDArray[np.uint8], list[RejectedRowError | None]]:
        """Turn n images into pixels (n, 3, height_px, width_px), zeros and the reason where there are none."""
        pixels, _, outcomes = self.pictures(images)
        return pixels, outcomes

    def pictures(
        self, images: Sequence[Encoded | None]
    ) -> tuple[NDArray[np.uint8], list[bytes | None], list[RejectedRowError | None]]:
        """Give thumbnails too; none where the spec asks for none."""
        outcomes = [self._refusal(image) for image in images]
        good = {i: image for i, image in enumerate(images) if image is not None and outcomes[i] is None}
        with _memory_file(HEADER_BYTES + len(images) * _slot_bytes(self.spec)) as shared:
            memory = _map(shared)
            for group in _groups(good):
                with self._lock, _memory_file(group[-1][2]) as encoded:
                    for i, start, _ in group:
                        os.pwrite(encoded, good[i], start)
                    self._have_done(group, (shared, encoded), memory, outcomes)
        pixels = _pixels_in(memory, len(images), self.spec)
        for i, outcome in enumerate(outcomes):
            if outcome is not None:
                pixels[i] = 0
        thumbnails = [
            _thumbnail_in(memory, i, len(images), self.spec) if outcome is None else None
            for i, outcome in enumerate(outcomes)
        ]
        return pixels, thumbnails, outcomes

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1", **KEPT_MEMORY}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.embedding.sandbox", str(theirs.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError):  # dead already: the first call will say so
            self._connection.send(self.spec)
        self._is_ready = self._has_stalled = False

    def _refusal(self, image: Encoded | None) -> RejectedRowError | None:
        try:
            check_bytes(image, self.spec)
        except RejectedRowError as reject:
            return reject
        return None

    def _have_done(
        self, tasks: list[Task], files: tuple[int, int], memory: mmap.mmap, outcomes: list[RejectedRowError | None]
    ) -> None:
        """Fill in the pixels in memory and the outcomes, whatever dies of the tasks."""
        deaths = 0  # in a row, at the task that is next
        while tasks:
            memory[:HEADER_BYTES] = bytes(HEADER_BYTES)
            try:
                self._await_ready()
                for file in files:
                    send_handle(self._connection, file, self._process.pid)
                self._connection.send((len(outcomes), tasks))
                while (reject := self._reply(memory)) is not None:
                    outcomes[reject[0]] = reject[1]
                return
            except (EOFError, ConnectionError):
                cause, done = self._bury(), _tasks_done(memory)
                tasks, deaths = tasks[done:], 1 if done else deaths + 1
                if tasks and (cause is not None or deaths == 2):  # once may be an accident, as when memory ran out
                    outcomes[tasks[0][0]] = cause or RejectedRowError(
                        Reason.DECODE_FAILED, "the decoder's process died of it, twice"
                    )
                    tasks, deaths = tasks[1:], 0
            except BaseException:  # an interrupt: what the process would still say of this must not meet the next call
                self.close()
                self._start()
                raise

    def _await_ready(self) -> None:
        if not self._is_ready:
            if not self._connection.poll(START_S) or self._connection.recv_bytes() != b"ready":
                raise RuntimeError(f"the decoder's process did not start within {START_S:.0f} s")
            self._is_ready = True

    def _reply(self, memory: mmap.mmap) -> tuple[int, RejectedRowError] | None:
        """Wait for what is said of an image that is rejected, or for None, at the end of the group.

        Raises:
            EOFError, ConnectionError: the process is gone, or says what it should not.
        """
        before = -1
        while not self._connection.poll(self._wall_s):
            if _tasks_done(memory) == before:
                self._has_stalled = True
                self._process.kill()
            before = _tasks_done(memory)
        try:
            said = json.loads(self._connection.recv_bytes())
            return None if said is None else (int(said[0]), RejectedRowError(Reason(said[1]), str(said[2])))
        except (ValueError, TypeError, LookupError) as error:
            raise ConnectionError(f"the decoder's process said something else: {error}") from error

    @property
    def _wall_s(self) -> float:
        return WALL_FACTOR * self.spec.limits.max_decode_s + WALL_EXTRA_S

    def _bury(self) -> RejectedRowError | None:
        """Start another process; give what the last one's image did, if its death says so.

        Raises:
            RuntimeError: it has never been ready, and neither would be the next.
        """
        self._connection.close()
        try:
            status = self._process.wait(BURIAL_S)
        except subprocess.TimeoutExpired:  # it closed its end and lives
            self._process.kill()
            status = self._process.wait()
        if not self._is_ready:
            raise RuntimeError(f"the decoder's process ended with status {status} before it was ready; see its output")
        has_stalled = self._has_stalled
        self._start()
        if has_stalled:
            return RejectedRowError(Reason.TOO_SLOW, f"nothing came of it within {self._wall_s:g} s")
        if status == -signal.SIGPROF:
            limit = self.spec.limits.max_decode_s
            return RejectedRowError(Reason.TOO_SLOW, f"more than {limit:g} s of processor time")
        return None


def _groups(images: dict[int, Encoded]) -> Iterator[list[Task]]:
    """Put images together until they are GROUP_BYTES: what the process has in memory beside the one it decodes."""
    group: list[Task] = []
    stop = 0
    for i, image in images.items():
        if group and stop + len(image) > GROUP_BYTES:
            yield group
            group, stop = [], 0
        group.append((i, stop, stop + len(image)))
        stop += len(image)
    if group:
        yield group


@contextmanager
def _memory_file(size: int) -> Iterator[int]:
    """Open a nameless file of this size in memory, or on disk where the system has no such thing."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("rayclip")
    else:
        with tempfile.TemporaryFile() as opened:
            file = os.dup(opened.fileno())
    try:
        os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)


def _map(file: int) -> mmap.mmap:
    """Map all of a file; in one go where the system can, which is cheaper than page by page."""
    return mmap.mmap(file, 0, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def _pixels_in(memory: mmap.mmap, count: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
    flat = np.frombuffer(memory, np.uint8, count * spec.pixel_bytes, HEADER_BYTES)
    return flat.reshape(count, 3, spec.height_px, spec.width_px)


def _slot_bytes(spec: PreprocessSpec) -> int:
    """Give what one image takes in memory: its pixels, and the length and bytes of its thumbnail."""
    return spec.pixel_bytes + (LENGTH_BYTES + spec.thumbnail_bytes if spec.thumbnail_px is not None else 0)


def _thumbnail_start(i: int, count: int, spec: PreprocessSpec) -> int:
    return HEADER_BYTES + count * spec.pixel_bytes + i * (LENGTH_BYTES + spec.thumbnail_bytes)


def _thumbnail_in(memory: mmap.mmap, i: int, count: int, spec: PreprocessSpec) -> bytes | None:
    """Read a thumbnail, if there is one; whatever length stands there, no further than where it may lie."""
    if spec.thumbnail_px is None:
        return None
    start = _thumbnail_start(i, count, spec) + LENGTH_BYTES
    length = int.from_bytes(memory[start - LENGTH_BYTES : start], "little")
    return memory[start : start + min(length, spec.thumbnail_bytes)] if length else None


def _tasks_done(memory: mmap.mmap) -> int:
    return max(0, int(np.frombuffer(memory, np.int64, 1)[0]))


def _decode_for(connection: Connection) -> None:
    """Be the process: take groups until the other side is gone."""
    spec: PreprocessSpec = connection.recv()
    take_over(spec.limits)
    _confine(spec)
    _hush()
    connection.send_bytes(b"ready")
    while True:
        _decode_group(connection, spec)


def _decode_group(connection: Connection, spec: PreprocessSpec) -> None:
    shared, encoded = recv_handle(connection), recv_handle(connection)
    count, tasks = connection.recv()
    memory = _map(shared)
    pixels, done = _pixels_in(memory, count, spec), np.frombuffer(memory, np.int64, 1)
    for i, start, stop in tasks:
        image = os.pread(encoded, stop - start, start)
        signal.setitimer(signal.ITIMER_PROF, spec.limits.max_decode_s)  # SIGPROF ends us, in the midst of C
        try:
            picture = open_rgb(image, spec)
            pixels[i] = fitted(picture, spec)
            if spec.thumbnail_px is not None and (thumbnail := thumbnail_of(picture, spec)) is not None:
                start = _thumbnail_start(i, count, spec)
                memory[start : start + LENGTH_BYTES + len(thumbnail)] = (
                    len(thumbnail).to_bytes(LENGTH_BYTES, "little") + thumbnail
                )
        except RejectedRowError as reject:
            connection.send_bytes(json.dumps([i, reject.reason.value, str(reject)]).encode())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        done += 1
    os.close(shared)
    os.close(encoded)
    connection.send_bytes(b"null")


def _confine(spec: PreprocessSpec) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: SIM115, PTH123
        used = pages * resource.getpagesize()
        most = used + spec.limits.picture_bytes + EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _hush() -> None:
    """Let decoders complain to nobody, a line for each bad image; Python's own tracebacks are still seen."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 2)


if __name__ == "__main__":
    try:
        _decode_for(Connection(int(sys.argv[1])))
    except (EOFError, ConnectionError):  # nobody is left to decode for
        sys.exit(0)
