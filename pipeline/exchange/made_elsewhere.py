"""What vectors that were made elsewhere have in common: a checkpoint's space, or one of their own.

In: an `ImportConfig`. Out: an `Origin`, and the record of its table. Vectors of an unknown model have a space that is
made of a label and their width, and a record by which nothing can be encoded: it names no checkpoint's files, and its
model is a name that resolves to nothing, not even on a hub.
"""

import hashlib
import json
from dataclasses import dataclass

from pipeline.config import ImportConfig, ModelConfig
from pipeline.embedding.plan import Survey
from pipeline.embedding.record import space_of
from pipeline.errors import InputError
from pipeline.model import PreprocessSpec
from pipeline.table import TableRecord

NO_MODEL = "~made elsewhere: "  # `pipeline.model.resolve` takes it for a folder, of which there is none
# Only for pictures that are shown: nothing is encoded.
SHOWN = PreprocessSpec(height_px=224, width_px=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Origin:
    """What made the vectors."""

    space: str
    model: str
    model_id: str
    model_sha256: dict[str, str]
    preprocess: PreprocessSpec


def origin_of(config: ImportConfig) -> Origin:
    """Say what made the vectors.

    Raises:
        InputError: the model cannot be used as asked, or has vectors of another width.
    """
    if config.model is None:
        label = config.label or f"vectors of {config.source.name}"
        parts = json.dumps({"label": label, "dimensions": config.dimensions})
        space = hashlib.sha256(parts.encode()).hexdigest()[:12]
        return Origin(space, f"{NO_MODEL}{label}", label, {}, SHOWN)
    found = space_of(
        ModelConfig(
            model=config.model,
            expected_sha256=config.expected_sha256,
            allow_pickle_weights=config.allow_pickle_weights,
            preprocess=config.preprocess,
        )
    )
    if found.d != config.dimensions:
        raise InputError(f"model {config.model!r}: has vectors of {found.d} numbers; dimensions: {config.dimensions}")
    made = found.checkpoint
    return Origin(found.name, made.name, made.model_id, made.sha256, found.preprocess)


def record_of(config: ImportConfig, origin: Origin, found: Survey) -> TableRecord:
    """Say what all rows of the table will have in common."""
    return TableRecord(
        source=config.source.name,
        image_column=config.source.image_column,
        image_kind=found.image_kind,
        key_column=config.source.key_column,
        kept={field.name: str(field.type) for field in found.kept},
        partition_by=(),
        unit_rows=config.unit_rows,
        space=origin.space,
        model=origin.model,
        model_id=origin.model_id,
        model_sha256=origin.model_sha256,
        preprocess=origin.preprocess,
        precision=None,
        d=config.dimensions,
    )
