import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.config import FetchConfig
from pipeline.embedding import fetch as fetch_module
from pipeline.embedding.byte_range import reference
from pipeline.embedding.fetch import Fetch, fetch_spec
from pipeline.filesystem import fingerprint_of

SPEC = fetch_spec(FetchConfig(schemes=("file", "s3"), threads=4), max_bytes=100)


def batch(images: list[bytes | None], references: list[str | None], shard: str = "/a.parquet") -> pa.Table:
    nothing = pa.nulls(len(images), pa.string())
    return pa.table(
        {
            schema.SHARD: [shard] * len(images),
            schema.ROW: pa.array(range(len(images)), pa.int64()),
            schema.IMAGE: pa.array(images, pa.large_binary()),
            schema.REFERENCE: pa.array(references, pa.string()),
            schema.REASON: nothing,
            schema.ERROR: nothing,
        }
    )


def fetched(references: list[str | None], folder: Path, **fields: object) -> pa.Table:
    rows = batch([None] * len(references), references, f"{folder}/a.parquet")
    return pa.concat_tables(Fetch(replace(SPEC, **fields))(rows))


def test_each_reference_becomes_its_bytes_or_a_reason_of_its_own(tmp_path: Path, s3: str):
    (tmp_path / "good").write_bytes(b"bytes")
    (tmp_path / "spaced out").write_bytes(b"more")
    (tmp_path / "with#1?x").write_bytes(b"odd name")
    (tmp_path / "long").write_bytes(b"x" * 101)
    (tmp_path / "empty").write_bytes(b"")
    with fsspec.open(f"{s3}/fetch/far", "wb") as file:
        file.write(b"from s3")
    with fsspec.open(f"{s3}/fetch/nothing", "wb") as file:
        file.write(b"")
    wanted = {
        str(tmp_path / "good"): b"bytes",
        f"file://{tmp_path}/good": b"bytes",
        f"file://{tmp_path}/spaced%20out": b"more",
        str(tmp_path / "empty"): b"",
        f"{s3}/fetch/far": b"from s3",
        f"{s3}/fetch/nothing": b"",
        f"{s3}/fetch/missing": "fetch_not_found",
        str(tmp_path / "missing"): "fetch_not_found",
        str(tmp_path / "good" / "below"): "fetch_not_found",
        str(tmp_path / "long"): "fetch_too_large",
        str(tmp_path): "fetch_denied",
        "/" + "x" * 5000: "fetch_failed",
        str(tmp_path / "nul\0"): "fetch_failed",
        "": "fetch_denied",
        f"file://{tmp_path}/with#1?x": b"odd name",
        "file://[x/y.jpg": "fetch_denied",
        f"file://elsewhere{tmp_path}/good": "fetch_denied",
        "s3://[x/y.jpg": "fetch_failed",
        "http://127.0.0.1/x": "fetch_denied",
        "nosuch://x/y": "fetch_denied",
    }
    rows = fetched([*wanted, None], tmp_path)
    found = [
        reason or image
        for reason, image in zip(rows[schema.REASON].to_pylist(), rows[schema.IMAGE].to_pylist(), strict=True)
    ]
    assert dict(zip(wanted, found, strict=False)) == wanted
    assert found[-1] is None  # no reference at all: preprocessing says that the image is null
    assert "scheme 'http' is not among file, s3" in rows[schema.ERROR][list(wanted).index("http://127.0.0.1/x")].as_py()
    assert schema.REFERENCE not in rows.column_names


@pytest.mark.parametrize("count", [0, 1])
def test_rows_that_have_their_bytes_are_left_alone(count: int):
    rows = pa.concat_tables(Fetch(SPEC)(batch([b"x"] * count, [None] * count)))
    assert rows[schema.IMAGE].to_pylist() == [b"x"] * count
    assert schema.REFERENCE not in rows.column_names


def test_rows_that_go_no_further_are_not_fetched(tmp_path: Path):
    (tmp_path / "good").write_bytes(b"bytes")
    rows = batch([None], [str(tmp_path / "good")], f"{tmp_path}/a.parquet")
    rows = schema.replace_columns(rows, [], schema.outcome_columns(["duplicate_key"], ["said"]))
    rows = pa.concat_tables(Fetch(SPEC)(rows))
    assert rows[schema.IMAGE].to_pylist() == [None]
    assert rows[schema.REASON].to_pylist() == ["duplicate_key"]


