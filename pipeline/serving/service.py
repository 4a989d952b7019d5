"""One table that answers: its published version behind the very encoder and preprocessing that made it.

In: texts, encoded images, vectors. Out: vectors, and hits with the index version and the space that they belong to.
Used by the HTTP endpoint and by `jobs.query`; knows nothing of HTTP or of Ray.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from pipeline.indexing.publish import read_current
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec
from pipeline.schema import RejectedRowError
from pipeline.serving.problems import QueryError
from pipeline.serving.snapshot import Asked, Hit, Snapshot, open_snapshot
from pipeline.store import Store
from pipeline.table import TableRecord, find_table, read_record, table_folder

logger = logging.getLogger(__name__)

REFUSED_S = 300.0  # until a version that was refused is looked at again
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """Rows found, best first, and what they were found with."""

    index_version: str
    space: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Refused:
    """A published version that is not served, and why."""

    version: str | None
    why: str
    until: float  # of the monotonic clock; it is looked at again then


class Service:
    """Everything that answering needs, loaded once.

    Raises:
        InputError: no such table, nothing published, or a model of another space than the index.
        IncompleteError: a file of the index is missing or damaged.
    """

    def __init__(
        self,
        store_url: str,
        table: str | None,
        model: str | None = None,
        *,
        allow_pickle_weights: bool = False,
        encoder: Encode | None = None,
        max_image_bytes: int | None = None,
        max_image_pixels: int | None = None,
    ) -> None:
        """Load all of it.

        Args:
            model: where the table's model is now, if it has moved.
            encoder: of the table's space, where another table has loaded it already.
            max_image_bytes, max_image_pixels: of an image of a query, if less than the embed job took.
        """
        self.store = Store(store_url)
        self.table = find_table(self.store, table)
        self.record = self._read_record()
        self.encoder = encoder or Encode(self._encode_spec(model, allow_pickle_weights))
        limits = self.record.preprocess.limits
        self.limits = replace(
            limits,
            max_image_bytes=min(limits.max_image_bytes, max_image_bytes or limits.max_image_bytes),
            max_image_pixels=min(limits.max_image_pixels, max_image_pixels or limits.max_image_pixels),
        )
        self.sandbox = Sandbox(replace(self.record.preprocess, limits=self.limits))
        embedded_with = self.store.read_json(f"{table_folder(self.table)}/config.json")
        self.fetch_spec = fetch_spec(
            FetchConfig.model_validate(embedded_with["fetch"]), self.record.preprocess.limits.max_image_bytes
        )
        self.refused: Refused | None = None
        self.snapshot = self._open()  # swapped whole; a query takes it once

    def refresh(self) -> bool:
        """Take the published version over if it is another one; whether it was.

        One that is damaged, of another space, or cannot be read is refused with a warning; what answered before does.
        """
        published = None
        try:
            published = read_current(self.store, self.table)
            if published in (None, self.snapshot.version):
                self.refused = None
                return False
            known = self.refused
            if known is not None and known.version == published and time.monotonic() < known.until:
                return False
            self.snapshot = self._open()
        except (RunError, *STORE_ERRORS) as error:
            # All of a damaged one would be read again at every look; a store that failed may be well at the next.
            again_s = REFUSED_S if isinstance(error, RunError) else 0.0
            self.refused = Refused(published, " ".join(str(error).split()), time.monotonic() + again_s)
            logger.warning("index=%s stays at version %s: %s", self.table, self.snapshot.version, error)
            return False
        self.refused = None
        logger.info("index=%s version=%s answers now", self.table, self.snapshot.version)
        return True

    def search(self, vector: Vector, k: int) -> Answer:
        """Find the k rows nearest to a unit vector (d,)."""
        snapshot = self.snapshot
        scores, numbers = snapshot.search(vector[None, :], Asked(k))
        return Answer(snapshot.version, self.record.space, snapshot.hits(scores[0], numbers[0]))

    def embed_texts(self, texts: Sequence[str], *, normalised: bool = True) -> list[Vector | Exception]:
        """Encode texts by the table's own text tower: a vector (d,) each, or why there is none.

        Args:
            normalised: to norm 1; no: of whatever norm the model gives them.
        """
        try:
            vectors = self.encoder.encode_texts(list(texts), normalised=normalised)
        except InputError as error:
            return [QueryError("no_tokenizer", str(error))] * len(texts)
        return [_usable_or_why(vector, "text", normalised) for vector in vectors]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens that the text tower reads of each text, start and end among them."""
        return self.encoder.count_tokens(list(texts))

    def embed_images(self, encoded: Sequence[bytes], *, normalised: bool = True) -> list[Vector | Exception]:
        """Decode, fit and encode images as the embed job did: a vector (d,) each likewise, or why there is none."""
        pixels, rejects = self.sandbox.pixels(encoded)
        good = np.array([reject is None for reject in rejects])
        vectors = np.zeros((len(encoded), self.record.d), np.float32)
        vectors[good] = self.encoder.encode_images(pixels[good], normalised=normalised)
        return [
            _usable_or_why(vector, "image", normalised) if reject is None else _image_error(reject)
            for vector, reject in zip(vectors, rejects, strict=True)
        ]

    def embed_text(self, text: str) -> Vector:
        """Encode a text: (d,).

        Raises:
            QueryError: the model came without its tokenizer, or the text has no direction.
        """
        return _vector(self.embed_texts([text])[0])

    def embed_image(self, encoded: bytes) -> Vector:
        """Encode an image: (d,).

        Raises:
            QueryError: there is no image in these bytes.
        """
        return _vector(self.embed_images([encoded])[0])

    def fetch_image(self, url: str) -> bytes:
        """Read an image that a path or URL names, for the user of this machine: any local file, URLs as the embed job.

        Raises:
            QueryError: it cannot or may not be read.
        """
        try:
            path = url if "://" in url else str(Path(url).absolute())
            return fetch(path, self.fetch_spec, Web(self.fetch_spec.web), more_roots=("/",))
        except RejectedRowError as error:
            raise _image_error(error) from error

    def vector_of_row(self, row_id: str) -> Vector:
        """Look a row's vector up: (d,).

        Raises:
            QueryError: the index has no such row.
        """
        return self.snapshot.index.vector(self.snapshot.number_of(row_id))

    def check_vector(self, values: Sequence[float], space: str | None) -> Vector:
        """Take a vector that was made elsewhere, normalised: (d,).

        Raises:
            QueryError: it is of another space or width, or has no direction.
        """
        if space is not None and space != self.record.space:
            raise QueryError("wrong_space", f"vector is of space {space!r}, the table of {self.record.space!r}")
        if len(values) != self.record.d:
            raise QueryError("wrong_width", f"vector has {len(values)} coordinates, the table {self.record.d}")
        return directed(np.asarray(values, np.float64), "vector")

    def _open(self) -> Snapshot:
        return open_snapshot(self.store, self.table, self.record, self.fetch_spec)

    def _read_record(self) -> TableRecord:
        record = read_record(self.store, self.table)
        if record is None:
            raise InputError(f"table {self.table}: has no table.json")
        return record

    def _encode_spec(self, model: str | None, allow_pickle_weights: bool) -> EncodeSpec:
        return EncodeSpec(
            model=model or self.record.model,
            space=self.record.space,
            preprocess=self.record.preprocess,
            dimensions=self.record.d,
            threads=available_cpus(),
            allow_pickle_weights=allow_pickle_weights,
        )


def directed(vector: NDArray[np.floating], what: str) -> Vector:
    """Give a vector norm 1.

    Raises:
        QueryError: it is zero or not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        if not np.isfinite(norm) or norm == 0.0:
            raise QueryError("no_direction", f"{what}: its vector is zero or not finite")
        return np.asarray(vector / norm, np.float32)


def _usable_or_why(vector: Vector, what: str, normalised: bool) -> Vector | Exception:
    try:
        unit = directed(vector, what)
    except QueryError as error:
        return error
    return unit if normalised else vector


def _vector(found: Vector | Exception) -> Vector:
    if isinstance(found, Exception):
        raise found
    return found


def _image_error(reject: RejectedRowError) -> QueryError:
    return QueryError(f"image_{reject.reason}", f"image: {reject}")
