"""The vectors behind an index's codes: by id, to order candidates again by, and to search without any index.

In: files of vectors, memory-mapped, float16 beside inverted lists and float32 where they are the index itself; and a
`Selection`, which ids may come up. Scores are inner products of unit vectors, larger is better.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

NO_ID = -1
NO_SCORE = -np.inf
Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # D and I, each (n, k), best first; NO_ID where there are fewer
Block = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids (m,) and vectors (m, d)

BLOCK_ROWS = 1 << 16  # vectors of 512 take 128 MiB
RANKED_AT_ONCE = 1 << 14  # candidates; of 512 they take 48 MiB


@dataclass(frozen=True)
class Selection:
    """Which vector ids may come up: a flag for each."""

    flags: NDArray[np.bool_]

    @staticmethod
    def of(ids: NDArray[np.int64], end: int) -> "Selection":
        """Select some of the ids below ``end``."""
        flags = np.zeros(end, np.bool_)
        flags[ids] = True
        return Selection(flags)

    @cached_property
    def count(self) -> int:
        """How many may."""
        return int(np.count_nonzero(self.flags))

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Which they are, ascending."""
        return np.flatnonzero(self.flags)

    @cached_property
    def selector(self) -> faiss.IDSelector:
        """The same for FAISS; it points into this selection, which has to outlive it."""
        return faiss.IDSelectorBitmap(self._packed)

    @cached_property
    def _packed(self) -> NDArray[np.uint8]:
        return np.packbits(self.flags, bitorder="little")

    def __and__(self, other: "Selection | None") -> "Selection":
        return self if other is None else Selection(self.flags & other.flags)


class Exact:
    """Vectors (n, d) of several files, each holding consecutive ids; together they hold every id from 0 on."""

    def __init__(self, files: Sequence[NDArray[np.floating]]) -> None:
        self.files = list(files)
        self.starts = np.cumsum([0, *(len(file) for file in files)])
        self.d = int(files[0].shape[1])
        self._half = faiss.ScalarQuantizer(self.d, faiss.ScalarQuantizer.QT_fp16)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the vectors of some ids, in any order: (len(ids), d)."""
        if len(self.files) == 1:
            return self._single(np.take(self.files[0], ids, axis=0))
        found = np.empty((len(ids), self.d), self.files[0].dtype)
        places = np.searchsorted(self.starts, ids, side="right") - 1
        for number in np.unique(places):
            here = places == number
            found[here] = np.take(self.files[number], ids[here] - self.starts[number], axis=0)
        return self._single(found)

    def blocks(self, within: Selection | None = None) -> Iterator[Block]:
        """Read all vectors that may come up, a block at a time, in the order of ids."""
        for start, file in zip(self.starts, self.files, strict=False):
            for first in range(0, len(file), BLOCK_ROWS):
                rows = file[first : first + BLOCK_ROWS]
                ids = np.arange(start + first, start + first + len(rows))
                if within is not None:
                    kept = within.flags[ids]
                    ids, rows = ids[kept], rows[kept]
                if len(ids):
                    yield ids, self._single(rows)

    def search(self, xq: NDArray[np.float32], k: int, within: Selection | None = None) -> Found:
        """Search all vectors, or those selected; exact but for what float16 rounds off, 0.0005 of a score at most."""
        if within is not None and within.count <= BLOCK_ROWS:
            return nearest([(within.ids, self.take(within.ids))] if within.count else [], xq, k)
        return nearest(self.blocks(within), xq, k)

    def rank(self, xq: NDArray[np.float32], candidates: NDArray[np.int64], k: int) -> Found:
        """Order candidates (n, c) of each query by their exact scores, and keep the k best."""
        scores = np.empty(candidates.shape, np.float32)
        step = max(1, RANKED_AT_ONCE // candidates.shape[1])
        for first in range(0, len(xq), step):
            some = candidates[first : first + step]
            vectors = self.take(np.maximum(some.ravel(), 0)).reshape(*some.shape, self.d)
            scores[first : first + step] = np.matmul(vectors, xq[first : first + step, :, None])[:, :, 0]
        scores[candidates == NO_ID] = NO_SCORE
        return best(scores, candidates, k)

    def _single(self, rows: NDArray[np.floating]) -> NDArray[np.float32]:
        """Widen to float32: FAISS does it four times as fast as NumPy."""
        if rows.dtype == np.float32:
            return np.ascontiguousarray(rows)
        codes = np.ascontiguousarray(rows).view(np.uint8)
        return np.asarray(self._half.decode(codes)) if len(codes) else np.empty((0, self.d), np.float32)


def nearest(blocks: Iterable[Block], xq: NDArray[np.float32], k: int) -> Found:
    """Find the k best of all blocks for each query, by inner product."""
    scores = np.full((len(xq), k), NO_SCORE, np.float32)
    ids = np.full((len(xq), k), NO_ID, np.int64)
    for numbers, vectors in _gathered(blocks):
        found, where = faiss.knn(xq, vectors, min(k, len(vectors)), faiss.METRIC_INNER_PRODUCT)
        scores, ids = best(np.concatenate([scores, found], axis=1), np.concatenate([ids, numbers[where]], axis=1), k)
    return scores, ids


def _gathered(blocks: Iterable[Block]) -> Iterator[Block]:
    """Put small blocks together: what is best of each is sorted among the best so far, which costs as much again."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(ids) for ids, _ in waiting) >= BLOCK_ROWS:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    ids, vectors = zip(*blocks, strict=True)
    return np.concatenate(ids), np.concatenate(vectors)


def best(scores: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> Found:
    """Keep the k best of each row, best first; where there are fewer, NO_ID behind them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    if (missing := k - order.shape[1]) <= 0:
        return scores, ids
    padding = ((0, 0), (0, missing))
    return (
        np.pad(scores, padding, constant_values=NO_SCORE),
        np.pad(ids, padding, constant_values=NO_ID),
    )
