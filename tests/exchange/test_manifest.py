"""Folders and tars as sources: what their references say, what stays as it is, and that the embed job reads them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.manifest import run as run_job
from pipeline import schema
from pipeline.config import FetchConfig, ManifestConfig
from pipeline.embedding.fetch import Fetch, fetch_spec
from pipeline.embedding.plan import survey
from pipeline.embedding.sources import read_source
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange import references
from pipeline.exchange.manifest import Manifest, manifest
from pipeline.store import Store
from tests.conftest import DEMO_MODEL, encoded
from tests.exchange.tarring import write_tar


def made(tmp_path: Path, kind: str = "folder", store: str | None = None, **fields: object) -> Manifest:
    given = {"store": store or str(tmp_path / "store"), "name": "mine", "path": str(tmp_path / "in"), "kind": kind}
    return manifest(ManifestConfig(**{**given, **fields}))


def rows_in(found: Manifest) -> list[dict]:
    store = Store(found.source.path)
    names = sorted(store.files_in(""))
    return [row for name in names for row in pq.read_table(pa.BufferReader(store.read(name))).to_pylist()]


def pictures_of(found: Manifest) -> dict[str, bytes | str | None]:
    """Fetch what a source's rows name, as the embed job would."""
    rows = rows_in(found)
    nothing = pa.nulls(len(rows), pa.string())
    batch = pa.table(
        {
            schema.SHARD: pa.array([f"{found.source.path}/a.parquet"] * len(rows), pa.string()),
            schema.ROW: pa.array(range(len(rows)), pa.int64()),
            schema.IMAGE: pa.nulls(len(rows), pa.large_binary()),
            schema.REFERENCE: pa.array([row["image"] for row in rows], pa.string()),
            schema.REASON: nothing,
            schema.ERROR: nothing,
        }
    )
    fetched = pa.concat_tables(Fetch(fetch_spec(FetchConfig(roots=found.roots), 1 << 20))(batch))
    images = zip(fetched[schema.IMAGE].to_pylist(), fetched[schema.REASON].to_pylist(), strict=True)
    return {row["key"]: reason or image for row, (image, reason) in zip(rows, images, strict=True)}


def shards(tmp_path: Path) -> dict[str, tuple[bytes, int]]:
    """Every shard's bytes and when it was written."""
    folder = tmp_path / "store" / "sources" / "mine"
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


FILES = {
    "top.jpg": b"top",
    "cat/1.jpg": b"cat one",
    "cat/2 é#1.PNG": b"cat two",
    "cat/notes.txt": b"no picture",
    "cat/.hidden.jpg": b"hidden",
    "dog/big/1.webp": b"dog",
}
WANTED = {"top.jpg": b"top", "cat/1.jpg": b"cat one", "cat/2 é#1.PNG": b"cat two", "dog/big/1.webp": b"dog"}
TAR = {"0001.jpg": b"one", "0001.json": b'{"width": 3, "key": "theirs"}', "0002.jpg": b"two", "0002.txt": b" two "}


def write_files(folder: Path, files: dict[str, bytes] = FILES) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_folder_is_a_source_of_its_pictures_with_the_folders_as_labels(tmp_path: Path):
    write_files(tmp_path / "in")
    found = made(tmp_path)
    assert (found.rows, found.shards, found.written) == (4, 1, 1)
    assert pictures_of(found) == WANTED
    labels = {row["key"]: (row["label"], row["bytes"]) for row in rows_in(found)}
    assert labels["dog/big/1.webp"] == ("big", 3)
    assert labels["top.jpg"] == (None, 3)
    (written,) = {row["mtime"] for row in rows_in(found) if row["key"] == "top.jpg"}
    assert written.timestamp() == pytest.approx((tmp_path / "in" / "top.jpg").stat().st_mtime, abs=1e-5)
    surveyed = survey(found.source)
    assert (surveyed.image_kind, surveyed.rows) == ("reference", 4)
    assert read_source(Store(str(tmp_path / "store")), "mine") == found.source


def test_what_did_not_change_keeps_its_shard_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(references, "SHARD_ROWS", 3)
    write_files(tmp_path / "in", {f"{i}.jpg": b"x" for i in range(7)})
    assert (made(tmp_path).shards, made(tmp_path).written) == (3, 0)
    before = shards(tmp_path)

    write_files(tmp_path / "in", {"00.jpg": b"before all others"})  # and yet it moves none of them
    more = made(tmp_path)
    assert (more.rows, more.shards, more.written) == (8, 4, 1)
    assert before.items() < shards(tmp_path).items()

    before = shards(tmp_path)
    (tmp_path / "in" / "4.jpg").write_bytes(b"X")  # of the same length
    assert made(tmp_path).written == 1
    changed = {name for name, shard in shards(tmp_path).items() if before[name][0] != shard[0]}
    assert changed == {"000001.parquet"}
    assert pictures_of(made(tmp_path))["4.jpg"] == b"X"


