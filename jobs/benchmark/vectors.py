"""Made-up vectors that are as hard to index as real ones, and a table of them as the embed job would leave it.

Tight clusters flatter inverted lists: one list found 0.98 of the neighbours (facts/faiss.md). Here coordinates fall off
by a power law, as those of OpenCLIP's do, and clusters overlap. Queries by text lie about another mean.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.write import Write, WriteSpec
from pipeline.lease import Lease
from pipeline.model import OPENAI_MEAN, OPENAI_STD, Checkpoint, PreprocessSpec
from pipeline.store import Store
from pipeline.table import TableRecord, Unit, table_folder, write_record

UNIT_ROWS, UNITS = 8192, 40  # rows of a unit at most, and units at least
FALLOFF = -0.5  # of a coordinate's standard deviation with its number
CLUSTER_ROWS = 1000  # in the mean
SPREAD = 0.8  # of the centres of clusters, by that of the vectors in one
TEXT_SHIFT = 1.5  # of the mean of texts, by the spread of images
LEAST_ALIKE = 0.975  # of a planted copy and its original; of two copies of one some 0.95


@dataclass(frozen=True)
class MadeUp:
    """A corpus of n vectors (n, d) of norm 1, the same for the same seed, made block by block."""

    n: int
    d: int
    seed: int
    checkpoint: Checkpoint | None = None  # of whose space the vectors are said to be; None: of nobody's
    planted: float = 0.0  # share of the rows that are copies, two of each original in the mean

    @property
    def unit_rows(self) -> int:
        """How many rows a unit has."""
        return min(UNIT_ROWS, max(1, self.n // UNITS))

    @cached_property
    def spectrum(self) -> NDArray[np.float32]:
        """Standard deviations of the coordinates (d,)."""
        return (np.arange(1, self.d + 1) ** FALLOFF).astype(np.float32)

    @cached_property
    def centres(self) -> NDArray[np.float32]:
        """Centres of the clusters, that corpus and queries share."""
        rng = np.random.default_rng(self.seed)
        centres = rng.standard_normal((max(1, self.n // CLUSTER_ROWS), self.d), dtype=np.float32)
        return np.asarray(SPREAD * self.spectrum * centres)

    def images(self, count: int, seed: int) -> NDArray[np.float32]:
        """Make vectors like those of the corpus (count, d)."""
        return _normalised(self._drawn(np.random.default_rng([self.seed, seed]), count))

    def texts(self, count: int, seed: int) -> NDArray[np.float32]:
        """Make vectors about another mean (count, d)."""
        shift = np.random.default_rng([self.seed, 7]).standard_normal(self.d, dtype=np.float32)
        drawn = self._drawn(np.random.default_rng([self.seed, seed]), count)
        return _normalised(drawn + TEXT_SHIFT * self.spectrum * shift)

    @cached_property
    def originals(self) -> NDArray[np.float32]:
        """What planted copies are of, anywhere in the corpus."""
        return self.images(max(1, round(self.n * self.planted / 2)), 8)

    def write(self, folder: Path, table: str) -> Store:
        """Write the corpus as a table, unless it is there already."""
        store = Store(str(folder))
        write_record(store, table, self._record(table), {})
        # As the embed job notes how it read pictures, which there are none of.
        store.replace_json(f"{table_folder(table)}/config.json", {"fetch": {}})
        self.add(store, table, "made-up", 0, self.n)
        return store

    def add(self, store: Store, table: str, shard: str, start: int, rows: int) -> None:
        """Write rows from the ``start``-th on as a shard of a table, those units of it that are not there already."""
        place = table_folder(table)
        write = Write(WriteSpec(store.url, place, table, "made-up@1", self.d, pa.schema([]), (), content_hashes=False))
        units = [
            Unit(f"u-{first:010d}", f"/{shard}.parquet", first, min(self.unit_rows, start + rows - first), 0, 1)
            for first in range(start, start + rows, self.unit_rows)
        ]
        with Lease(store, place) as lease:
            ledger = Ledger(store, place, [f"/{shard}.parquet"], units, lease)
            for unit in ledger.pending:
                for part in write(self._batch(unit)).to_pylist():
                    ledger.add(part)

    def _batch(self, unit: Unit) -> pa.Table:
        numbers = np.arange(unit.first_row, unit.first_row + unit.rows)
        vectors = self.images(unit.rows, 1000 + unit.first_row)
        if self.planted:
            self._plant(vectors, np.random.default_rng([self.seed, 9, unit.first_row]))
        nothing: list[str | None] = [None] * unit.rows
        columns = {
            schema.UNIT: pa.repeat(unit.id, unit.rows),
            schema.SHARD: pa.repeat(unit.shard, unit.rows),
            schema.ROW: numbers,
            schema.ROW_ID: [f"row-{number}" for number in numbers],
            schema.ENCODER: pa.repeat("made up", unit.rows),
            schema.KNOWN: pa.nulls(unit.rows, pa.binary()),
            schema.VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.d),
        }
        return pa.table({**columns, **schema.outcome_columns(nothing, nothing)})

    def _plant(self, vectors: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Put copies in the place of some vectors, each turned away from its original by an angle of its own."""
        places = np.flatnonzero(rng.random(len(vectors)) < self.planted)
        cosine = rng.uniform(LEAST_ALIKE, 1.0, (len(places), 1))
        away = _normalised(rng.standard_normal((len(places), self.d)) * self.spectrum)
        copied = self.originals[rng.integers(len(self.originals), size=len(places))]
        vectors[places] = _normalised(cosine * copied + np.sqrt(1 - cosine**2) * away)

    def _drawn(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        own = rng.standard_normal((count, self.d), dtype=np.float32) * self.spectrum
        return np.asarray(own + self.centres[rng.integers(len(self.centres), size=count)])

    def _record(self, table: str) -> TableRecord:
        record = TableRecord(
            source=table, image_column="image", image_kind="bytes", key_column=None, kept={}, partition_by=(),
            unit_rows=self.unit_rows, space="made-up", model="made-up", model_id="made-up@1", model_sha256={},
            preprocess=PreprocessSpec(height_px=8, width_px=8, mean=OPENAI_MEAN, std=OPENAI_STD), precision=None,
            d=self.d, content_hashes=False,
        )  # fmt: skip
        if self.checkpoint is None:
            return record
        preprocess = self.checkpoint.preprocess_spec("pad")
        return replace(
            record,
            space=self.checkpoint.space(preprocess, None),
            model=self.checkpoint.name,
            model_id=self.checkpoint.model_id,
            preprocess=preprocess,
        )


def _normalised(drawn: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)
