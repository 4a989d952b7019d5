"""Perceptual hashes: small grey pictures in, 64 bits each out, and those among many that differ in few bits.

A hash says of the 63 lowest frequencies of the cosine transform which are above their median (Zauner 2010, pHash). A
picture is asked for in several forms: turned and mirrored, which in the transform are changes of signs and places, and
with a little cut off, since cut pictures' hashes are far from each other. Bits are looked up in bands: of two hashes
that differ in up to seven of 64, one of four bands differs in one bit at most (multi-index hashing, Norouzi et al.
2012); of those that differ in more some are found. Pure.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

GREY_PX = 32
HASH_PX = 8  # frequencies each way
NO_HASH = np.uint64(0)  # no picture has it: half of a hash's bits are ones
BLANK_LEVELS = 2.0  # of 255: standard deviation below which a picture shows nothing that a hash could tell apart
CUT = 0.9  # of each edge, that is left: between nothing cut off and a fifth
CUT_OFFSETS = (0.0, 0.5, 1.0)  # of what is left, in what there was
SMALL = 1 << 21  # hashes, from which on bands of 16 bits hold too many
# Of a band's rows with one value: of skies and of pages there are more, which the bands that differ tell apart.
MOST_ALIKE = 512
LOOKED_UP = 1 << 16  # hashes at a time
Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int16]]  # number asked, number found, bits that differ


def hashes(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash grey pictures (n, GREY_PX, GREY_PX) as they are: (n,); NO_HASH where there is nothing on them."""
    found = _bits(_frequencies(grey, 0.0, 0.0, 1.0))
    blank = grey.std(axis=(1, 2)) < BLANK_LEVELS
    return np.where(blank, NO_HASH, found)


def forms(grey: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
    """Hash pictures in all forms that they are asked for in, one form (n,) after the other."""
    whole = _frequencies(grey, 0.0, 0.0, 1.0)
    for turned in (whole, whole.transpose(0, 2, 1)):
        for down, across in itertools.product((1, -1), (1, -1)):
            yield _bits(_mirrored(turned, down, across))
    for top, left in itertools.product(CUT_OFFSETS, CUT_OFFSETS):
        cut = _frequencies(grey, top, left, CUT)
        yield _bits(cut)
        yield _bits(_mirrored(cut, 1, -1))


def window(offset: float, kept: float, pixels: int) -> NDArray[np.float32]:
    """Give the matrix (pixels, GREY_PX) that resizes a part of a picture's edge, by areas.

    Args:
        offset: 0 to 1, where among what is left over the part lies.
        kept: the part's share of the edge.
    """
    edges = (offset * (1 - kept) + kept * np.arange(pixels + 1) / pixels) * GREY_PX
    low, high = edges[:-1, None], edges[1:, None]
    cells = np.arange(GREY_PX)[None]
    shares = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Bands:
    """Hashes (n,) and, for each band of their bits, where the rows of each value stand in an order by it."""

    hashes: NDArray[np.uint64]
    width: int
    orders: list[NDArray[np.int64]]
    starts: list[NDArray[np.int64]]  # by value, and where the last one ends

    @staticmethod
    def of(hashes: NDArray[np.uint64]) -> "Bands":
        """Sort hashes by each of their bands; NO_HASH is nowhere."""
        width = 16 if len(hashes) <= SMALL else 21
        numbers = np.flatnonzero(hashes != NO_HASH)
        orders, starts = [], []
        for shift in range(0, 64 - width + 1, width):
            keys = _band(hashes[numbers], shift, width)
            orders.append(numbers[np.argsort(keys, kind="stable")])
            starts.append(np.r_[0, np.cumsum(np.bincount(keys, minlength=1 << width))])
        return Bands(hashes, width, orders, starts)

    def near(self, asked: NDArray[np.uint64], radius: int) -> Found:
        """Find hashes that differ from some asked for in ``radius`` bits at most; a pair may come more than once."""
        parts = [
            self._looked_up(asked, first, place, flip, radius)
            for first in range(0, len(asked), LOOKED_UP)
            for place in range(len(self.orders))
            for flip in (0, *(1 << bit for bit in range(self.width)))
        ]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int16)
        which, where, bits = (np.concatenate(part) for part in zip(*parts, strict=True))
        return which, where, bits

    def _looked_up(self, asked: NDArray[np.uint64], first: int, place: int, flip: int, radius: int) -> Found:
        some = asked[first : first + LOOKED_UP]
        keys = _band(some, place * self.width, self.width) ^ flip
        low = self.starts[place][keys]
        counts = np.minimum(self.starts[place][keys + 1] - low, MOST_ALIKE)
        counts[some == NO_HASH] = 0
        which = np.repeat(np.arange(len(some)), counts)
        rank = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        where = self.orders[place][low[which] + rank]
        bits = np.bitwise_count(some[which] ^ self.hashes[where]).astype(np.int16)
        near = bits <= radius
        return first + which[near], where[near], bits[near]


def _band(hashes: NDArray[np.uint64], shift: int, width: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)


def _frequencies(grey: NDArray[np.uint8], top: float, left: float, kept: float) -> NDArray[np.float32]:
    """Transform a part of pictures: the lowest frequencies (n, HASH_PX, HASH_PX)."""
    waves = dct(np.eye(GREY_PX, dtype=np.float32), axis=0, norm="ortho")[:HASH_PX]
    down, across = (waves @ window(offset, kept, GREY_PX) for offset in (top, left))
    return np.asarray(down @ grey.astype(np.float32) @ across.T, np.float32)


def _mirrored(frequencies: NDArray[np.float32], down: int, across: int) -> NDArray[np.float32]:
    """Mirror where -1 is given: waves of odd frequencies are turned over."""
    signs = [np.where(np.arange(HASH_PX) % 2, sign, 1).astype(np.float32) for sign in (down, across)]
    return frequencies * signs[0][:, None] * signs[1][None]


def _bits(frequencies: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Say of all frequencies but the mean which are above their median, in the order of their places."""
    flat = frequencies.reshape(len(frequencies), HASH_PX * HASH_PX)[:, 1:]
    above = flat > np.median(flat, axis=1, keepdims=True)
    padded = np.pad(above, ((0, 0), (1, 0)))
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(">u8")[:, 0].astype(np.uint64)
