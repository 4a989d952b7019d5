"""How many images a device takes at a time: tried out on real rows, remembered, halved when memory runs out.

Nothing is encoded only to be timed: the first batches of a run have the sizes to be compared, and all rows of a call
are cut into batches that are as equal as they can be. Knows nothing of torch: whoever encodes says how long it took.
"""

import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pipeline.machine import cache_folder

logger = logging.getLogger(__name__)

TRIALS = 3  # timed batches of each size; one before them, which pays for whatever the device does but once, is not
NEAR = 0.97  # a smaller batch that is this near to the best rate is taken: it needs less memory
MISSES = 16  # batches too small for the size that is next to be tried, after which it is not
GOOD_BATCHES = 64  # after these at a reduced size, the double of it is tried again


class BatchSizes:
    """Says how large the next batch should be, and learns from how long each one took."""

    def __init__(self, candidates: Sequence[int], device: str) -> None:
        """Take the size that was found best on this device before, or else find out which of the candidates is.

        Args:
            candidates: sizes in rising order; a single one is a decision.
            device: whatever makes rates comparable: model, precision, device, threads, versions.
        """
        self.device = device
        self.best = candidates[-1]
        self._untried = list(candidates) if len(candidates) > 1 else []
        known = _remembered().get(device) if self._untried else None
        if known is not None and known in candidates:
            self.best, self._untried = known, []
        self._seconds: dict[int, list[float]] = {}
        self._limit: int | None = None  # since memory ran out
        self._good = self._missed = 0

    @property
    def is_trying(self) -> bool:
        """Tell whether the time of the next batch matters."""
        return bool(self._untried)

    def next(self, rows_left: int) -> int:
        """Give the size of the next of the batches that ``rows_left`` rows will need."""
        if self._untried and rows_left >= self._untried[0]:
            return self._untried[0]
        size = min(self.best, self._limit or self.best)
        return -(-rows_left // -(-rows_left // size))

    def took(self, size: int, seconds: float) -> None:
        """Take note of a batch that was encoded."""
        if self._untried and size == self._untried[0]:
            times = self._seconds.setdefault(size, [])
            times.append(seconds)
            if len(times) > TRIALS:
                self._untried.pop(0)
                if not self._untried:
                    self._decide()
        elif self._untried:
            self._missed += 1
            if self._missed == MISSES:
                self._decide()
        elif self._limit is not None:
            self._good += 1
            if self._good >= GOOD_BATCHES:
                self._limit, self._good = min(2 * self._limit, self.best), 0
                self._limit = None if self._limit == self.best else self._limit

    def failed(self, size: int) -> None:
        """Take note of a batch that there was no memory for: the same rows come again, fewer at a time."""
        self._limit, self._good = max(1, size // 2), 0
        if self._untried:
            self._seconds = {tried: times for tried, times in self._seconds.items() if tried < size}
            self.best = self._untried[0]
            self._decide()
        logger.warning("out of memory at batch_size=%d; going on with %d", size, self._limit)

    def _decide(self) -> None:
        """End the trials with what is known; if that is nothing, nothing is remembered."""
        self._untried = []
        if not self._seconds:
            return
        rates = {size: size / median(times[1:] or times) for size, times in self._seconds.items()}
        self.best = min(size for size, rate in rates.items() if rate >= NEAR * max(rates.values()))
        rounded = {size: round(rate, 1) for size, rate in rates.items()}
        logger.info("device=%r batch_size=%d images_per_s=%s", self.device, self.best, rounded)
        _remember(self.device, self.best)


def _file() -> Path:
    return cache_folder() / "batch_sizes.json"


def _remembered() -> dict[str, int]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
        return {str(device): int(size) for device, size in known.items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # none, or none that is ours; no home
        return {}


def _remember(device: str, size: int) -> None:
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps({**_remembered(), device: size}, indent=1), encoding="utf-8")
        temporary.replace(file)
    except (OSError, RuntimeError) as error:  # next time it is found out again
        logger.info("batch size not remembered: %s", error)
