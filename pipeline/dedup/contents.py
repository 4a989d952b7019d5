"""The first stage: rows of equal bytes, by the content hashes that the embed job left in the table's files.

Out: pairs of every copy with the first row of its contents, n - 1 for n equal rows. Later stages leave copies out: what
is found of the first row holds for them.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.dedup.pairs import NO_PAIRS, Pairs, pairs
from pipeline.dedup.pieces import Arrays, Counts, made, mapped
from pipeline.dedup.plan import Plan, span_jobs
from pipeline.errors import IncompleteError
from pipeline.indexing.made import live_ids
from pipeline.indexing.vectors import Span
from pipeline.store import Store
from pipeline.table import table_folder

PIECE_ROWS = 1 << 20
WORDS = 4  # of 64 bits, in a SHA-256


def same_contents(plan: Plan) -> Pairs:
    """Find rows of equal bytes; none where the table keeps no content hashes.

    Raises:
        IncompleteError: a file of the table is missing or damaged.
    """
    if not plan.record.content_hashes:
        return NO_PAIRS
    jobs = span_jobs(plan, "contents", plan.spans, PIECE_ROWS, "")
    with tempfile.TemporaryDirectory(prefix="rayclip-contents-") as scratch:
        parts = [mapped(plan.store, piece, "words", Path(scratch)) for piece in made(plan.store, jobs, read_hashes)]
        return equal_rows(live_ids(plan.spans), np.concatenate(parts))


def equal_rows(ids: NDArray[np.int64], words: NDArray[np.uint64]) -> Pairs:
    """Pair every row with the first of the same words (n, w): ids ascend in each pair."""
    order = np.lexsort((ids, *words.T))
    ids, words = ids[order], words[order]
    is_new = np.r_[True, (words[1:] != words[:-1]).any(axis=1)] if len(ids) else np.empty(0, np.bool_)
    first = ids[np.maximum.accumulate(np.where(is_new, np.arange(len(ids)), 0))]
    return pairs(first, ids, 1.0, 0)


def read_hashes(store_url: str, table: str, spans: list[Span]) -> tuple[Arrays, Counts]:
    """Read the content hashes of some units, as words (n, 4)."""
    store = Store(store_url)
    found = [np.empty((0, WORDS), np.uint64)]
    for span in spans:
        for file in span.receipt.data:
            path = f"{table_folder(table)}/{file.path}"
            try:
                column = pq.read_table(
                    store.path(path),
                    columns=[schema.CONTENT_HASH],
                    filesystem=store.filesystem,
                    partitioning=None,
                    page_checksum_verification=True,
                )[schema.CONTENT_HASH]
            except FileNotFoundError as error:
                raise IncompleteError(f"{path} is missing; run python -m jobs.verify") from error
            hexadecimal = "".join(column.to_pylist())
            found.append(np.frombuffer(bytes.fromhex(hexadecimal), ">u8").astype(np.uint64).reshape(-1, WORDS))
    return {"words": np.concatenate(found)}, {}
