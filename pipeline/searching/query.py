"""The search builder: a search is described step by step, and run when its rows are asked for.

    db.search("figures", text="a red star", k=20).filter("colour = 'red'").sort("width").limit(5).to_pandas()

Every step gives a new search. They apply in the order in which they are called: conditions that come first decide
which rows are ranked at all, so that k rows are found where there are as many; after a join, an annotation, a sort, a
limit, an offset or a selection they choose among the rows that there are by then.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import BaseModel

from pipeline import schema
from pipeline.errors import InputError
from pipeline.model import PreprocessSpec
from pipeline.searching.encoder import Encoder
from pipeline.searching.fused import CONSTANT, Fused
from pipeline.searching.nearest import Nearest
from pipeline.searching.opened import OpenTable
from pipeline.searching.steps import (
    How,
    Step,
    Values,
    annotate_rows,
    filter_rows,
    join_rows,
    limit_rows,
    select_columns,
    skip_rows,
    sort_rows,
)

Model = TypeVar("Model", bound=BaseModel)
Pictures = list[tuple[bytes | None, str]]  # encoded, with captions


@dataclass(frozen=True)
class Surroundings:
    """What steps may ask for beside the rows.

    Attributes:
        relation: a source by its name, to join.
        encoder: that of a model by its name, to annotate with.
        draw: pictures with captions, and a title, to a PNG.
    """

    relation: Callable[[str], ds.Dataset]
    encoder: Callable[[str], Encoder]
    draw: Callable[[Pictures, PreprocessSpec, str], bytes]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: a notebook shows it, elsewhere it lies in a file."""

    png: bytes
    path: Path | None

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"contact sheet of {len(self.png)} bytes, {self.path or 'not written: show(path) does'}"


