from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.embedding.fetch import Fetch, FetchSpec

SPEC = FetchSpec(("file", "s3"), threads=4, max_image_bytes=100)


def batch(images: list[bytes | None], references: list[str | None], shard: str = "/a.parquet") -> pa.Table:
    nothing = pa.nulls(len(images), pa.string())
    return pa.table(
        {
            schema.SHARD: [shard] * len(images),
            schema.ROW: list(range(len(images))),
            schema.IMAGE: pa.array(images, pa.large_binary()),
            schema.REFERENCE: pa.array(references, pa.string()),
            schema.REASON: nothing,
            schema.ERROR: nothing,
        }
    )


def test_each_reference_becomes_its_bytes_or_a_reason_of_its_own(tmp_path: Path, s3: str):
    import fsspec

    (tmp_path / "good").write_bytes(b"bytes")
    (tmp_path / "long").write_bytes(b"x" * 101)
    with fsspec.open(f"{s3}/fetch/far", "wb") as file:
        file.write(b"from s3")
    references = [
        str(tmp_path / "good"),
        f"{s3}/fetch/far",
        str(tmp_path / "missing"),
        str(tmp_path / "long"),
        str(tmp_path),
        "http://127.0.0.1/x",
        "nosuch://x/y",
        None,
    ]
    rows = Fetch(SPEC)(batch([None] * 8, references))
    assert rows[schema.IMAGE].to_pylist() == [b"bytes", b"from s3", None, None, None, None, None, None]
    assert rows[schema.REASON].to_pylist() == [
        None,
        None,
        "fetch_not_found",
        "too_many_bytes",
        "fetch_failed",
        "fetch_denied",
        "fetch_denied",
        None,  # no reference at all: preprocessing says that the image is null
    ]
    assert "scheme 'http' is not among file, s3" in rows[schema.ERROR][5].as_py()
    assert schema.REFERENCE not in rows.column_names


@pytest.mark.parametrize("count", [0, 1])
def test_rows_that_have_their_bytes_are_left_alone(count: int):
    rows = Fetch(SPEC)(batch([b"x"] * count, [None] * count))
    assert rows[schema.IMAGE].to_pylist() == [b"x"] * count


def test_a_shard_far_away_cannot_name_files_of_this_machine(tmp_path: Path):
    (tmp_path / "private").write_bytes(b"secret")
    for url in (str(tmp_path / "private"), f"file://{tmp_path}/private"):
        rows = Fetch(SPEC)(batch([None], [url], shard="s3://images/a.parquet"))
        assert rows[schema.REASON].to_pylist() == ["fetch_denied"]
        assert rows[schema.IMAGE].to_pylist() == [None]
