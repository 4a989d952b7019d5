"""A table's rows in the layout of clip-retrieval, which its index and its server read, and autofaiss.

``img_emb/img_emb_0.npy`` has vectors, float32 (n, d), and ``metadata/metadata_0.parquet`` what belongs to each of them:
``image_path``, the kept columns (``caption`` and ``url`` among them mean there what they say), and the row's id. Many
pairs of files, of a bounded number of rows; numbers have as many digits as the last (clip_inference/writer.py there).
The way back is `pipeline.exchange.vectors_in`, for a source as `clip_retrieval_source` names it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import SourceConfig, VectorsConfig
from pipeline.embedding.plan import list_shards
from pipeline.errors import InputError
from pipeline.exchange.rows import Rows, rows_of
from pipeline.exchange.target import Exported, check_free
from pipeline.filesystem import open_parquet
from pipeline.indexing.vectors import matrix
from pipeline.store import Store

VECTORS, METADATA = "img_emb", "metadata"  # the folders, and how the files in them begin
IMAGE_PATH = "image_path"
FILE_ROWS = 1 << 18  # in one pair of files: 800 MB of vectors of width 768


def export_clip_retrieval(
    store: Store, table: str, folder: str, *, file_rows: int = FILE_ROWS, overwrite: bool = False
) -> Exported:
    """Write a table's rows as pairs of NumPy and Parquet files.

    Args:
        folder: a path or URL, which ``img_emb`` and ``metadata`` are made in.
        file_rows: rows in each pair but the last.
        overwrite: whether files of the layout that are there are removed first.

    Raises:
        InputError: there is no such table, or something is in the place.
        IncompleteError: a file of the table is missing or damaged.
    """
    rows, there = rows_of(store, table), Store(folder)
    found = {f"{kind}/{path}": size for kind in (VECTORS, METADATA) for path, size in there.files(kind).items()}
    check_free(folder, found, overwrite=overwrite)
    there.remove_many(sorted(found), lambda: None)
    last = max(rows.count - 1, 0) // file_rows
    written = size = 0
    for number, pieces in groupby(_pieces(rows, file_rows), key=lambda piece: piece[0]):
        count = min(file_rows, rows.count - number * file_rows)
        with there.scratch("") as scratch:
            written += _write_pair(scratch, rows, count, (piece for _, piece in pieces))
            for kind, suffix in ((VECTORS, ".npy"), (METADATA, ".parquet")):
                made = scratch / f"{kind}{suffix}"
                size += made.stat().st_size
                there.put_file(f"{kind}/{kind}_{number:0{len(str(last))}d}{suffix}", made)
    rows.check_count(written, folder)
    return Exported(folder, written, 2 * (last + 1), size)


def _pieces(rows: Rows, file_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield rows with the number of the pair of files that they belong in; of no rows, one piece without any."""
    end = 0
    for batch in rows.batches():
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, file_rows - end % file_rows)
            yield end // file_rows, pa.table(piece)
            start, end = start + piece.num_rows, end + piece.num_rows
    if end == 0:
        yield 0, rows.schema.empty_table()


def _write_pair(folder: Path, rows: Rows, count: int, pieces: Iterable[pa.Table]) -> int:
    """Write one pair of files; give how many rows are in them."""
    kept = [rows.schema.field(name) for name in rows.kept]
    path = [] if IMAGE_PATH in rows.kept else [pa.field(IMAGE_PATH, pa.string())]
    form = pa.schema([*path, *kept, pa.field(schema.ROW_ID, pa.string())])
    shape, written = {"descr": "<f4", "fortran_order": False, "shape": (count, rows.record.d)}, 0
    with (
        (folder / f"{VECTORS}.npy").open("wb") as vectors,
        pq.ParquetWriter(folder / f"{METADATA}.parquet", form, compression="zstd") as metadata,
    ):
        np.lib.format.write_array_header_1_0(vectors, shape)
        for piece in pieces:
            if not piece.num_rows:  # which have no width
                continue
            vectors.write(np.ascontiguousarray(matrix(piece[schema.VECTOR]), "<f4").data)
            columns = {IMAGE_PATH: piece[schema.ROW_ID], **{name: piece[name] for name in piece.column_names}}
            metadata.write_table(pa.table([columns[name] for name in form.names], form))
            written += piece.num_rows
    return written


def clip_retrieval_source(name: str, folder: str, keep: Sequence[str] | None = None) -> VectorsConfig:
    """Say where vectors are that lie in this layout: what `ImportConfig` takes beside ``layout="clip-retrieval"``.

    Args:
        name: of the source.
        keep: columns of the metadata to carry along; None: all. The key, which is not among them, is the row's id where
            there is one, as in what was exported here, and else ``image_path``.

    Raises:
        InputError: there is no metadata, or nothing in it that is a key.
    """
    path = f"{folder.rstrip('/')}/{METADATA}"
    url, _, _ = min(list_shards(SourceConfig(name=name, path=path)))
    with open_parquet(url) as file:
        form = file.schema_arrow
    key = next((column for column in (schema.ROW_ID, IMAGE_PATH) if column in form.names), None)
    if key is None:
        raise InputError(f"{url}: no column {schema.ROW_ID!r} or {IMAGE_PATH!r}; it has {', '.join(form.names)}")
    image = next((column for column in (IMAGE_PATH, "url") if column in form.names), key)
    rest = [column for column in form.names if column not in {key, *schema.RESERVED}]
    return VectorsConfig(
        name=name, path=path, key_column=key, image_column=image, keep_columns=tuple(rest if keep is None else keep)
    )