@dataclass(frozen=True)
class Search:
    """A search that has not been run yet.

    Attributes:
        tables: the tables that its rows are of.
    """

    ranking: Nearest | Fused
    around: Surroundings
    tables: tuple[Callable[[], OpenTable], ...]
    steps: tuple[Step, ...] = ()

    def filter(self, condition: str) -> "Search":
        """Keep rows that meet an SQL condition; before any other step but `min_score`, of all rows that are ranked."""
        if isinstance(self.ranking, Nearest) and not self.steps:
            return self._ranked_by(conditions=(*self.ranking.conditions, condition))
        return self._then(filter_rows(condition))

    def min_score(self, least: float) -> "Search":
        """Keep rows of at least this similarity, -1 to 1."""
        if isinstance(self.ranking, Nearest) and not self.steps:
            return self._ranked_by(least=max(least, self.ranking.least or least))
        return self._then(filter_rows(f"{schema.SIMILARITY} >= {float(least)!r}"))

    def exact(self) -> "Search":
        """Compare with every vector in place of asking the index."""
        return self._ranked_by(exact=True)

    def nprobe(self, lists: int) -> "Search":
        """Search so many lists of the index, in place of the number it was tuned to."""
        return self._ranked_by(nprobe=lists)

    def join(self, other: Any, on: str, *, how: How = "left", columns: Sequence[str] | None = None) -> "Search":
        """Put columns of another source beside the rows; those of a name that is taken get the suffix _right.

        Args:
            other: a source's name, or rows: an Arrow table, or whatever Arrow makes one of (pandas, Polars).
            on: a column of both, or "left = right".
            how: left keeps rows without a match, inner does not. A row with several matches comes as often.
            columns: of the other; None: all but its key.
        """
        if isinstance(other, str):
            relation, said = partial(self.around.relation, other), other
        else:
            rows = other if isinstance(other, pa.Table) else pa.table(other)
            relation, said = partial(ds.dataset, rows), f"{rows.num_rows} rows"
        return self._then(join_rows(lambda key, values: _having(relation(), key, values), said, on, columns, how))

    def select(self, *columns: str | Sequence[str], **expressions: str) -> "Search":
        """Keep these columns, in this order, then SQL expressions by name; of bytes and vectors only those named here.

        Args:
            columns: names, or lists of them. ``vector`` is the row's own.
        """
        names = [name for column in columns for name in ([column] if isinstance(column, str) else column)]
        return self._then(select_columns(names, expressions))

    def annotate(
        self, name: str, by: Callable[[pa.Table], Values] | str, *, columns: Sequence[str] | None = None
    ) -> "Search":
        """Add a column.

        Args:
            by: a function of the rows that gives a value for each; or a model, for the vectors that it gives to the
                rows' pictures, null where a picture cannot be had.
            columns: what the function reads, where that is of bytes; None: any other.
        """
        if isinstance(by, str):
            step = annotate_rows(name, lambda rows: self._vectors_by(by, rows), by, frozenset([schema.ROW_ID]))
        else:
            reads = None if columns is None else frozenset(columns)
            step = annotate_rows(name, by, getattr(by, "__name__", "a function"), reads)
        return self._then(step)

    def sort(self, column: str, descending: bool = False) -> "Search":
        """Order rows by a column, nulls last; equal ones stay as they were."""
        return self._then(sort_rows(column, descending=descending))

    def limit(self, count: int) -> "Search":
        """Keep the first rows, for each query."""
        return self._then(limit_rows(count))

    def offset(self, count: int) -> "Search":
        """Leave the first rows out, for each query; k counts them."""
        return self._then(skip_rows(count))

    def fuse(self, *others: "Search | Sequence[str]", k: int | None = None, constant: float = CONSTANT) -> "Search":
        """Put ranked lists together by reciprocal rank.

        Args:
            others: searches, of this table or others; or row ids as somebody else has ranked them.
            k: how many rows to keep; None: as many as this search's k.
            constant: how little the first ranks differ; 60 in the paper.
        """
        searches = [self, *(other for other in others if isinstance(other, Search))]
        ranked = [list(other) for other in others if not isinstance(other, Search)]
        k = self.ranking.k if k is None else k
        fused = Fused([search._run for search in searches], ranked, self.ranking.is_batch, k, constant)
        tables = tuple(table for search in searches for table in search.tables)
        return Search(fused, self.around, tables)

    def explain(self, *, analyze: bool = False) -> str:
        """Say step by step what running it does; to analyze is to run it, with seconds and rows of every step."""
        if not analyze:
            said = [self.ranking.said(), *(step.said for step in self.steps)]
            return _numbered(said)
        said, began = [], time.monotonic()
        for line, tables in self._stages(set(), True):
            rows, now = sum(table.num_rows for table in tables), time.monotonic()
            said.append(f"{line}: {rows} rows, {1000 * (now - began):.1f} ms")
            began = now
        return _numbered(said)

    def run(self) -> pa.Table:
        """Find the rows: `_row_id`, `_source_id`, `similarity`, then the source's columns; of bytes only those named.

        Where it was asked with a list, `_query` comes first.

        Raises:
            InputError: a query, a condition or a column that cannot be; nothing published.
            IncompleteError: a file of the index is missing or damaged.
        """
        found = self._run(set(), True)
        if not self.ranking.is_batch:
            return found[0]
        numbered = [
            table.add_column(0, schema.QUERY, pa.array([number] * table.num_rows, pa.int64()))
            for number, table in enumerate(found)
        ]
        return pa.concat_tables(numbered, promote_options="permissive") if numbered else pa.table({schema.QUERY: []})

    def to_arrow(self) -> pa.Table:
        """Do as `run`."""
        return self.run()

    def to_pandas(self) -> Any:  # pandas.DataFrame, whose types are not used here
        """Give the rows as a DataFrame of pandas."""
        return self.run().to_pandas()

    def to_polars(self) -> Any:  # polars.DataFrame
        """Give the rows as a DataFrame of Polars.

        Raises:
            ImportError: Polars is not installed.
        """
        try:
            polars = importlib.import_module("polars")
        except ImportError as error:
            raise ImportError("Polars is missing; install it with: pip install polars") from error
        return polars.from_arrow(self.run())

    def to_list(self) -> list[dict[str, Any]]:  # values of whatever type the columns have
        """Give the rows as dicts."""
        rows: list[dict[str, Any]] = self.run().to_pylist()
        return rows

    def to_pydantic(self, model: type[Model]) -> list[Model]:
        """Give the rows as objects of a pydantic model.

        Raises:
            pydantic.ValidationError: a row does not fit.
        """
        return [model.model_validate(row) for row in self.to_list()]

    def show(self, path: str | Path | None = None) -> Sheet:
        """Draw the pictures found, best first: a notebook shows what comes back.

        Args:
            path: a PNG to write it to.
        """
        rows = self.run()
        pictures = self._pictures(rows)
        captions = [_caption(row) for row in rows.to_pylist()]
        spec = self.tables[0]().record.preprocess
        png = self.around.draw(list(zip(pictures, captions, strict=True)), spec, _title(self.ranking))
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(png)
        return Sheet(png, None if path is None else Path(path))

    def _then(self, step: Step) -> "Search":
        return replace(self, steps=(*self.steps, step))

    def _ranked_by(self, **changed: Any) -> "Search":  # fields of Nearest
        if not isinstance(self.ranking, Nearest):
            raise InputError("exact, nprobe: wanted before fuse, on the searches that are fused")
        return replace(self, ranking=replace(self.ranking, **changed))

    def _run(self, named: set[str], others: bool) -> list[pa.Table]:
        """Give a table for each query, with the columns that whoever asks wants, as `OpenTable.rows` takes them."""
        *_, (_, tables) = self._stages(named, others)
        return tables

    def _stages(self, named: set[str], others: bool) -> Iterator[tuple[str, list[pa.Table]]]:
        """Yield what was done, and the tables after it."""
        tables = self.ranking.run(*_columns(self.steps, named, others))
        yield self.ranking.said(), tables
        for step in self.steps:
            tables = [step.apply(table) for table in tables]
            yield step.said, tables

    def _vectors_by(self, model: str, rows: pa.Table) -> pa.Array:
        """Encode the rows' pictures by a model: fixed-size lists, null where there is no picture."""
        encoder = self.around.encoder(model)
        pictures = self._pictures(rows)
        there = [picture for picture in pictures if picture is not None]
        vectors = iter(encoder.images(there).tolist())
        values = [None if picture is None else next(vectors) for picture in pictures]
        return pa.array(values, pa.list_(pa.float32(), encoder.spec.dimensions or 0))

    def _pictures(self, rows: pa.Table) -> list[bytes | None]:
        if schema.ROW_ID not in rows.column_names:
            raise InputError(f"pictures: wanted {schema.ROW_ID} among the columns selected")
        return [_picture(row_id, self.tables) for row_id in rows[schema.ROW_ID].to_pylist()]


