"""How far a run is: rows done of rows planned, the rate now and in the mean, the time left, rejects by reason.

In: rows as they are written. Out: a bar on a terminal; elsewhere a log line every 30 s, also when nothing moves. Rows
count when they are written, not when they are read. Knows nothing of Ray.
"""

import logging
import sys
import threading
import time
from collections import Counter, deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LINE_S = 30.0
WINDOW_S = 120.0  # that "now" means: files are written every few seconds to minutes


class Meter:
    """Tell how far a run is, while inside ``with``."""

    def __init__(self, planned: int, done: int = 0) -> None:
        self.planned = planned
        self.rows = self.before = done
        self.reasons: Counter[str] = Counter()
        self.began = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self.began, done)])
        self._over = threading.Event()
        self._voice = threading.Thread(target=self._speak, name="progress", daemon=True)
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("rows", total=self.planned, completed=self.rows, said="")
        else:
            self._voice.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def add(self, rows: int, reasons: dict[str, int]) -> None:
        """Count rows that are written, and the rejects among them."""
        self.rows += rows
        self.reasons.update(reasons)
        now = time.monotonic()
        self._marks.append((now, self.rows))
        if self._bar is not None:
            self._bar.update(self._task, completed=self.rows, said=self._said())

    def rate_now(self) -> float:
        """Give rows per second over the last two minutes, up to this moment."""
        now = time.monotonic()
        while len(self._marks) > 1 and self._marks[1][0] < now - WINDOW_S:
            self._marks.popleft()
        since, rows = self._marks[0]
        return (self.rows - rows) / max(1e-9, now - since)

    def rate_mean(self) -> float:
        """Give rows per second since the beginning, start-up included."""
        return (self.rows - self.before) / max(1e-9, time.monotonic() - self.began)

    def left_s(self) -> float | None:
        """Estimate the seconds left, by the mean rate; None while nothing is done."""
        mean = self.rate_mean()
        return (self.planned - self.rows) / mean if mean else None

    def _said(self) -> str:
        rejects = " ".join(f"{reason}={rows}" for reason, rows in sorted(self.reasons.items()))
        return f"{self.rate_now():.1f} images/s (mean {self.rate_mean():.1f}) {rejects}"

    def _speak(self) -> None:
        while not self._over.wait(LINE_S):
            left_s = self.left_s()
            logger.info(
                "rows=%d planned=%d images_per_s=%.1f mean_images_per_s=%.1f left_s=%s rejects=%s",
                self.rows, self.planned, self.rate_now(), self.rate_mean(),
                None if left_s is None else round(left_s), dict(sorted(self.reasons.items())),
            )  # fmt: skip


def _bar() -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=Console(stderr=True))