def test_order_is_kept_and_batches_are_of_bounded_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch_module, "BATCH_BYTES", 250)
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * 100)
    rows = batch([None] * 20, [str(tmp_path / f"{i}") for i in range(20)], f"{tmp_path}/a.parquet")
    pieces = list(Fetch(SPEC)(rows))
    assert [piece.num_rows for piece in pieces] == [3] * 6 + [2]
    whole = pa.concat_tables(pieces)
    assert whole[schema.ROW].to_pylist() == list(range(20))
    assert whole[schema.IMAGE].to_pylist() == [bytes([i]) * 100 for i in range(20)]


def escapes(tmp_path: Path) -> dict[str, Callable[[], str]]:
    """Ways out of the shard's folder, tmp_path/in, to tmp_path/secret."""

    def link() -> str:
        (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
        return str(tmp_path / "in" / "link")

    def link_to_folder() -> str:
        (tmp_path / "in" / "folder").symlink_to(tmp_path)
        return str(tmp_path / "in" / "folder" / "secret")

    return {
        "absolute": lambda: str(tmp_path / "secret"),
        "dots": lambda: f"{tmp_path}/in/../secret",
        "file url": lambda: f"file://{tmp_path}/secret",
        "file url with dots": lambda: f"file://{tmp_path}/in/%2e%2e/secret",
        "link": link,
        "link to a folder": link_to_folder,
        "neighbour with the same beginning": lambda: f"{tmp_path}/inside",
        "process": lambda: "/proc/self/environ",
        "chain": lambda: f"s3://bucket/x::file://{tmp_path}/secret",
        "simplecache": lambda: f"simplecache::file://{tmp_path}/secret",
        "local": lambda: f"local://{tmp_path}/secret",
        "home": lambda: "~/.bashrc",
    }


@pytest.mark.parametrize("way", list(escapes(Path())))
def test_no_way_leads_out_of_the_declared_roots(tmp_path: Path, way: str):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "inside").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    reference = escapes(tmp_path)[way]()
    rows = fetched([reference], tmp_path / "in")
    assert rows[schema.IMAGE].to_pylist() == [None]
    assert rows[schema.REASON][0].as_py() in ("fetch_denied", "fetch_not_found")
    assert way == "home" or rows[schema.REASON][0].as_py() == "fetch_denied"


def test_a_root_that_is_declared_is_read_and_named_where_one_is_missing(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "good").write_bytes(b"bytes")
    reference = str(tmp_path / "elsewhere" / "good")
    refused = fetched([reference], tmp_path / "in")
    assert "fetch.roots declares further folders" in refused[schema.ERROR][0].as_py()
    for root in (str(tmp_path / "elsewhere"), f"file://{tmp_path}/elsewhere", str(tmp_path)):
        assert fetched([reference], tmp_path / "in", roots=(root,))[schema.IMAGE].to_pylist() == [b"bytes"]


def test_what_is_no_file_of_bytes_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")  # opening it to read would wait for a writer
    rows = fetched([str(tmp_path / "pipe"), "/dev/zero"], tmp_path, roots=("/dev",))
    assert rows[schema.REASON].to_pylist() == ["fetch_denied"] * 2
    assert all("not a file of bytes" in error for error in rows[schema.ERROR].to_pylist())


def test_urls_keep_to_the_prefixes_that_are_declared_for_their_scheme(tmp_path: Path, s3: str):
    for name in ("allowed/one", "allowedbutnot/two"):
        with fsspec.open(f"{s3}/{name}", "wb") as file:
            file.write(b"bytes")
    other_name = f"{s3}/allowed/one".replace("s3://", "s3a://")
    references = [f"{s3}/allowed/one", f"{s3}/allowedbutnot/two", f"{s3}/allowed/../allowedbutnot/two", other_name]
    rows = fetched(references, tmp_path, roots=(f"{s3}/allowed",), schemes=("s3", "s3a"))
    assert rows[schema.REASON].to_pylist() == [None, "fetch_denied", "fetch_denied", "fetch_denied"]


