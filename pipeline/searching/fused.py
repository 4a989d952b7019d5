"""Several ranked lists to one, by reciprocal rank: what many of them have near their top comes first.

In: searches, or row ids that somebody else has ranked. Out: an Arrow table for each query. Cormack, Clarke, Büttcher
2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods": the sum of 1 / (60 + rank).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.errors import InputError

CONSTANT = 60.0  # of the paper: how little the first ranks differ
Run = Callable[[set[str], bool], list[pa.Table]]  # a search, told which columns to bring: a table for each query


@dataclass(frozen=True)
class Fused:
    """The k best rows of all lists; a row's columns, its similarity too, are those of the first list that has it.

    Attributes:
        searches: with as many queries each.
        ranked: lists of row ids, best first, for every query the same; rows that no search has found are left out.
    """

    searches: Sequence[Run]
    ranked: Sequence[Sequence[str]]
    is_batch: bool
    k: int
    constant: float = CONSTANT

    def run(self, named: set[str], others: bool) -> list[pa.Table]:
        """Run the searches and fuse what they found.

        Args:
            named, others: the columns to bring, as `OpenTable.rows` takes them.

        Raises:
            InputError: they have different numbers of queries, or rows without ids.
        """
        found = [search(named, others) for search in self.searches]
        if len({len(tables) for tables in found}) != 1:
            raise InputError(f"fuse: wanted as many queries each, got {[len(tables) for tables in found]}")
        return [self._fused(tables) for tables in zip(*found, strict=True)]

    def _fused(self, tables: Sequence[pa.Table]) -> pa.Table:
        for table in tables:
            if not {schema.ROW_ID, schema.SOURCE_ID} <= set(table.column_names):
                raise InputError(f"fuse: wanted {schema.ROW_ID} and {schema.SOURCE_ID} among the columns selected")
        rows = pa.concat_tables(tables, promote_options="permissive")
        keys = list(zip(rows[schema.SOURCE_ID].to_pylist(), rows[schema.ROW_ID].to_pylist(), strict=True))
        ranks = np.concatenate([np.arange(1, table.num_rows + 1) for table in tables])
        first: dict[tuple[str, str], int] = {}  # where a row stands among all
        scores: dict[tuple[str, str], float] = {}
        for place, (key, rank) in enumerate(zip(keys, ranks, strict=True)):
            first.setdefault(key, place)
            scores[key] = scores.get(key, 0.0) + 1.0 / (self.constant + rank)
        for row_ids in self.ranked:
            rank_of = {row_id: rank for rank, row_id in reversed(list(enumerate(row_ids, 1)))}
            for key in scores:
                if key[1] in rank_of:
                    scores[key] += 1.0 / (self.constant + rank_of[key[1]])
        best = sorted(scores, key=lambda key: (-scores[key], key))[: self.k]
        fused = rows.take(pa.array([first[key] for key in best], pa.int64()))
        values = pa.array([scores[key] for key in best], pa.float64())
        return schema.replace_columns(fused, [], {schema.RECIPROCAL_RANK: values})

    def said(self) -> str:
        """Say what `run` will do."""
        lists = len(self.searches) + len(self.ranked)
        return f"the {self.k} best of {lists} lists, by the sum of 1 / ({self.constant:g} + rank)"
