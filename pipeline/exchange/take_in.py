"""A unit of vectors that were made elsewhere to files of a table, and what to report of them.

In: units, from threads. Out: rows of schema.PART_SCHEMA, as the embed job's write step gives them; where the shard
cannot be read, one that says so. What is in memory is a unit's rows, or the first `unit_rows` of those left of it.
Commits nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import ImportConfig
from pipeline.embedding.plan import Shard
from pipeline.embedding.write import Write
from pipeline.errors import InputError
from pipeline.exchange import npy_vectors, parquet_vectors
from pipeline.exchange.unit_vectors import unit_vectors
from pipeline.filesystem import STORE_ERRORS, fingerprint_of
from pipeline.schema import Reason
from pipeline.stopping import alive
from pipeline.table import Unit

ENCODER = "made elsewhere"  # in place of device, precision and versions
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Layout:
    """How a shard's vectors are found."""

    check_widths: Callable[[Shard, ImportConfig], None]
    read_rows: Callable[[Unit, list[str], ImportConfig], Iterator[tuple[pa.RecordBatch, pa.Array]]]
    with_state: Callable[[Shard, ImportConfig], Shard] = lambda shard, _: shard


LAYOUTS = {
    "parquet": Layout(parquet_vectors.check_widths, parquet_vectors.read_rows),
    "clip-retrieval": Layout(npy_vectors.check_widths, npy_vectors.read_rows, npy_vectors.with_state),
}


@dataclass(frozen=True)
class TakeIn:
    """The step: what it has to know; safe to call from many threads."""

    config: ImportConfig
    kept: pa.Schema
    write: Write
    left_out: Mapping[str, NDArray[np.int64]]  # by shard, the rows whose key an earlier row has

    def __call__(self, unit: Unit) -> list[dict[str, Any]]:  # rows of schema.PART_SCHEMA
        """Write a unit's vectors and rejects.

        Raises:
            InputError: a vector is of another width.
        """
        parts: list[dict[str, Any]] = []
        try:
            if unit.fingerprint is not None and fingerprint_of(unit.shard) != unit.fingerprint:
                return self._parts(_unreadable(unit, "it was rewritten while this run was at it"))
            for batch in self._batches(unit):
                alive()
                parts += self._parts(batch)
        except (pa.ArrowException, *STORE_ERRORS) as error:
            return self._parts(_unreadable(unit, str(error)))
        return parts

    def _parts(self, batch: pa.Table) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = self.write(batch).to_pylist()
        return parts

    def _batches(self, unit: Unit) -> Iterator[pa.Table]:
        """Read a unit, `unit_rows` rows at a time: a row group may have more, and is a unit of its own."""
        columns = list(dict.fromkeys([self.config.source.key_column, *self.kept.names]))
        held: list[pa.Table] = []
        row = unit.first_row
        for rows, vectors in LAYOUTS[self.config.layout].read_rows(unit, columns, self.config):
            held.append(self._batch(unit, row, rows, vectors))
            row += rows.num_rows
            if sum(batch.num_rows for batch in held) >= self.config.unit_rows:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def _batch(self, unit: Unit, first_row: int, rows: pa.RecordBatch, vectors: pa.Array) -> pa.Table:
        """Make an embedding batch, as the write step takes it."""
        count, d = rows.num_rows, self.config.dimensions
        try:
            found, rejected = unit_vectors(vectors, d)
        except InputError as error:
            where = f"source {self.config.source.name}: shard {unit.shard}, from row {first_row} on"
            raise InputError(f"{where}: {error}") from error
        numbers = np.arange(first_row, first_row + count)
        keys = rows.column(self.config.source.key_column).cast(pa.string())
        for place in np.flatnonzero(np.isin(numbers, self.left_out.get(unit.shard, NOTHING))).tolist():
            rejected[place] = (Reason.DUPLICATE_KEY, f"an earlier row has the key {keys[place].as_py()!r}")
        reasons: list[str | None] = [None] * count
        errors: list[str | None] = [None] * count
        for place, (reason, detail) in rejected.items():
            reasons[place], errors[place] = reason.value, f"{detail}, at row {numbers[place]}"
        columns = {
            schema.UNIT: pa.repeat(unit.id, count),
            schema.SHARD: pa.repeat(unit.shard, count),
            schema.ROW: pa.array(numbers, pa.int64()),
            schema.ROW_ID: keys,
            schema.VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), d),
            schema.KNOWN: pa.nulls(count, pa.binary()),
            schema.ENCODER: pa.repeat(ENCODER, count),
            **schema.outcome_columns(reasons, errors),
        }
        return pa.table(columns | {field.name: rows.column(field.name).cast(field.type) for field in self.kept})


def _unreadable(unit: Unit, why: str) -> pa.Table:
    """Make the one row that says that a unit cannot be read."""
    row = {
        schema.UNIT: unit.id,
        schema.ROW: unit.first_row,
        schema.REASON: schema.UNREADABLE,
        schema.ERROR: f"shard {unit.shard} cannot be read: {why}",
    }
    return pa.Table.from_pylist([row])
