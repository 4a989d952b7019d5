from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.indexing.queries import MOST, PROMPTS, Texts, read_texts


def test_ours_are_many_and_none_is_none():
    ours = read_texts("ours", 4)
    assert ours == Texts(PROMPTS)
    assert len(set(PROMPTS)) == len(PROMPTS) == 500
    assert read_texts("none", 4) is None


def test_a_file_has_a_query_on_every_line(tmp_path: Path):
    path = tmp_path / "queries.txt"
    path.write_text("a dog\n\n  zwei Hunde, größer \n" + "x\n" * 2000)
    found = read_texts(str(path), 4)
    assert found.texts[:3] == ("a dog", "zwei Hunde, größer", "x")
    assert len(found.texts) == MOST
    assert found.digest != read_texts("ours", 4).digest


def test_parquet_has_texts_or_vectors(tmp_path: Path):
    path = str(tmp_path / "queries.parquet")
    pq.write_table(pa.table({"text": ["a dog", None, "a cat"]}), path)
    assert read_texts(path, 4).texts == ("a dog", "a cat")
    vectors = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    pq.write_table(pa.table({"vector": vectors.tolist(), "text": ["x"] * 5}), path)
    found = read_texts(path, 4)
    np.testing.assert_allclose(found.vectors, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-5)
    assert found.digest == read_texts(path, 4).digest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"vector": [[1.0, 2.0]]}, "wanted vectors of 4 numbers"),
        ({"vector": [[0.0] * 4]}, "wanted vectors that have a direction"),
        ({"vector": [[float("nan")] * 4]}, "wanted vectors that have a direction"),
        ({"caption": ["a dog"]}, r"has columns \['caption'\]; wanted text or vector"),
        ({"text": pa.array([], pa.string())}, "has no query in it"),
        ({"vector": pa.array([], pa.list_(pa.float32()))}, "has no query in it"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, content: dict, said: str):
    path = str(tmp_path / "queries.parquet")
    pq.write_table(pa.table(content), path)
    with pytest.raises(InputError, match=said):
        read_texts(path, 4)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"missing\.txt cannot be read"):
        read_texts(str(tmp_path / "missing.txt"), 4)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "bytes.parquet").write_bytes(b"\xff\xfe\xfa")
    for name in ("bytes.txt", "bytes.parquet"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_texts(str(tmp_path / name), 4)
