"""Pairs of rows, by vector id: put in order, each once, and no more of a row than can be held.

Pure: arrays in, arrays out. Similarity is larger for what is more alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_HAMMING = -1
# Of one row: a thousand copies of a picture that differ by noise would be half a million pairs. The pair with the row
# of the smallest id always stays, so that what is joined to everything stays joined.
MOST_OF_A_ROW = 64


@dataclass(frozen=True)
class Pairs:
    """m pairs: ids a < b (m,) int64, similarity float32, and in how many bits hashes differ, int16."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    similarity: NDArray[np.float32]
    hamming: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, which: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Pairs":
        return Pairs(self.a[which], self.b[which], self.similarity[which], self.hamming[which])

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The columns by name, as a piece keeps them."""
        return {"a": self.a, "b": self.b, "similarity": self.similarity, "hamming": self.hamming}


def pairs(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    similarity: NDArray[np.float32] | float = 0.0,
    hamming: NDArray[np.int16] | int = NO_HAMMING,
) -> Pairs:
    """Make pairs of ids in any order; those of a row with itself are left out."""
    shape = np.shape(one)
    found = Pairs(
        np.minimum(one, other).astype(np.int64),
        np.maximum(one, other).astype(np.int64),
        np.broadcast_to(np.asarray(similarity, np.float32), shape),
        np.broadcast_to(np.asarray(hamming, np.int16), shape),
    )
    return found[found.a != found.b]


NO_PAIRS = pairs(np.empty(0, np.int64), np.empty(0, np.int64))


def joined(parts: Iterable[Pairs]) -> Pairs:
    """Put pairs together, in the order of ids; of a pair that comes twice the most alike stays."""
    columns = zip(*((part.a, part.b, part.similarity, part.hamming) for part in [NO_PAIRS, *parts]), strict=True)
    every = Pairs(*(np.concatenate(column) for column in columns))
    every = every[np.lexsort((every.hamming, -every.similarity, every.b, every.a))]
    is_new = np.ones(len(every), np.bool_)
    is_new[1:] = (every.a[1:] != every.a[:-1]) | (every.b[1:] != every.b[:-1])
    return every[is_new]


def thinned(some: Pairs, most: int = MOST_OF_A_ROW) -> tuple[Pairs, int]:
    """Keep a pair if it is among the ``most`` best of either row, or joins one to its smallest id; say how many go."""
    if len(some) <= most:
        return some, 0
    source, target = np.concatenate([some.a, some.b]), np.concatenate([some.b, some.a])
    likeness, number = np.tile(some.similarity, 2), np.tile(np.arange(len(some)), 2)
    kept = np.zeros(len(some), np.bool_)
    for order, count in ((np.lexsort((target, -likeness, source)), most), (np.lexsort((target, source)), 1)):
        of = source[order]
        first = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
        rank = np.arange(len(of)) - np.repeat(first, np.diff(np.r_[first, len(of)]))
        kept[number[order[rank < count]]] = True
    return some[kept], int(len(some) - np.count_nonzero(kept))
