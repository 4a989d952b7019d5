"""A table's rows as the one Parquet file that Embedding Atlas loads.

    embedding-atlas atlas.parquet --vector vector --text caption
    embedding-atlas atlas.parquet --x projection_x --y projection_y --text caption

By the first the Atlas projects the vectors itself, with UMAP; the second shows two principal components, which are
computed here. Thumbnails, where the table keeps them, are shown with their points: they are structs of bytes and path
(data-formats.html of its documentation). Knows nothing of the Atlas but these columns (README of embedding-atlas 0.26).
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import InputError
from pipeline.exchange.projection import Projection, principal_plane
from pipeline.exchange.rows import Rows, rows_of
from pipeline.exchange.target import Exported, check_free, split
from pipeline.indexing.vectors import matrix
from pipeline.store import Store

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
X, Y = "projection_x", "projection_y"  # as the Atlas calls what it projects itself


def export_atlas(
    store: Store, table: str, target: str, *, vectors: bool = True, project: bool = False, overwrite: bool = False
) -> Exported:
    """Write a table's ids, kept columns, thumbnails, vectors and coordinates to a Parquet file.

    Args:
        target: the file's path or URL.
        vectors: whether it has the vectors; without them and without coordinates the Atlas has only the texts to go by.
        project: whether it has coordinates: the vectors are read once more for them.

    Raises:
        InputError: there is no such table, something is in the place, or a kept column is called as a coordinate is.
        IncompleteError: a file of the table is missing or damaged.
    """
    there, name = split(target)
    check_free(target, {name: 1} if there.exists(name) else {}, overwrite=overwrite)
    whole = rows_of(store, table)
    if project and (taken := {X, Y} & set(whole.kept)):
        raise InputError(f"table {table}: keeps a column {min(taken)!r}, as coordinates are called; export without")
    pictures = [schema.THUMBNAIL] if schema.THUMBNAIL in whole.schema.names else []
    numbers = [schema.VECTOR] if vectors or project else []
    rows = rows_of(store, table, [schema.ROW_ID, *whole.kept, *pictures, *numbers])
    plane = _plane(store, table, rows.record.d) if project else None
    written = 0
    with there.scratch("") as scratch:
        made = scratch / "made.parquet"
        form = _form(rows, plane, vectors=vectors)
        with pq.ParquetWriter(made, form, compression="zstd") as writer:
            for batch in _columns(rows, plane, form):
                writer.write_table(batch)
                written += batch.num_rows
        rows.check_count(written, target)
        size = made.stat().st_size
        there.put_file(name, made)
    return Exported(target, written, 1, size)


def _plane(store: Store, table: str, d: int) -> Projection:
    vectors = rows_of(store, table, [schema.VECTOR])
    return principal_plane((matrix(pa.table(batch)[schema.VECTOR]) for batch in vectors.batches()), d)


def _form(rows: Rows, plane: Projection | None, *, vectors: bool) -> pa.Schema:
    fields = [
        pa.field(field.name, PICTURE) if field.name == schema.THUMBNAIL else field
        for field in rows.schema
        if vectors or field.name != schema.VECTOR
    ]
    return pa.schema(fields if plane is None else [*fields, (X, pa.float32()), (Y, pa.float32())])


def _columns(rows: Rows, plane: Projection | None, form: pa.Schema) -> Iterator[pa.Table]:
    """Read the rows as the file has them, with coordinates where there is a plane."""
    for batch in rows.batches():
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        if schema.THUMBNAIL in columns:
            content = columns[schema.THUMBNAIL]
            columns[schema.THUMBNAIL] = pa.StructArray.from_arrays(
                [content, pa.nulls(len(content), pa.string())], fields=list(PICTURE), mask=content.is_null()
            )
        if plane is not None:
            columns[X], columns[Y] = plane(matrix(pa.table(batch)[schema.VECTOR])).T.copy()
        yield pa.table({name: columns[name] for name in form.names}, form)
