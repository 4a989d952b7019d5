"""A query in, ranked rows out: one table's published index behind the very encoder and preprocessing that made it.

In: text, an encoded image, a row's id, or a vector. Out: hits with the index version and the space that they belong
to. Used by the HTTP endpoint and by `jobs.query`; knows nothing of HTTP or of Ray.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FetchConfig
from pipeline.embedding.encode import Encode
from pipeline.embedding.fetch import fetch, fetch_spec
from pipeline.embedding.sandbox import Sandbox
from pipeline.embedding.web import Web
from pipeline.errors import InputError, RunError
from pipeline.filesystem import STORE_ERRORS
from pipeline.indexing.exact import NO_ID
from pipeline.indexing.publish import read_current
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec
from pipeline.schema import RejectedRowError
from pipeline.searching.index import OpenIndex, open_index
from pipeline.searching.rows import Rows
from pipeline.store import Store
from pipeline.table import find_table, read_record, table_folder

logger = logging.getLogger(__name__)

REFUSED_S = 300.0  # until a version that was refused is looked at again


class QueryError(Exception):
    """A query that cannot be answered as it was put; ``code`` is stable, for programs."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Hit:
    """One row found."""

    id: str
    score: float  # inner product of unit vectors: 1 is the same direction
    columns: dict[str, object]
    number: int  # the vector id


@dataclass(frozen=True)
class Answer:
    """Rows found, best first, and what they were found with."""

    index_version: str
    space: str
    hits: tuple[Hit, ...]


class Service:
    """Everything that answering needs, loaded once.

    Raises:
        InputError: no such table, nothing published, or a model of another space than the index.
        IncompleteError: a file of the index is missing or damaged.
    """

    def __init__(
        self, store_url: str, table: str | None, model: str | None = None, *, allow_pickle_weights: bool = False
    ) -> None:
        store = Store(store_url)
        self.store = store
        self.table = find_table(store, table)
        record = read_record(store, self.table)
        if record is None:
            raise InputError(f"table {self.table}: has no table.json")
        self.record = record
        self.encoder = Encode(
            EncodeSpec(
                model=model or record.model,
                space=record.space,
                preprocess=record.preprocess,
                dimensions=record.d,
                threads=available_cpus(),
                allow_pickle_weights=allow_pickle_weights,
            )
        )
        self.sandbox = Sandbox(record.preprocess)
        embedded_with = store.read_json(f"{table_folder(self.table)}/config.json")
        self.fetch_spec = fetch_spec(
            FetchConfig.model_validate(embedded_with["fetch"]), record.preprocess.limits.max_image_bytes
        )
        self._refused: str | None = None  # a version that cannot be served
        self._refused_until = 0.0
        self._rows = self._open()  # swapped whole; a query takes it once

    @property
    def rows(self) -> Rows:
        """The rows of the version that answers now."""
        return self._rows

    @property
    def index(self) -> OpenIndex:
        """The version that answers now."""
        return self._rows.index

    def refresh(self) -> bool:
        """Take the published version over if it is another one; whether it was.

        One that is damaged, of another space, or cannot be read is refused with a warning; what answered before does.
        """
        published = None
        try:
            published = read_current(self.store, self.table)
            if published in (None, self.index.card.version):
                return False
            if published == self._refused and time.monotonic() < self._refused_until:
                return False
            self._rows = self._open()
        except (RunError, *STORE_ERRORS) as error:
            if isinstance(error, RunError):  # all of it would be read again at every look
                self._refused, self._refused_until = published, time.monotonic() + REFUSED_S
            logger.warning("index=%s stays at version %s: %s", self.table, self.index.card.version, error)
            return False
        logger.info("index=%s version=%s answers now", self.table, self.index.card.version)
        return True

    def _open(self) -> Rows:
        """Load the published version beside the one that answers, and ask it for a row of its own."""
        index = open_index(self.store, self.table)
        if self.record.space != index.card.space:
            raise InputError(
                f"table {self.table}: its index is of space {index.card.space}, its rows of {self.record.space}; run "
                "python -m jobs.build_index"
            )
        rows = Rows(self.store, index, self.record, self.fetch_spec)
        self._check(rows)
        return rows

    def check(self) -> None:
        """Ask for a stored row by its own vector.

        Raises:
            InputError: the index does not find it.
        """
        self._check(self._rows)

    def _check(self, rows: Rows) -> None:
        answer = self._search(rows, rows.index.vector(rows.index.spans[0].base), 1)
        if not answer.hits or answer.hits[0].score < 0.99:
            raise InputError(f"index {self.table}/{rows.index.card.version}: a row of its own is not found in it")

    def search(self, vector: NDArray[np.float32], k: int) -> Answer:
        """Find the k rows nearest to a unit vector (d,)."""
        return self._search(self._rows, vector, k)

    def _search(self, rows: Rows, vector: NDArray[np.float32], k: int) -> Answer:
        index = rows.index
        scores, numbers = index.search(vector[None, :], k)
        hits = tuple(
            Hit(index.row_ids[int(number)].as_py(), float(score), rows.kept(int(number)), int(number))
            for score, number in zip(scores[0], numbers[0], strict=True)
            if number != NO_ID
        )
        return Answer(index.card.version, self.record.space, hits)

    def embed_text(self, text: str) -> NDArray[np.float32]:
        """Encode a text by the table's own text tower: (d,).

        Raises:
            QueryError: the model came without its tokenizer, or the text has no direction.
        """
        try:
            vector: NDArray[np.float32] = self.encoder.encode_texts([text])[0]
        except InputError as error:
            raise QueryError("no_tokenizer", str(error)) from error
        return _directed(vector, "text")

    def embed_image(self, encoded: bytes) -> NDArray[np.float32]:
        """Decode, fit and encode an image as the embed job did: (d,).

        Raises:
            QueryError: there is no image in these bytes.
        """
        pixels, [reject] = self.sandbox.pixels([encoded])
        if reject is not None:
            raise QueryError(f"image_{reject.reason}", f"image: {reject}") from reject
        return _directed(self.encoder.encode_images(pixels)[0], "image")

    def fetch_image(self, url: str) -> bytes:
        """Read an image that a path or URL names: any local file, URLs as the embed job may.

        Raises:
            QueryError: it cannot or may not be read.
        """
        try:
            path = url if "://" in url else str(Path(url).absolute())
            return fetch(path, self.fetch_spec, Web(self.fetch_spec.web), more_roots=("/",))
        except RejectedRowError as error:
            raise QueryError(f"image_{error.reason}", str(error)) from error

    def vector_of_row(self, row_id: str) -> NDArray[np.float32]:
        """Look a row's vector up: (d,).

        Raises:
            QueryError: the index has no such row.
        """
        number = self.index.number_of(row_id)
        if number is None:
            raise QueryError("unknown_id", f"id {row_id!r}: not in index {self.index.card.version}")
        return self.index.vector(number)

    def check_vector(self, values: list[float], space: str | None) -> NDArray[np.float32]:
        """Take a vector that was made elsewhere, normalised: (d,).

        Raises:
            QueryError: it is of another space or width, or has no direction.
        """
        if space is not None and space != self.record.space:
            raise QueryError("wrong_space", f"vector is of space {space!r}, the table of {self.record.space!r}")
        if len(values) != self.record.d:
            raise QueryError("wrong_width", f"vector has {len(values)} coordinates, the table {self.record.d}")
        return _directed(np.asarray(values, np.float32), "vector")


def _directed(vector: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0.0:
        raise QueryError("no_direction", f"{what}: its vector is zero or not finite")
    return np.asarray(vector / norm, np.float32)