def test_what_is_gone_leaves_its_shard_and_the_shard_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(references, "SHARD_ROWS", 3)
    write_files(tmp_path / "in", {f"{i}.jpg": b"x" for i in range(7)})
    made(tmp_path)
    before = shards(tmp_path)
    for number in (1, 6):  # one of the first shard, all of the last
        (tmp_path / "in" / f"{number}.jpg").unlink()
    fewer = made(tmp_path)
    assert (fewer.rows, fewer.shards, fewer.written) == (5, 3, 2)
    assert [row["key"] for row in rows_in(fewer)] == ["0.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert shards(tmp_path)["000001.parquet"] == before["000001.parquet"]
    assert survey(fewer.source).rows == 5
    (tmp_path / "in" / "6.jpg").write_bytes(b"again")
    assert pictures_of(made(tmp_path))["6.jpg"] == b"again"


def test_a_shard_that_is_damaged_is_written_anew(tmp_path: Path):
    write_files(tmp_path / "in")
    made(tmp_path)
    before = shards(tmp_path)
    name = min(before)
    (tmp_path / "store" / "sources" / "mine" / name).write_bytes(b"?")
    assert made(tmp_path).written == 1
    assert shards(tmp_path)[name][0] == before[name][0]


def test_folders_without_pictures_and_other_sources_are_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no files there that end with jpg"):
        made(tmp_path)
    with pytest.raises(InputError, match="no files there that end with tar"):
        made(tmp_path, "webdataset")
    assert not (tmp_path / "store").exists()
    write_files(tmp_path / "in")
    made(tmp_path)
    with pytest.raises(InputError, match="has one already"):
        made(tmp_path, store=str(tmp_path / "store") + "/../store")
    write_tar(tmp_path / "in" / "a.tar", TAR)
    with pytest.raises(InputError, match="is not of kind webdataset"):
        made(tmp_path, "webdataset")


def test_names_that_are_not_utf_8_are_named(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (Path(str(tmp_path / "in")) / b"\xff.jpg".decode(errors="surrogateescape")).write_bytes(b"x")
    with pytest.raises(InputError, match="is not UTF-8"):
        made(tmp_path)


def test_tars_are_a_source_of_references_into_them(tmp_path: Path):
    write_tar(tmp_path / "in" / "a.tar", TAR)
    other = {"0003.png": b"three", "0003.json": b'{"height": 1}', "0004.txt": b"x"}
    write_tar(tmp_path / "in" / "deep" / "b.tar", other)
    found = made(tmp_path, "webdataset")
    assert (found.rows, found.shards, found.source.keep_columns) == (4, 2, ("caption", "width"))
    assert pictures_of(found) == {"0001": b"one", "0002": b"two", "0003": b"three", "0004": None}
    rows = {row["key"]: row for row in rows_in(found)}
    assert (rows["0001"]["width"], rows["0001"]["caption"], rows["0002"]["caption"]) == ("3", None, "two")
    assert (rows["0003"]["width"], rows["0004"]["caption"], rows["0003"]["tar"]) == (None, "x", "b.tar")
    assert survey(found.source).rows == 4
    assert made(tmp_path, "webdataset", path=str(tmp_path / "in" / "a*.tar")).rows == 2
    deep = made(tmp_path, "webdataset", path=str(tmp_path / "*" / "deep" / "b.tar"))
    assert (deep.roots, deep.rows) == ((str(tmp_path),), 2)
    one = made(tmp_path, "webdataset", path=str(tmp_path / "in" / "a.tar"), json_fields=())
    assert (one.source.keep_columns, len(pictures_of(one))) == (("caption",), 2)


def test_a_tar_that_did_not_change_keeps_its_shard_and_its_columns(tmp_path: Path):
    write_tar(tmp_path / "in" / "b.tar", TAR)
    made(tmp_path, "webdataset")
    before = shards(tmp_path)
    write_tar(tmp_path / "in" / "a.tar", {"0005.jpg": b"five", "0005.json": b'{"other": 1}'})
    more = made(tmp_path, "webdataset")
    assert (more.written, more.rows, more.source.keep_columns) == (1, 3, ("caption", "width"))
    after = shards(tmp_path)
    assert all(after[name] == before[name] for name in before)
    write_tar(tmp_path / "in" / "b.tar", {**TAR, "0001.jpg": b"ONE"})  # where everything lies as before
    assert made(tmp_path, "webdataset").written == 1
    assert all(shards(tmp_path)[name][0] != before[name][0] for name in before)


@pytest.mark.parametrize("is_far", [False, True])
def test_a_tar_that_was_replaced_meanwhile_gives_no_other_pictures(tmp_path: Path, s3: str, is_far: bool):
    content = write_tar(tmp_path / "in" / "a.tar", TAR).read_bytes()
    other = write_tar(tmp_path / "other.tar", {**TAR, "0001.jpg": b"ONE"}).read_bytes()  # where all lies as before
    place = Store(f"{s3}/replaced/in" if is_far else str(tmp_path / "in"))
    place.replace("a.tar", content)
    found = made(tmp_path, "webdataset", path=place.url)
    place.replace("a.tar", other)
    assert pictures_of(found) == {"0001": "fetch_failed", "0002": "fetch_failed"}
    assert pictures_of(made(tmp_path, "webdataset", path=place.url)) == {"0001": b"ONE", "0002": b"two"}
    place.replace("a.tar", content[:600])
    assert set(pictures_of(found).values()) == {"fetch_failed"}


def test_a_bad_tar_is_the_end_or_is_left_out(tmp_path: Path):
    write_tar(tmp_path / "in" / "a.tar", TAR)
    made(tmp_path, "webdataset")
    before = shards(tmp_path)
    good = write_tar(tmp_path / "in" / "b.tar", {"0003.jpg": b"three"})
    good.write_bytes(good.read_bytes()[:700])
    (tmp_path / "in" / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"tar .*/[ab]\.tar"):
        made(tmp_path, "webdataset")
    found = made(tmp_path, "webdataset", bad_shards="skip")
    assert sorted(Path(url).name for url in found.unreadable) == ["a.tar", "b.tar"]
    assert shards(tmp_path) == before  # what was known of one that cannot be read now stays
    given = {"store": str(tmp_path / "store"), "name": "mine", "path": str(tmp_path / "in"), "kind": "webdataset"}
    with pytest.raises(IncompleteError, match="2 tars are left out"):
        run_job(ManifestConfig(**given, bad_shards="skip"))


def test_all_tars_are_bad(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.tar").write_bytes(b"?")
    with pytest.raises(InputError, match=r"none of 2 tars can be read: tar .*a\.tar"):
        made(tmp_path, "webdataset", bad_shards="skip")


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_far_pictures_and_a_far_store(tmp_path: Path, s3: str, kind: str):
    far = Store(f"{s3}/manifest-{kind}")
    if kind == "folder":
        for name, content in FILES.items():
            far.replace(f"in/{name}", content)
    else:
        far.replace("in/a.tar", write_tar(tmp_path / "a.tar", TAR).read_bytes())
    for again in range(2):
        found = made(tmp_path, kind, f"{far.url}/store", path=f"{far.url}/in")
        assert found.written == (0 if again else found.shards)
    assert found.roots == (f"{far.url}/in",)
    assert pictures_of(found) == (WANTED if kind == "folder" else {"0001": b"one", "0002": b"two"})


@pytest.mark.usefixtures("local_ray", "light_encoder")
def test_the_embed_job_takes_tars_and_then_only_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from pipeline.config import EmbedConfig
    from pipeline.embedding.run import embed

    write_tar(tmp_path / "in" / "a.tar", {f"{i:04d}.jpg": encoded(i) for i in range(12)} | {"0099.txt": b"no picture"})
    config = ManifestConfig(store=str(tmp_path / "store"), name="mine", path=str(tmp_path / "in"), kind="webdataset")

    def embedded() -> object:
        found = manifest(config)
        fetch = FetchConfig(roots=found.roots)
        return embed(EmbedConfig(store=config.store, model=str(DEMO_MODEL), source=found.source, fetch=fetch))

    first = embedded()
    assert (first.rows_in, first.embedded, first.reasons) == (13, 12, {"null": 1})
    write_tar(tmp_path / "in" / "b.tar", {f"{i:04d}.jpg": encoded(i) for i in range(20, 25)})
    second = embedded()
    assert (second.rows_in, second.rows_now, second.units_skipped) == (18, 5, 1)
    run_job(config)
    said = capsys.readouterr().out
    assert "18 rows in 2 shards, 0 of them written now" in said
    assert f"--fetch.roots '[\"{tmp_path}/in\"]'" in said


@pytest.mark.usefixtures("local_ray", "light_encoder")
def test_pictures_that_are_gone_leave_the_table_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.config import EmbedConfig
    from pipeline.embedding.run import embed
    from pipeline.exchange.rows import rows_of

    monkeypatch.setattr(references, "SHARD_ROWS", 3)

    def embedded() -> list[str]:
        found = made(tmp_path)
        store = str(tmp_path / "store")
        fetch = FetchConfig(roots=found.roots)
        embed(EmbedConfig(store=store, table="t", model=str(DEMO_MODEL), source=found.source, fetch=fetch))
        rows = pa.Table.from_batches(rows_of(Store(store), "t").batches())
        return sorted(rows["_row_id"].to_pylist())

    write_files(tmp_path / "in", {f"{i}.jpg": encoded(i) for i in range(7)})
    assert embedded() == [f"{i}.jpg" for i in range(7)]
    (tmp_path / "in" / "6.jpg").rename(tmp_path / "in" / "5a.jpg")  # all of a shard, and into one of its own
    (tmp_path / "in" / "0.jpg").unlink()
    assert embedded() == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "5a.jpg"]
