"""What ends a run before its work is done: SIGTERM, a deadline, a hang.

In: limits, and signs of life, which are the log lines of this package. Out: an IncompleteError in the main thread,
wherever it is, that names the stage; if the main thread does not come round even to that, the end of the process. What
was committed stays. Knows nothing of what the run does.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from pipeline.errors import IncompleteError

logger = logging.getLogger(__name__)

_last_sign = 0.0  # of life, of whatever this process does

TICK_S = 0.5
LAST_S = 60.0  # for the main thread to come round, before the process is ended under it
PROGRESS = "pipeline.progress"  # speaks every 30 s whether anything moves or not, so that it is no sign of life


def alive() -> None:
    """Say that something moved: for loops that are long and say nothing else."""
    global _last_sign
    _last_sign = time.monotonic()


class Stopping:
    """Watch over a run while inside ``with``; does nothing outside the main thread, which alone gets signals.

    Raises:
        IncompleteError: inside, when one of the limits is passed.
    """

    def __init__(self, stage: Callable[[], str], deadline_s: float | None, hang_s: float, drain_s: float) -> None:
        self.stage = stage
        self.deadline_s = deadline_s
        self.hang_s = hang_s
        self.drain_s = drain_s
        self.began = time.monotonic()
        alive()
        self._asked: float | None = None  # when SIGTERM came
        self._why: str | None = None
        self._done = threading.Event()
        self._guard = threading.Thread(target=self._watch, name="stopping", daemon=True)
        self._ear = _Ear()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
            signal.signal(signal.SIGTERM, self._drain)  # `compute.start_ray` keeps it so
            signal.signal(signal.SIGALRM, self._stop)
            logging.getLogger("pipeline").addHandler(self._ear)
            self._guard.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._before:
            self._guard.join()  # what it still sends meets our handlers
        logging.getLogger("pipeline").removeHandler(self._ear)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    @property
    def has_stopped(self) -> bool:
        """Tell whether a limit ended the run."""
        return self._why is not None

    def _drain(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            logger.warning("SIGTERM: committing what ends within %.0f s, then stopping", self.drain_s)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._why is not None and not self._done.is_set():
            raise IncompleteError(self._why)

    def _watch(self) -> None:
        """Wait for a reason to stop; then interrupt the main thread, and at last end the process."""
        while not self._done.wait(TICK_S):
            self._why = self._reason(time.monotonic())
            if self._why is not None:
                break
        else:
            return
        logger.warning("stopping: %s", self._why)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        if not self._done.wait(LAST_S):
            faulthandler.dump_traceback(all_threads=True)
            print(f"{self._why}; the main thread did not stop within {LAST_S:.0f} s", file=sys.stderr, flush=True)
            os._exit(IncompleteError.exit_status)

    def _reason(self, now: float) -> str | None:
        ending = f"stage {self.stage()}: {{}}; what was committed stays, run the same command again"
        if self._asked is not None and now - self._asked > self.drain_s:
            return ending.format("stopped by SIGTERM")
        if self.deadline_s is not None and now - self.began > self.deadline_s:
            return ending.format(f"the deadline of {self.deadline_s:.0f} s has passed")
        if now - _last_sign > self.hang_s:
            return ending.format(f"nothing has moved for {self.hang_s:.0f} s")
        return None


class _Ear(logging.Handler):
    """Takes every log line of this package for a sign of life."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note that something was said."""
        if record.name != PROGRESS:
            alive()
