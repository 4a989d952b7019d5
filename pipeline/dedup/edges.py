"""What joins rows, stage by stage, and which of it counts.

In: a `Plan`. Out: the edges of all stages with their similarity, also those that only nearly count, for people to look
at. Copies of equal bytes are compared once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup import groups
from pipeline.dedup.contents import same_contents
from pipeline.dedup.groups import Edges
from pipeline.dedup.looks import looks
from pipeline.dedup.near import near_vectors
from pipeline.dedup.pairs import NO_PAIRS, Pairs, joined, thinned
from pipeline.dedup.perceptual import confirmed, proposed, with_likeness
from pipeline.dedup.plan import Plan

EXACT, PERCEPTUAL, EMBEDDING = "exact", "perceptual", "embedding"
# Pairs of vectors, of one row, whose pictures are laid on each other: the nearest. A model that takes all pictures of a
# kind for one would have every row compared with every other.
MOST_CONFIRMED = 8
NEARLY = 0.1  # of likeness, below the one asked for, that is kept to be looked at


@dataclass(frozen=True)
class Stage:
    """The pairs that one stage found, and whether each counts as far as others have a say in it: (m,)."""

    pairs: Pairs
    counts: NDArray[np.bool_]
    least: float  # similarity from which on a pair joins its rows

    @property
    def joins(self) -> NDArray[np.bool_]:
        """Which pairs join their rows: (m,)."""
        return self.counts & (self.pairs.similarity >= np.float32(self.least))


@dataclass
class Found:
    """All stages by name, in their order, and what was counted on the way."""

    stages: dict[str, Stage] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def edges(self, threshold: float | None = None) -> Edges:
        """Give what joins rows, each pair once and as short as any stage has it.

        Args:
            threshold: of vectors, in place of the one that was asked for.
        """
        parts, lengths = [NO_PAIRS], [np.empty(0)]
        for name, stage in self.stages.items():
            least = threshold if threshold is not None and name == EMBEDDING else stage.least
            some = stage.pairs[stage.counts & (stage.pairs.similarity >= np.float32(least))]
            parts.append(some)
            lengths.append(groups.lengths(some.similarity, least))
        a, b = (np.concatenate([getattr(part, end) for part in parts]) for end in ("a", "b"))
        length = np.concatenate(lengths)
        order = np.lexsort((length, b, a))
        a, b, length = a[order], b[order], length[order]
        is_new = np.ones(len(a), np.bool_)
        is_new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        return Edges(a[is_new], b[is_new], length[is_new])


def find_edges(plan: Plan, timed: Callable[[str], AbstractContextManager[None]]) -> Found:
    """Go through the stages that are asked for."""
    config, found = plan.config, Found()
    if EXACT in config.stages:
        with timed(EXACT):
            same = same_contents(plan)
            found.stages[EXACT] = Stage(same, np.ones(len(same), np.bool_), 1.0)
    copies = found.stages[EXACT].pairs.b if EXACT in found.stages else np.empty(0, np.int64)
    near = NO_PAIRS
    if EMBEDDING in config.stages:
        with timed(EMBEDDING):
            near, found.counts["pairs_left_out"] = near_vectors(plan, copies)
            found.stages[EMBEDDING] = Stage(near, np.ones(len(near), np.bool_), config.threshold)
    if PERCEPTUAL in config.stages:
        with timed(PERCEPTUAL):
            _look(plan, found, copies, near)
    return found


def _look(plan: Plan, found: Found, copies: NDArray[np.int64], near: Pairs) -> None:
    """Look at pictures: find pairs by them, and see which pairs of vectors they confirm."""
    config = plan.config
    seen = looks(plan, copies)
    for name in ("pictures_unseen", "pictures_blank"):
        found.counts[name] = sum(piece.counts[name] for piece in seen)
    by_hash, found.counts["hashes_left_out"] = proposed(plan, seen)
    doubtful, found.counts["pairs_unconfirmed"] = thinned(
        near[near.similarity < np.float32(config.confirm_below)], MOST_CONFIRMED
    )
    every = joined([by_hash, doubtful])
    likeness, end = confirmed(plan, seen, every), plan.index.card.end
    keys = every.a * end + every.b  # ascending
    alike = likeness[np.searchsorted(keys, by_hash.a * end + by_hash.b)]
    by_hash = with_likeness(by_hash, alike, config.likeness - NEARLY)
    found.stages[PERCEPTUAL] = Stage(by_hash, np.ones(len(by_hash), np.bool_), config.likeness)
    if EMBEDDING in found.stages:
        counts = near.similarity >= np.float32(config.confirm_below)
        counts |= np.isin(near.a * end + near.b, keys[likeness >= np.float32(config.likeness)])
        found.stages[EMBEDDING] = Stage(near, counts, config.threshold)
