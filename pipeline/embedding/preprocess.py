"""The preprocess step: encoded images in, uint8 pixels out.

A row that has no picture in it keeps its place, with zero pixels and a reason. Scaling to [0, 1] and normalising are
the encoder's work, on its device: uint8 is a quarter of what float32 would move. Knows nothing of Ray.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.embedding.sandbox import Sandbox
from pipeline.model import PreprocessSpec


class Preprocess:
    """The step: a batch with an image column becomes batches with a pixel column."""

    def __init__(self, spec: PreprocessSpec, max_rows: int) -> None:
        self.sandbox = Sandbox(spec)
        self.thumbnail_px = spec.thumbnail_px
        self.max_rows = max_rows

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Replace encoded images by pixels, in batches of at most ``max_rows`` rows: same rows, same order."""
        for start in range(0, max(1, batch.num_rows), self.max_rows):
            yield self._preprocessed(batch.slice(start, self.max_rows))

    def _preprocessed(self, batch: pa.Table) -> pa.Table:
        """Rows that already carry a reason keep it; those whose vector is known need no picture."""
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        images = [
            memoryview(image.as_buffer()) if image.is_valid and reason is None else None
            for image, reason in zip(batch[schema.IMAGE], reasons, strict=True)
        ]
        pixels, thumbnails, outcomes = self.sandbox.pictures(images)
        is_known = pc.is_valid(batch[schema.KNOWN]).to_pylist()
        for i, reject in enumerate(outcomes):
            if reject is not None and reasons[i] is None and not is_known[i]:
                reasons[i] = reject.reason.value
                errors[i] = schema.error_text(reject.reason, batch[schema.ROW][i].as_py(), str(reject))
        kept = {} if self.thumbnail_px is None else {schema.THUMBNAIL: pa.array(thumbnails, pa.binary())}
        new = {schema.PIXELS: pixel_array(pixels), **kept, **schema.outcome_columns(reasons, errors)}
        return schema.replace_columns(batch, [schema.IMAGE], new)


def pixel_array(pixels: NDArray[np.uint8]) -> pa.FixedSizeListArray:
    """View pixels (n, 3, h, w) as an Arrow column without copying them."""
    width = int(np.prod(pixels.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), width)
