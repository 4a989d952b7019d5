"""Several tables of one space, searched as one: the best rows of all of them, and whose they are.

In: open indexes. Out: scores, tables and vector ids. Ids count within their table; spaces must be the same, or scores
of different models would be compared.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID, NO_SCORE, Selection
from pipeline.searching.index import OpenIndex


class Several:
    """Open indexes that answer as one.

    Raises:
        InputError: there are none, or they are of different spaces.
    """

    def __init__(self, indexes: Sequence[OpenIndex]) -> None:
        spaces = {index.card.table: index.card.space for index in indexes}
        if len(set(spaces.values())) != 1:
            raise InputError(f"tables to search as one: wanted one space, got {spaces or 'no table'}")
        self.indexes = tuple(indexes)

    def search(
        self,
        xq: NDArray[np.float32],
        k: int,
        *,
        nprobe: int | None = None,
        within: Sequence[Selection | None] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Find the k best rows of all tables for each query (n, d).

        Args:
            within: the ids that may come up, table by table.

        Returns:
            Scores, numbers of tables and vector ids, each (n, k), best first; -1 where there are fewer.
        """
        selections = within or [None] * len(self.indexes)
        found = [
            index.search(xq, k, nprobe=nprobe, within=selection, exact=exact)
            for index, selection in zip(self.indexes, selections, strict=True)
        ]
        scores = np.concatenate([mine for mine, _ in found], axis=1)
        ids = np.concatenate([mine for _, mine in found], axis=1)
        tables = np.concatenate([np.full(mine.shape, number) for number, (_, mine) in enumerate(found)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, ids, tables = (np.take_along_axis(each, order, axis=1) for each in (scores, ids, tables))
        tables[ids == NO_ID], scores[ids == NO_ID] = NO_ID, NO_SCORE
        return scores, tables, ids
