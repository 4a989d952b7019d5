"""Golden queries: what is asked, and which rows are right, with grades.

In: Parquet, a list of dicts, or whatever Arrow makes a table of (pandas, Polars), one row for every query and relevant
row. Out: a `Golden`. Whatever is wrong with it is said before any work. Knows no model and no index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np
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
    if not rows.num_rows:
        raise InputError("golden: no queries")
    ids, relevant = _ids(rows, QUERY_ID), _ids(rows, RELEVANT_ID)
    queries = _queries(rows, column)
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
        queries=_matrix(chosen, list(first)) if kind == "vector" else chosen,
        grades=tuple(grades.values()),
        cohorts={name: tuple(values[place] for place in places) for name, values in kept.items()},
    )


def _table(source: Any) -> pa.Table:
    if isinstance(source, str | PathLike):
        filesystem, path = filesystem_of(str(source))
        try:
            with storage_named(lambda: f"golden {source}: "):
                rows = pq.read_table(path, filesystem=filesystem)
        except (*FINAL_ERRORS, pa.ArrowException) as error:
            raise InputError(f"golden {source}: cannot be read: {error}") from error
    else:
        try:
            rows = pa.table(_columns(source) if isinstance(source, list) else source)
        except (TypeError, pa.ArrowException) as error:
            raise InputError(f"golden: {type(source).__name__} cannot be read as rows: {error}") from error
    twice = sorted({name for name in rows.column_names if rows.column_names.count(name) > 1})
    if twice:
        raise InputError(f"golden: wanted each column once; {', '.join(twice)} is there more often")
    return pa.table({name: _decoded(rows[name]) for name in rows.column_names})


def _columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Put dicts into columns: of all names, where Arrow would leave out those that the first dict does not have."""
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError("wanted dicts")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give the values of what pandas calls a category."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _query_column(rows: pa.Table) -> tuple[Kind, str]:
    found = [name for name in QUERY_COLUMNS if name in rows.column_names]
    if len(found) != 1:
        raise InputError(f"golden: wanted one of {', '.join(QUERY_COLUMNS)}; got {', '.join(found) or 'none'}")
    kind: Any = QUERY_COLUMNS[found[0]]
    return kind, found[0]


def _column(rows: pa.Table, name: str, wanted: str, *, fits: bool) -> pa.ChunkedArray:
    column = rows[name]
    if column.null_count:
        raise InputError(f"golden: column {name!r}: {column.null_count} values are null")
    if not fits:
        raise InputError(f"golden: column {name!r} is {column.type}; wanted {wanted}")
    return column


def _ids(rows: pa.Table, name: str) -> list[str]:
    kind = rows[name].type
    # Not floats, which Arrow casts too: from 2^53 on they are other numbers than those that were meant.
    fits = _is_text(kind) or pa.types.is_integer(kind)
    ids: list[str] = _column(rows, name, "text or whole numbers", fits=fits).cast(pa.string()).to_pylist()
    return ids


def _queries(rows: pa.Table, name: str) -> list[Any]:
    fits = _fits(name, rows[name].type)
    queries: list[Any] = _column(rows, name, f"{QUERY_COLUMNS[name]}s", fits=fits).to_pylist()
    return queries


def _fits(name: str, kind: pa.DataType) -> bool:
    if name == "query_vector":
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_list(kind) for is_list in lists) and _is_number(kind.value_type)
    if name == "query_image":
        return any(
            is_bytes(kind) for is_bytes in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        )
    return _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _grades(rows: pa.Table) -> list[float]:
    if GRADE not in rows.column_names:
        return [1.0] * rows.num_rows
    column = _column(rows, GRADE, "numbers", fits=_is_number(rows[GRADE].type))
    grades: list[float] = column.cast(pa.float64()).to_pylist()
    if any(not np.isfinite(grade) or grade < 0 for grade in grades):
        raise InputError(f"golden: column {GRADE!r}: wanted numbers from 0 on")
    return grades


def _matrix(vectors: list[list[float]], query_ids: list[str]) -> NDArray[np.float32]:
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise InputError(f"golden: column 'query_vector': vectors of {sorted(widths)} dimensions")
    matrix = np.array(vectors, np.float32)
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    for query_id, norm in zip(query_ids, norms, strict=True):
        if not np.isfinite(norm) or norm == 0:
            raise InputError(f"golden: query {query_id!r}: its vector is zero or not finite")
    return matrix