def test_files_of_this_machine_have_no_second_name(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret")
    rows = fetched([f"local://{tmp_path}/secret"], tmp_path / "in", schemes=("local",))
    assert rows[schema.REASON].to_pylist() == ["fetch_denied"]


def test_a_filesystem_may_raise_what_it_likes(tmp_path: Path):
    class Odd(fsspec.AbstractFileSystem):
        protocol = "odd"

        def _open(self, path: str, *arguments: object, **options: object) -> object:
            raise OddError("status 503")

    class OddError(Exception):
        pass

    fsspec.register_implementation("odd", Odd, clobber=True)
    rows = fetched(["odd://x/y"], tmp_path, schemes=("odd",))
    assert rows[schema.REASON].to_pylist() == ["fetch_failed"]
    assert "status 503" in rows[schema.ERROR][0].as_py()


def test_what_this_machine_lacks_is_no_rows_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "good").write_bytes(b"bytes")

    def full(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        fetched([str(tmp_path / "good")], tmp_path)


def test_a_shard_far_away_cannot_name_files_of_this_machine_unless_they_are_declared(tmp_path: Path):
    (tmp_path / "private").write_bytes(b"secret")
    for url in (str(tmp_path / "private"), f"file://{tmp_path}/private"):
        rows = batch([None], [url], shard="s3://images/a.parquet")
        refused = pa.concat_tables(Fetch(SPEC)(rows))
        assert refused[schema.REASON].to_pylist() == ["fetch_denied"]
        assert refused[schema.IMAGE].to_pylist() == [None]
        allowed = pa.concat_tables(Fetch(replace(SPEC, roots=(str(tmp_path),)))(rows))
        assert allowed[schema.IMAGE].to_pylist() == [b"secret"]


def test_a_span_of_bytes_is_read_and_one_that_is_not_there_has_a_reason_of_its_own(tmp_path: Path, s3: str):
    content = bytes(range(256)) * 8
    (tmp_path / "a.tar").write_bytes(content)
    with fsspec.open(f"{s3}/fetch/a.tar", "wb") as file:
        file.write(content)
    wanted = {
        "0-0": content[:1],
        "512-520": content[512:521],
        "2000-2047": content[2000:],
        "512-511": b"",
        "512-611": content[512:612],  # as long as an image may be
        "512-612": "fetch_too_large",
        "0-999999999999999999": "fetch_too_large",
        "2000-2048": "fetch_failed",
        "2048-2050": "fetch_failed",
        "9999-9999": "fetch_failed",
        "20-10": "fetch_denied",
    }
    for place in (f"{tmp_path}/a.tar", f"file://{tmp_path}/a.tar", f"{s3}/fetch/a.tar"):
        rows = fetched([f"{place}#bytes={span}" for span in wanted], tmp_path)
        found = [
            reason or image
            for reason, image in zip(rows[schema.REASON].to_pylist(), rows[schema.IMAGE].to_pylist(), strict=True)
        ]
        assert dict(zip(wanted, found, strict=True)) == wanted
    missing = [f"{place}/gone.tar#bytes={span}" for place in (tmp_path, f"{s3}/fetch") for span in ("0-5", "5-4")]
    assert fetched(missing, tmp_path)[schema.REASON].to_pylist() == ["fetch_not_found"] * 4


def test_bytes_of_a_file_that_was_written_again_are_not_taken(tmp_path: Path, s3: str):
    for place in (f"{tmp_path}/b.tar", f"{s3}/fetch/b.tar"):
        with fsspec.open(place, "wb") as file:
            file.write(b"some bytes")
        named = [reference(place, first, length, fingerprint_of(place)) for first, length in ((5, 5), (3, 0))]
        unnamed = f"{place}#bytes=5-9"
        assert fetched([*named, unnamed], tmp_path)[schema.IMAGE].to_pylist() == [b"bytes", b"", b"bytes"]
        with fsspec.open(place, "wb") as file:
            file.write(b"same lengt")
        rows = fetched([*named, unnamed], tmp_path)
        assert rows[schema.REASON].to_pylist() == ["fetch_failed", "fetch_failed", None]
        assert "was written again" in rows[schema.ERROR][0].as_py()


@pytest.mark.parametrize("span", ["0-1&state=", "0-1&state=XYZ", "-1-5", "a-b", "5", "5-", "1-2,4-5", "", "0x1-0x2"])
def test_what_is_no_span_is_part_of_the_name(tmp_path: Path, span: str):
    (tmp_path / f"a#bytes={span}").write_bytes(b"a name like that")
    rows = fetched([str(tmp_path / f"a#bytes={span}")], tmp_path)
    assert rows[schema.IMAGE].to_pylist() == [b"a name like that"]


def test_a_span_leads_out_of_no_root_and_to_no_other_scheme(tmp_path: Path, s3: str):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    with fsspec.open(f"{s3}/other/secret", "wb") as file:
        file.write(b"secret")
    references = [
        f"{tmp_path}/secret#bytes=0-5",
        f"{tmp_path}/in/link#bytes=0-5",
        f"{tmp_path}/in/../secret#bytes=0-5",
        f"{s3}/other/secret#bytes=0-5",
        f"{s3}/allowed/../other/secret#bytes=0-5",
        "http://127.0.0.1/x#bytes=0-5",
        f"s3://x::file://{tmp_path}/secret#bytes=0-5",
    ]
    rows = fetched(references, tmp_path / "in", roots=(f"{s3}/allowed",))
    assert rows[schema.REASON].to_pylist() == ["fetch_denied"] * len(references)