def _columns(steps: Sequence[Step], named: set[str], others: bool) -> tuple[set[str], bool]:
    """Say which columns rows have to bring for some steps, and for whoever asks after them."""
    read: set[str] = set()
    for place, step in enumerate(steps):
        read |= step.reads or set()
        if step.is_last_word:
            return read, any(before.reads is None for before in steps[: place + 1])
    return read | named, others


def _having(relation: ds.Dataset, key: str, values: pa.Array) -> pa.Table:
    """Give the rows of a relation whose key is one of some values.

    Raises:
        InputError: it has no such column, or one of a type that these cannot be.
    """
    if key not in relation.schema.names:
        raise InputError(f"join: no column {key!r}; there are {', '.join(relation.schema.names)}")
    kind = relation.schema.field(key).type
    try:
        wanted = values.cast(kind)
    except pa.ArrowException as error:
        raise InputError(f"join: column {key!r} is {kind}, its other side {values.type}: {error}") from error
    return relation.to_table(filter=ds.field(key).isin(wanted))


def _picture(row_id: str, tables: Sequence[Callable[[], OpenTable]]) -> bytes | None:
    """Read a row's picture from the first table that has it."""
    for table in (each() for each in tables):
        for number in table.columns.numbers_of(row_id):
            return table.pictures.of(number)
    return None


def _caption(row: dict[str, Any]) -> str:  # values of whatever type
    values = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
    shown = [value for value, name in zip(values, row, strict=True) if name not in (schema.SOURCE_ID, schema.QUERY)]
    return " ".join(shown[:6])


def _title(ranking: Nearest | Fused) -> str:
    if isinstance(ranking, Nearest) and ranking.kind in ("text", "row_id"):
        return ", ".join(str(query)[:80] for query in ranking.queries)
    return "several lists" if isinstance(ranking, Fused) else f"by {ranking.kind}"


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
