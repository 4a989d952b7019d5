"""What may be done to rows that were found, one function a step: each gives a `Step`, which takes a table to a table.

Rows keep their order unless the step is one that sorts. Conditions and expressions are SQL on the columns that there
are by then. Knows nothing of how rows were found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.searching.opened import free_name
from pipeline.searching.sandboxed_sql import computed, locked, met, names_in

How = Literal["left", "inner"]
Values = Any  # of an annotation: whatever Arrow makes an array of, or a NumPy array (n,) or (n, d)


@dataclass(frozen=True)
class Step:
    """One step, as it is said and as it is done.

    Attributes:
        reads: columns that it names; None: it may look at any.
        is_last_word: whether later steps see no other columns.
    """

    said: str
    apply: Callable[[pa.Table], pa.Table]
    reads: frozenset[str] | None = frozenset()
    is_last_word: bool = False


def filter_rows(condition: str) -> Step:
    """Keep the rows that meet a condition; a null does not."""
    return Step(f"filter {condition}", lambda rows: rows.filter(met(rows, condition)), _reads([condition]))


def sort_rows(column: str, *, descending: bool) -> Step:
    """Order rows by a column, nulls last; rows that are equal in it stay as they were."""

    def apply(rows: pa.Table) -> pa.Table:
        _check_known(rows, [column], "sort")
        order = "descending" if descending else "ascending"
        return rows.take(pc.sort_indices(rows[column], sort_keys=[("", order)], null_placement="at_end"))

    return Step(f"sort by {column}{' descending' if descending else ''}", apply, frozenset([column]))


def limit_rows(count: int) -> Step:
    """Keep the first rows."""
    _check_count("limit", count)
    return Step(f"limit {count}", lambda rows: rows.slice(0, count))


def skip_rows(count: int) -> Step:
    """Leave the first rows out."""
    _check_count("offset", count)
    return Step(f"offset {count}", lambda rows: rows.slice(count))


def select_columns(names: Sequence[str], expressions: Mapping[str, str]) -> Step:
    """Keep some columns, in this order, then those that SQL computes."""
    wanted = [*names, *expressions]
    if repeated := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise InputError(f"select: wanted each column once, got {', '.join(repeated)} twice")

    def apply(rows: pa.Table) -> pa.Table:
        _check_known(rows, names, "select")
        made = {name: computed(rows, sql, f"select {name}") for name, sql in expressions.items()}
        return pa.table({**{name: rows[name] for name in names}, **made})

    said = ", ".join([*names, *(f"{sql} as {name}" for name, sql in expressions.items())])
    reads = _reads(expressions.values())
    return Step(f"select {said}", apply, None if reads is None else reads | set(names), is_last_word=True)


def annotate_rows(name: str, values_of: Callable[[pa.Table], Values], said: str, reads: frozenset[str] | None) -> Step:
    """Add a column, or replace one: a value for every row, in their order; without rows there is nothing to ask."""

    def apply(rows: pa.Table) -> pa.Table:
        column = _column(values_of(rows)) if rows.num_rows else pa.nulls(0)
        if len(column) != rows.num_rows:
            raise InputError(f"annotate {name!r}: gives {len(column)} values for {rows.num_rows} rows")
        place = rows.schema.get_field_index(name)
        return rows.append_column(name, column) if place < 0 else rows.set_column(place, name, column)

    return Step(f"annotate {name} by {said}", apply, reads)


def join_rows(
    other: Callable[[str, pa.Array], pa.Table], said: str, on: str, columns: Sequence[str] | None, how: How
) -> Step:
    """Put columns of another relation beside the rows whose keys are equal; columns of a name that is taken get _right.

    Args:
        other: gives the rows of the relation whose column (first argument) has one of some values.
        on: a column of both, or "left = right".
        columns: of the other; None: all but its key.
        how: left: rows without a match have nulls; inner: they are left out. A row with several matches comes as often.
    """
    left, _, right = (part.strip() for part in on.partition("="))
    right = right or left
    if how not in ("left", "inner"):
        raise InputError(f"join: wanted how 'left' or 'inner', got {how!r}")

    def apply(rows: pa.Table) -> pa.Table:
        _check_known(rows, [left], "join")
        theirs = other(right, pc.unique(rows[left].drop_null()))
        mine, matches = _pairs(rows[left], theirs[right], how)
        joined = rows.take(mine)
        names = [name for name in theirs.column_names if name != right] if columns is None else columns
        _check_known(theirs, names, "join")
        for name in names:
            joined = joined.append_column(free_name(name, joined.column_names, "_right"), theirs[name].take(matches))
        return joined

    return Step(f"{how} join {said} on {left} = {right}", apply, None)


def _pairs(left: pa.ChunkedArray, right: pa.ChunkedArray, how: How) -> tuple[pa.Array, pa.Array]:
    """Match keys: places in both, in the order of the left; null where there is no match."""
    connection = locked()
    for name, keys in (("mine", left), ("theirs", right)):
        connection.register(name, pa.table({"key": keys, "place": pa.array(np.arange(len(keys)))}))
    pairs: pa.Table = connection.sql(
        f"SELECT mine.place AS mine, theirs.place AS theirs FROM mine {how.upper()} JOIN theirs "
        "ON mine.key = theirs.key ORDER BY ALL"
    ).to_arrow_table()
    return pairs["mine"].combine_chunks(), pairs["theirs"].combine_chunks()


def _column(values: Values) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    return pa.array(values)


def _reads(expressions: Iterable[str]) -> frozenset[str] | None:
    names = [names_in(expression) for expression in expressions]
    known = [some for some in names if some is not None]
    return frozenset().union(*known) if len(known) == len(names) else None


def _check_known(rows: pa.Table, names: Sequence[str], what: str) -> None:
    for name in names:
        if name not in rows.column_names:
            raise InputError(f"{what}: no column {name!r}; there are {', '.join(rows.column_names)}")


def _check_count(what: str, count: int) -> None:
    if count < 0:
        raise InputError(f"{what}: wanted 0 or more, got {count}")
