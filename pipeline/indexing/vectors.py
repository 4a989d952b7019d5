"""A table's vectors in the order of their ids: dense, independent of scheduling, taken from the receipts' files alone.

A vector's id is the base of its unit plus its rank in it; units are ordered by shard and first row. What is added to an
index later follows behind, so that ids stay what they are. Every file's digest is checked as it is read.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.stopping import alive
from pipeline.store import Store
from pipeline.table import Receipt, read_checked


@dataclass(frozen=True)
class Span:
    """A unit's receipt and the ids of its vectors: base to base + embedded."""

    receipt: Receipt
    base: int

    @property
    def rows(self) -> int:
        """How many vectors the unit has."""
        return self.receipt.embedded


def lay_out(receipts: Iterable[Receipt], base: int = 0) -> list[Span]:
    """Give every unit that has vectors its ids, from ``base`` on."""
    spans = []
    for receipt in sorted(receipts, key=lambda r: (r.shard, r.first_row)):
        if receipt.embedded:
            spans.append(Span(receipt, base))
            base += receipt.embedded
    return spans


def changes(known: Sequence[Span], receipts: Iterable[Receipt], end: int) -> tuple[list[Span], list[Span]]:
    """Split receipts into units that have their ids already, and new ones with ids from ``end`` on.

    Those of a shard that was written again with the same images have their ids under the new receipt, which knows where
    their rows lie now.
    """
    of_files = {_files(span.receipt): span for span in known}
    wanted = {_files(receipt): receipt for receipt in receipts}
    kept = [Span(wanted[files], span.base) for files, span in of_files.items() if files in wanted]
    new = [receipt for files, receipt in wanted.items() if files not in of_files]
    return sorted(kept, key=lambda span: span.base), lay_out(new, end)


def _files(receipt: Receipt) -> tuple[str, ...]:
    return tuple(file.sha256 for file in receipt.data)


def count(spans: list[Span]) -> int:
    """Count the vectors of some units."""
    return sum(span.rows for span in spans)


def divide(spans: list[Span], parts: int) -> list[list[Span]]:
    """Divide units into at most ``parts`` groups of about equal rows, each a run of consecutive ids."""
    total = count(spans)
    groups: list[list[Span]] = [[] for _ in range(parts)]
    for span in spans:
        groups[min(parts - 1, (span.base - spans[0].base) * parts // total)].append(span)
    return [group for group in groups if group]


def stream(store: Store, folder: str, spans: list[Span]) -> Iterator[tuple[int, NDArray[np.float32], pa.ChunkedArray]]:
    """Yield (id of the first vector, vectors (n, d), row ids) file by file, in the order of ids."""
    for span in spans:
        base = span.base
        for file in span.receipt.data:
            rows = read_checked(store, folder, file)
            alive()
            yield base, matrix(rows[schema.VECTOR]), rows[schema.ROW_ID]
            base += rows.num_rows


def matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """View a column of fixed-size lists as an array (n, d)."""
    return np.asarray(column.combine_chunks().flatten().to_numpy()).reshape(len(column), -1)


def draw_rows(spans: list[Span], wanted: int, seed: int) -> NDArray[np.int64]:
    """Draw distinct vector ids, seeded, each unit in proportion to its rows; all of them if fewer than wanted."""
    rng = np.random.default_rng(seed)
    share = min(1.0, wanted / count(spans))
    drawn, before = [], 0
    for span in spans:
        # Rounding the running total keeps the shares exact over all units.
        share_rows = round((before + span.rows) * share) - round(before * share)
        drawn.append(span.base + np.sort(rng.choice(span.rows, share_rows, replace=False)))
        before += span.rows
    return np.concatenate(drawn).astype(np.int64)


def take(
    store: Store, folder: str, spans: list[Span], ids: NDArray[np.int64], target: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Read the vectors of the given ids, which ascend, into ``target`` (len(ids), d), which may be mapped.

    Units without any of them are not read.
    """
    wanted = [span for span in spans if np.searchsorted(ids, span.base + span.rows) > np.searchsorted(ids, span.base)]
    for base, vectors, _ in stream(store, folder, wanted):
        low, high = np.searchsorted(ids, [base, base + len(vectors)])
        target[low:high] = vectors[ids[low:high] - base]
    return target
