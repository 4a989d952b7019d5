"""What all rows of a table have in common: made from a config, and compared with what the table was begun with.

In: a config, the checkpoint it names, and a survey. Out: the record that table.json holds, or an error that names the
first difference. Reads no image and writes nothing.
"""

from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline import model
from pipeline.config import EmbedConfig, ModelConfig, PreprocessConfig
from pipeline.embedding.decode import check_formats
from pipeline.embedding.plan import Survey
from pipeline.errors import InputError
from pipeline.model import Checkpoint, Limits, PreprocessSpec
from pipeline.table import TableRecord

PARTITION_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)
COMPARED = ("source", "image_column", "image_kind", "key_column", "kept", "partition_by", "unit_rows", "d")


@dataclass(frozen=True)
class Space:
    """What makes vectors comparable, and its name."""

    checkpoint: Checkpoint
    preprocess: PreprocessSpec
    d: int
    name: str


def space_of(config: ModelConfig) -> Space:
    """Find the checkpoint and say what its vectors will be comparable with.

    Raises:
        InputError: the model cannot be used as asked.
    """
    checkpoint = model.resolve(
        config.model, allow_pickle_weights=config.allow_pickle_weights, expected_sha256=config.expected_sha256
    )
    preprocess = checkpoint.preprocess_spec(config.preprocess.fit, config.preprocess.decode, _limits(config.preprocess))
    preprocess = replace(preprocess, thumbnail_px=config.preprocess.thumbnail_px)
    dimensions = config.encode.dimensions
    if dimensions is not None and dimensions > checkpoint.embed_dim:
        raise InputError(f"encode.dimensions: wanted at most {checkpoint.embed_dim}, got {dimensions}")
    return Space(checkpoint, preprocess, dimensions or checkpoint.embed_dim, checkpoint.space(preprocess, dimensions))


def table_name(config: EmbedConfig, space: Space) -> str:
    """Give the name of the table that a config writes."""
    return config.table or f"{config.source.name}__{space.name}"


def new_record(config: EmbedConfig, space: Space, found: Survey) -> TableRecord:
    """Say what all rows of the table will have in common.

    Raises:
        InputError: a column cannot become a folder.
    """
    for name in config.partition_by:
        kind = found.kept.field(name).type
        if not any(check(kind) for check in PARTITION_TYPES):
            raise InputError(f"partition_by: column {name!r} is {kind}; wanted text, whole numbers, booleans or dates")
    return TableRecord(
        source=config.source.name,
        image_column=config.source.image_column,
        image_kind=found.image_kind,
        key_column=config.source.key_column,
        kept={field.name: str(field.type) for field in found.kept},
        partition_by=config.partition_by,
        unit_rows=config.unit_rows,
        space=space.name,
        model=space.checkpoint.name,
        model_id=space.checkpoint.model_id,
        model_sha256=space.checkpoint.sha256,
        preprocess=space.preprocess,
        precision=config.encode.precision,
        d=space.d,
        content_hashes=True,
    )


def agreed(table: str, stored: TableRecord, wanted: TableRecord) -> TableRecord:
    """Take what the table's rows have already, if all that makes rows comparable is as it was.

    Raises:
        InputError: it is not, naming the first difference.
    """
    if stored.space != wanted.space:
        raise InputError(
            f"table {table}: has space {stored.space} ({_brief(stored)}), wanted {wanted.space} ({_brief(wanted)}); "
            "choose another --table"
        )
    for name in COMPARED:
        old, new = getattr(stored, name), getattr(wanted, name)
        if old != new:
            raise InputError(f"table {table}: has {name} {old!r}, wanted {new!r}; choose another --table")
    if (old_px := stored.preprocess.thumbnail_px) != (new_px := wanted.preprocess.thumbnail_px):
        raise InputError(f"table {table}: has thumbnail_px {old_px}, wanted {new_px}; choose another --table")
    return replace(wanted, model_id=stored.model_id, content_hashes=stored.content_hashes)


def _limits(config: PreprocessConfig) -> Limits:
    try:
        check_formats(config.formats)
    except ImportError as error:
        raise InputError(str(error)) from error
    return Limits(config.formats, config.max_image_bytes, config.max_image_pixels, config.max_decode_s)


def _brief(record: TableRecord) -> str:
    spec = record.preprocess
    size = f"{spec.width_px} x {spec.height_px} px"
    return f"{record.model_id}, {spec.resize_mode} to {size}, decode {spec.decode}, d {record.d}"
