"""Golden queries: what is asked, and which rows are right, with grades.

In: Parquet, an Arrow table, a DataFrame of pandas or a list of dicts, one row for every query and relevant row. Out: a
`Golden`. Whatever is wrong with it is said before any work. Knows no model and no index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.filesystem import FINAL_ERRORS, filesystem_of, storage_named

QUERY_ID, RELEVANT_ID, GRADE = "query_id", "relevant_id", "relevance_grade"
QUERY_COLUMNS = {"query_text": "text", "query_image": "image", "query_vector": "vector"}
Kind = Literal["text", "image", "vector"]


@dataclass(frozen=True)
class Golden:
    """n queries, in the order in which they first come.

    Attributes:
        queries: n texts, encoded images, or vectors (n, d).
        grades: for each query, the grade of every row that was judged; above 0 it is relevant.
        cohorts: by column, a value for each query.
    """

    query_ids: tuple[str, ...]
    kind: Kind
    queries: Sequence[Any] | NDArray[np.float32]
    grades: tuple[dict[str, float], ...]
    cohorts: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def relevant(self) -> list[dict[str, float]]:
        """Give for each query the rows that are right, with their grades."""
        return [{row_id: grade for row_id, grade in judged.items() if grade > 0} for judged in self.grades]


def read_golden(source: Any, cohorts: Sequence[str] = ()) -> Golden:  # any of the forms that the module names
    """Read golden queries.

    Args:
        source: a path or URL of Parquet, or rows, with the columns ``query_id``; one of ``query_text``,
            ``query_image`` and ``query_vector``; ``relevant_id``; and, if wanted, ``relevance_grade`` (else 1).
        cohorts: columns to state results by; a query has one value of each.

    Raises:
        InputError: a column is missing or of the wrong type, a value is null or a query's rows contradict each other,
            or there is no query.
    """
    rows = _table(source)
    kind, column = _query_column(rows)
    for name in (QUERY_ID, RELEVANT_ID, *cohorts):
        if name not in rows.column_names:
            raise InputError(f"golden: no column {name!r}; there are {', '.join(rows.column_names)}")
    ids, relevant = _texts(rows, QUERY_ID), _texts(rows, RELEVANT_ID)
    if not ids:
        raise InputError("golden: no queries")
    queries = _values(rows, column)
    given = _grades(rows)
    kept = {name: ["null" if value is None else str(value) for value in rows[name].to_pylist()] for name in cohorts}
    first: dict[str, int] = {}
    grades: dict[str, dict[str, float]] = {}
    for place, (query_id, row_id, grade) in enumerate(zip(ids, relevant, given, strict=True)):
        known = first.setdefault(query_id, place)
        if queries[known] != queries[place] or any(values[known] != values[place] for values in kept.values()):
            raise InputError(f"golden: query {query_id!r}: its rows have different queries or cohorts")
        judged = grades.setdefault(query_id, {})
        if row_id in judged:
            raise InputError(f"golden: query {query_id!r}: row {row_id!r} is judged twice")
        judged[row_id] = grade
    places = list(first.values())
    chosen = [queries[place] for place in places]
    return Golden(
        query_ids=tuple(first),
        kind=kind,
        queries=_matrix(chosen) if kind == "vector" else chosen,
        grades=tuple(grades.values()),
        cohorts={name: tuple(values[place] for place in places) for name, values in kept.items()},
    )


def _table(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source, preserve_index=False)
    if isinstance(source, list):
        return pa.Table.from_pylist(source)
    filesystem, path = filesystem_of(str(source))
    try:
        with storage_named(lambda: f"golden {source}: "):
            return pq.read_table(path, filesystem=filesystem)
    except (*FINAL_ERRORS, pa.ArrowException) as error:
        raise InputError(f"golden {source}: cannot be read: {error}") from error


def _query_column(rows: pa.Table) -> tuple[Kind, str]:
    found = [name for name in QUERY_COLUMNS if name in rows.column_names]
    if len(found) != 1:
        raise InputError(f"golden: wanted one of {', '.join(QUERY_COLUMNS)}; got {', '.join(found) or 'none'}")
    kind: Any = QUERY_COLUMNS[found[0]]
    return kind, found[0]


def _texts(rows: pa.Table, name: str) -> list[str]:
    try:
        column = rows[name].cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"golden: column {name!r} is {rows[name].type}; wanted text or whole numbers") from error
    if column.null_count:
        raise InputError(f"golden: column {name!r}: {column.null_count} values are null")
    texts: list[str] = column.to_pylist()
    return texts


def _values(rows: pa.Table, name: str) -> list[Any]:
    column = rows[name]
    if column.null_count:
        raise InputError(f"golden: column {name!r}: {column.null_count} values are null")
    if len(column) and not _fits(name, column.type):
        raise InputError(f"golden: column {name!r} is {column.type}; wanted {QUERY_COLUMNS[name]}s")
    values: list[Any] = column.to_pylist()
    return values


def _fits(name: str, kind: pa.DataType) -> bool:
    if name == "query_vector":
        return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))
    if name == "query_image":
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _grades(rows: pa.Table) -> list[float]:
    if GRADE not in rows.column_names:
        return [1.0] * rows.num_rows
    try:
        column = rows[GRADE].cast(pa.float64())
    except pa.ArrowException as error:
        raise InputError(f"golden: column {GRADE!r} is {rows[GRADE].type}; wanted numbers") from error
    grades: list[float] = column.to_pylist()
    if any(grade is None or not np.isfinite(grade) or grade < 0 for grade in grades):
        raise InputError(f"golden: column {GRADE!r}: wanted numbers from 0 on")
    return grades


def _matrix(vectors: list[list[float]]) -> NDArray[np.float32]:
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise InputError(f"golden: column 'query_vector': vectors of {sorted(widths)} dimensions")
    return np.array(vectors, np.float32)
