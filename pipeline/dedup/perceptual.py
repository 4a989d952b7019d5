"""The second stage: pictures with hashes that are near each other, and what comes of laying them on each other.

Hashes only propose; a pair counts where the small pictures themselves are alike. Pairs of vectors can be confirmed in
the same way. In: pieces of `looks`. Out: pairs with their likeness.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup.alike import have_one_colour, likeness
from pipeline.dedup.hashes import NO_HASH, Bands, forms
from pipeline.dedup.pairs import NO_PAIRS, Pairs, joined, pairs, thinned
from pipeline.dedup.pieces import Arrays, Counts, Piece, digest, made, mapped, pairs_of, range_jobs, ranges
from pipeline.dedup.plan import Plan
from pipeline.store import Store

HASH_BITS = 64
PIECE_PAIRS = 20_000  # laid on each other by one task: half a minute, if all of them are looked at closely


def proposed(plan: Plan, seen: Sequence[Piece]) -> tuple[Pairs, int]:
    """Find pairs of pictures whose hashes differ in few bits; say how many were left out of crowded rows."""
    asked = digest([piece.sha256 for piece in seen])
    jobs = range_jobs(f"{plan.work}/hashes", ranges(len(seen), 1), (plan.config.hamming,), asked)
    pieces = made(plan.store, jobs, ask, list(seen))
    return joined(pairs_of(plan.store, pieces)), sum(piece.counts["left_out"] for piece in pieces)


def confirmed(plan: Plan, seen: Sequence[Piece], some: Pairs) -> NDArray[np.float32]:
    """Say how alike the pictures of pairs are (m,), 0 where one of them cannot be seen."""
    if not len(some):
        return np.empty(0, np.float32)
    asked, bounds = digest([piece.sha256 for piece in seen], some.a, some.b), ranges(len(some), PIECE_PAIRS)
    jobs = range_jobs(f"{plan.work}/alike", bounds, (plan.config.likeness,), asked)
    pieces = made(plan.store, jobs, compare, list(seen), some)
    with tempfile.TemporaryDirectory(prefix="rayclip-alike-") as scratch:
        return np.concatenate([mapped(plan.store, piece, "likeness", Path(scratch)) for piece in pieces])


def ask(store_url: str, low: int, high: int, radius: int, seen: list[Piece]) -> tuple[Arrays, Counts]:
    """Look the pictures of some pieces up among all: pairs."""
    store = Store(store_url)
    with tempfile.TemporaryDirectory(prefix="rayclip-hashes-") as scratch:
        ids = np.concatenate([mapped(store, piece, "ids", Path(scratch)) for piece in seen])
        every = [mapped(store, piece, "hash", Path(scratch)) for piece in seen]
        grey = np.concatenate([mapped(store, piece, "grey", Path(scratch)) for piece in seen[low:high]])
        bands, first = Bands.of(np.concatenate(every)), sum(map(len, every[:low]))
        found, left_out = NO_PAIRS, 0
        for form in forms(grey):
            asked = np.where(bands.hashes[first : first + len(grey)] == NO_HASH, NO_HASH, form)
            which, where, bits = bands.near(asked, radius)
            some = pairs(ids[first + which], ids[where], np.asarray(1 - bits / HASH_BITS, np.float32), bits)
            found, fewer = thinned(joined([found, some]))
            left_out += fewer
    return found.arrays, {"left_out": left_out}


def compare(
    store_url: str, low: int, high: int, enough: float, seen: list[Piece], some: Pairs
) -> tuple[Arrays, Counts]:
    """Lay the pictures of some pairs on each other: array ``likeness`` (m,)."""
    store, here = Store(store_url), some[slice(low, high)]
    found = np.zeros(len(here), np.float32)
    with tempfile.TemporaryDirectory(prefix="rayclip-alike-") as scratch:
        ids = np.concatenate([mapped(store, piece, "ids", Path(scratch)) for piece in seen])
        shown = np.concatenate([mapped(store, piece, "hash", Path(scratch)) for piece in seen]) != NO_HASH
        grey = [mapped(store, piece, "grey", Path(scratch)) for piece in seen]
        order = np.argsort(ids)
        one, other = (order[np.searchsorted(ids, ends, sorter=order)] for ends in (here.a, here.b))
        colour = np.concatenate([mapped(store, piece, "colour", Path(scratch)) for piece in seen])
        both = np.flatnonzero(shown[one] & shown[other] & have_one_colour(colour[one], colour[other]))
        found[both] = likeness(_taken(grey, one[both]), _taken(grey, other[both]), enough)
    return {"likeness": found}, {}


def with_likeness(some: Pairs, alike: NDArray[np.float32], least: float) -> Pairs:
    """Keep the pairs whose pictures are alike, and say how much."""
    return replace(some, similarity=alike)[alike >= least]


def _taken(files: Sequence[NDArray[np.uint8]], places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read pictures (m, GREY_PX, GREY_PX) out of files that lie behind each other, in the order of places."""
    starts = np.cumsum([0, *(len(file) for file in files)])
    found = np.empty((len(places), *files[0].shape[1:]), np.uint8)
    number = np.searchsorted(starts, places, side="right") - 1
    for file in np.unique(number):
        here = number == file
        found[here] = files[file][places[here] - starts[file]]
    return found
