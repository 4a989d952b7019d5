from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.embedding.preprocess import Preprocess
from pipeline.model import OPENAI_MEAN, OPENAI_STD, PreprocessSpec
from tests.conftest import encoded

SPEC = PreprocessSpec(height_px=64, width_px=64, mean=OPENAI_MEAN, std=OPENAI_STD)
PNG = encoded(4, kind="PNG")


@pytest.fixture(scope="module")
def step() -> Iterator[Preprocess]:
    made = Preprocess(SPEC, max_rows=128)
    yield made
    made.sandbox.close()


def batch(images: list[bytes | None]) -> pa.Table:
    nothing = pa.nulls(len(images), pa.string())
    return pa.table(
        {
            schema.ROW: pa.array(range(100, 100 + len(images)), pa.int64()),
            schema.IMAGE: pa.array(images, pa.large_binary()),
            schema.REASON: nothing,
            schema.ERROR: nothing,
            schema.KNOWN: pa.nulls(len(images), pa.binary()),
        }
    )


def preprocessed(step: Preprocess, rows: pa.Table) -> pa.Table:
    return pa.concat_tables(list(step(rows)))


@pytest.mark.parametrize("images", [[], [PNG], [PNG, None, b"text", PNG], [None, b""]])
def test_every_row_keeps_its_place(step: Preprocess, images: list[bytes | None]):
    rows = preprocessed(step, batch(images))
    assert rows.num_rows == len(images)
    pixels = rows[schema.PIXELS].combine_chunks().flatten().to_numpy().reshape(-1, 3, 64, 64)
    for i, image in enumerate(images):
        good = image == PNG
        assert (rows[schema.REASON][i].as_py() is None) == good
        assert pixels[i].any() == good
    assert schema.IMAGE not in rows.column_names


def test_a_reject_is_worded_with_its_row(step: Preprocess):
    rows = preprocessed(step, batch([None, b"text"]))
    assert rows[schema.ERROR][0].as_py() == "Null or missing image input"
    assert rows[schema.ERROR][1].as_py().startswith("Failed to decode image at row 101: none of JPEG")


def test_a_row_that_was_rejected_before_keeps_its_reason(step: Preprocess):
    before = schema.replace_columns(
        batch([None, PNG]), [], schema.outcome_columns(["fetch_not_found", "null"], ["a", "b"])
    )
    rows = preprocessed(step, before)
    assert rows[schema.REASON].to_pylist() == ["fetch_not_found", "null"]
    assert rows[schema.ERROR].to_pylist() == ["a", "b"]
    assert not np.any(rows[schema.PIXELS].combine_chunks().flatten().to_numpy())


def test_a_batch_of_mutated_images_comes_back_whole(step: Preprocess):
    good = [encoded(i, kind=kind) for i, kind in enumerate(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])]
    rng, images = np.random.default_rng(1), list[bytes]()
    for _ in range(300):
        bad = bytearray(good[rng.integers(len(good))])
        for place in rng.integers(0, len(bad), rng.integers(1, 12)):
            bad[place] ^= int(rng.integers(1, 256))
        images.append(bytes(bad[: rng.integers(1, len(bad))] if rng.random() < 0.3 else bad))
    rows = preprocessed(step, batch(images))
    reasons = rows[schema.REASON].to_pylist()
    assert len(reasons) == 300
    assert 50 < reasons.count(None) < 250
    assert set(reasons) <= {None, *schema.Reason}


def test_a_large_batch_leaves_in_pieces_of_the_size_asked_for():
    small = Preprocess(SPEC, max_rows=2)
    rows = batch([PNG, None, PNG, PNG, b"text"])
    pieces = list(small(rows))
    small.sandbox.close()
    assert [piece.num_rows for piece in pieces] == [2, 2, 1]
    whole = pa.concat_tables(pieces)
    assert whole[schema.ROW].to_pylist() == rows[schema.ROW].to_pylist()
    assert whole[schema.REASON].to_pylist() == [None, "null", None, None, "not_an_image"]
