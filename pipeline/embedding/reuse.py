"""Encoded images in; out, their content hashes, and for those that have a vector already, the vector in their place.

A shard that was rewritten mostly holds the images it held before. Their vectors lie in the files of its earlier state,
found by content: SHA-256 of the encoded bytes. Whatever of these files is damaged is encoded again. Knows nothing of
Ray.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema
from pipeline.errors import RunError
from pipeline.filesystem import STORE_ERRORS
from pipeline.store import Store
from pipeline.table import File, read_checked

logger = logging.getLogger(__name__)

FILES_IN_MEMORY = 8  # of vectors: rewritten shards mostly keep their order
SHARDS_IN_MEMORY = 8  # of hashes: as many as are read at a time, about


@dataclass(frozen=True)
class ReuseSpec:
    """Where the earlier vectors lie."""

    store: str
    folder: str  # the table's, below the store's root
    keeps_images: bool = False  # whose vector is known: thumbnails are made of them


@dataclass(frozen=True)
class Elder:
    """A file of an earlier state of a shard, and what its vectors were computed with."""

    file: File
    encoders: tuple[str, ...]


class Reuse:
    """The step: elders, by shard, are the files whose vectors may be used again."""

    def __init__(self, spec: ReuseSpec, elders: Mapping[str, tuple[Elder, ...]]) -> None:
        self.spec = spec
        self.store = Store(spec.store)
        self.elders = elders
        # By shard, the last used last: hash -> number of the elder, rank in it.
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._vectors: dict[str, pa.Table] = {}  # by path, the last used last

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add content hash, known vector and its encoder; an image whose vector is known mostly goes no further."""
        shards = batch[schema.SHARD].to_pylist()
        reasons = batch[schema.REASON].to_pylist()
        hashes = [
            hashlib.sha256(image.as_buffer()).hexdigest() if image.is_valid and reason is None else None
            for image, reason in zip(batch[schema.IMAGE], reasons, strict=True)
        ]
        known = [self._known(shard, digest) for shard, digest in zip(shards, hashes, strict=True)]
        is_known = [vector is not None for vector, _ in known]
        new = {
            schema.CONTENT_HASH: pa.array(hashes, pa.string()),
            schema.KNOWN: pa.array([vector for vector, _ in known], pa.binary()),
            schema.ENCODER: pa.array([encoder for _, encoder in known], pa.string()),
        }
        if any(is_known) and not self.spec.keeps_images:  # if_else would keep the bytes behind the nulls
            rows = pa.array(range(batch.num_rows), pa.int64(), mask=pa.array(is_known).to_numpy(zero_copy_only=False))
            new[schema.IMAGE] = batch[schema.IMAGE].take(rows)
        return schema.replace_columns(batch, [], new)

    def _known(self, shard: str, digest: str | None) -> tuple[bytes | None, str | None]:
        """Give the vector of some contents as bytes, and what it was computed with."""
        if digest is None or shard not in self.elders:
            return None, None
        if shard not in self._places:
            while len(self._places) >= SHARDS_IN_MEMORY:
                del self._places[next(iter(self._places))]
            self._places[shard] = self._places_in(self.elders[shard])
        place = self._places[shard].get(digest)
        if place is None:
            return None, None
        elder = self.elders[shard][place[0]]
        try:
            vector = self._rows(elder.file)[schema.VECTOR][place[1]].values
        except (RunError, *STORE_ERRORS) as error:  # damaged since its hashes were read
            logger.warning("file=%s/%s not used again: %s", self.spec.folder, elder.file.path, error)
            self._places[shard] = {one: at for one, at in self._places[shard].items() if at[0] != place[0]}
            return None, None
        return vector.to_numpy().tobytes(), " or ".join(
            sorted({part for one in elder.encoders for part in one.split(" or ")})
        )

    def _places_in(self, elders: tuple[Elder, ...]) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        for number, elder in enumerate(elders):
            try:
                hashes = self._rows(elder.file)[schema.CONTENT_HASH].to_pylist()
            except (RunError, KeyError, *STORE_ERRORS) as error:
                logger.warning("file=%s/%s not used again: %s", self.spec.folder, elder.file.path, error)
                continue
            places.update((digest, (number, rank)) for rank, digest in enumerate(hashes))
        return places

    def _rows(self, file: File) -> pa.Table:
        """Read a file, or take it from the last few."""
        rows = self._vectors.pop(file.path, None)
        if rows is None:
            rows = read_checked(self.store, self.spec.folder, file)
            while len(self._vectors) >= FILES_IN_MEMORY:
                del self._vectors[next(iter(self._vectors))]
        self._vectors[file.path] = rows
        return rows
