import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import schema
from pipeline.config import EmbedConfig, EncodeConfig, FetchConfig, PreprocessConfig, SourceConfig
from pipeline.embedding.run import embed
from pipeline.embedding.sandbox import Sandbox
from pipeline.errors import IncompleteError, InputError
from pipeline.model import CONFIG_FILE, WEIGHTS_FILE, resolve
from pipeline.store import Store
from pipeline.table import read_receipts, read_record, table_folder
from tests.conftest import DEMO_MODEL, ROOT, encoded, png_header, saved, write_shard

pytestmark = pytest.mark.usefixtures("local_ray")

REASONS = {"empty": 1, "not_an_image": 1, "null": 2, "truncated": 1}


def config(corpus: Path, store: object, **fields: object) -> EmbedConfig:
    source = {"name": "s", "path": str(corpus), "key_column": "key", **fields.pop("source", {})}
    return EmbedConfig(
        **{
            "store": str(store),
            "table": "t",
            "model": str(DEMO_MODEL),
            "unit_rows": 20,
            "encode": EncodeConfig(precision="fp32"),
            "source": SourceConfig(**source),
            **fields,
        }
    )


def rows_of(store: Path, kind: str = "data") -> pa.Table:
    return ds.dataset(store / table_folder("t") / kind, partitioning="hive").to_table()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, and a table that was begun with it."""
    folder = tmp_path_factory.mktemp("begun")
    write_shard(folder / "corpus" / "a.parquet", 0, [encoded(i) for i in range(20)])
    embed(config(folder / "corpus", folder / "store"))
    return folder


def test_every_row_is_embedded_or_rejected_and_any_reader_sees_exactly_those(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    report = embed(config(corpus, store, source={"keep_columns": ("label", "number")}))
    assert (report.rows_in, report.embedded, report.rejected, report.reasons) == (120, 115, 5, REASONS)
    keys = {f"row-{row:05d}" for row in range(120)}
    data, rejects = rows_of(store), rows_of(store, "rejects")
    good, bad = data[schema.ROW_ID].to_pylist(), rejects[schema.ROW_ID].to_pylist()
    assert len(good) + len(bad) == 120
    assert set(good) | set(bad) == keys
    ours = ["_row_id", "_source_id", "_model_id", "vector", "_content_hash"]
    assert data.column_names == [*ours, "label", "number", "unit"]
    assert data.schema.field("vector").type == pa.list_(pa.float32(), 64)
    assert data["number"].to_pylist() == [int(key.removeprefix("row-")) for key in good]
    assert set(data["_source_id"].to_pylist()) == {"s"}
    vectors = data["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    asked = duckdb.sql(f"SELECT count(*), count(DISTINCT _row_id) FROM '{store}/embeddings/t/data/**/*.parquet'")
    assert asked.fetchall() == [(115, 115)]
    assert set(rejects["_status"].to_pylist()) == {"error"}
    errors = dict(zip(rejects["row"].to_pylist(), rejects["_error"].to_pylist(), strict=True))
    assert errors[3] == "Null or missing image input"
    assert errors[29].startswith("Failed to decode image at row 29: ")


def test_each_vector_is_that_of_its_own_image(corpus: Path, tmp_path: Path):
    import open_clip
    import torch

    embed(config(corpus, tmp_path / "store"))
    model = open_clip.create_model(f"local-dir:{DEMO_MODEL}").eval()
    images = dict(zip(*(pq.read_table(corpus)[name].to_pylist() for name in ("key", "image")), strict=True))
    data = rows_of(tmp_path / "store")
    for row in data.slice(0, 115).to_pylist()[::6]:
        picture = Image.open(io.BytesIO(images[row["_row_id"]])).convert("RGB")
        square = Image.new("RGB", (80, 80), "white")
        square.paste(picture, (0, 10))
        pixels = np.asarray(square.resize((64, 64), Image.BICUBIC)).transpose(2, 0, 1).copy()
        with torch.inference_mode():
            expected = model.encode_image((torch.from_numpy(pixels)[None].float() / 255 - 0.5) / 0.5, normalize=True)
        assert float(expected[0] @ torch.tensor(row["vector"])) >= 0.9999


@pytest.mark.usefixtures("light_encoder")
def test_a_second_run_skips_everything_and_changes_nothing(corpus: Path, tmp_path: Path):
    first = embed(config(corpus, tmp_path / "store"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    second = embed(config(corpus, tmp_path / "store"))
    assert (second.units_skipped, second.rows_now) == (first.units, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


@pytest.mark.usefixtures("light_encoder")
def test_a_new_shard_is_embedded_alone_and_a_rewritten_one_takes_the_place_of_its_old_self(
    corpus: Path, tmp_path: Path
):
    store = tmp_path / "store"
    embed(config(corpus, store))
    write_shard(corpus / "shard-3.parquet", 500, [encoded(900 + i) for i in range(10)])
    assert embed(config(corpus, store)).rows_now == 10
    write_shard(corpus / "shard-1.parquet", 700, [encoded(800 + i) for i in range(30)], group_rows=10)
    report = embed(config(corpus, store))
    assert (report.rows_now, report.rows_in) == (30, 120)
    kept = rows_of(store)["_row_id"].to_pylist()
    assert sorted(kept) == sorted(
        f"row-{row:05d}" for row in [*range(40), *range(700, 730), *range(80, 120), *range(500, 510)]
    )


@pytest.mark.usefixtures("light_encoder")
def test_files_that_no_receipt_names_are_gone_after_a_run(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    embed(config(corpus, store))
    data = store / table_folder("t") / "data"
    orphan = next(data.rglob("*.parquet"))
    (orphan.parent / "attempt.parquet").write_bytes(orphan.read_bytes())
    assert rows_of(store).num_rows > 115
    embed(config(corpus, store))
    assert rows_of(store).num_rows == 115


@pytest.mark.usefixtures("light_encoder")
def test_partitions_are_folders_above_the_units(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    embed(config(corpus, store, source={"keep_columns": ("label", "number")}, partition_by=("label",)))
    rows = rows_of(store)
    assert rows.num_rows == 115
    for key, label in zip(rows["_row_id"].to_pylist(), rows["label"].to_pylist(), strict=True):
        assert label == ("cat", "dog", None)[int(key.removeprefix("row-")) % 3]


@pytest.mark.usefixtures("light_encoder")
def test_references_and_structs_of_hugging_face_are_read(tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(encoded(i))
    paths = [f"{i}.jpg" for i in range(4)] + ["missing.jpg", "http://127.0.0.1:9/x.jpg", None]
    pq.write_table(pa.table({"image": paths}), folder / "a.parquet")
    report = embed(config(folder, tmp_path / "one", source={"key_column": None}, max_reject_fraction=0.9))
    assert report.reasons == {"fetch_denied": 1, "fetch_not_found": 1, "null": 1}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pairs = [{"bytes": encoded(i), "path": "x"} if i % 2 else {"bytes": None, "path": f"{i}.jpg"} for i in range(4)]
    pq.write_table(pa.table({"image": pa.array(pairs, kind)}), folder / "a.parquet")
    embed(config(folder, tmp_path / "two", source={"key_column": None}))
    first, second = (rows_of(tmp_path / name).sort_by("_row_id") for name in ("one", "two"))
    assert (
        first["_row_id"].to_pylist() == second["_row_id"].to_pylist() == [f"{folder}/a.parquet#{i}" for i in range(4)]
    )
    np.testing.assert_allclose(*(np.array(rows["vector"].to_pylist()) for rows in (first, second)), atol=1e-5)


def test_source_and_store_on_s3(corpus: Path, tmp_path: Path, s3: str):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(f"{corpus}/", f"{s3}/corpus/", recursive=True)
    report = embed(config(corpus, f"{s3}/store", source={"path": f"{s3}/corpus/*.parquet"}))
    assert (report.rows_in, report.embedded, report.reasons) == (120, 115, REASONS)
    store = Store(f"{s3}/store")
    receipts = read_receipts(store, table_folder("t"))
    named = {file.path for receipt in receipts.values() for file in receipt.data}
    assert {f"data/{name}" for name in store.files(f"{table_folder('t')}/data")} == named
    assert embed(config(corpus, f"{s3}/store", source={"path": f"{s3}/corpus/*.parquet"})).rows_now == 0


@pytest.mark.usefixtures("light_encoder")
def test_one_huge_row_group_is_one_unit(tmp_path: Path):
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [encoded(i, 64, 64) for i in range(300)], group_rows=1000)
    report = embed(config(tmp_path / "corpus", tmp_path / "store"))
    assert (report.units, report.embedded) == (1, 300)


@pytest.mark.usefixtures("light_encoder")
def test_a_corpus_of_rejects_only_stays_accounted_for(tmp_path: Path):
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [b"text"] * 12)
    with pytest.raises(IncompleteError, match="12 of 12 rows rejected"):
        embed(config(tmp_path / "corpus", tmp_path / "store"))
    report = embed(config(tmp_path / "corpus", tmp_path / "store", max_reject_fraction=1.0))
    assert (report.rows_now, report.rejected, report.embedded) == (0, 12, 0)


@pytest.mark.usefixtures("light_encoder")
def test_more_rejects_than_allowed_fail_the_run_and_keep_what_was_embedded(corpus: Path, tmp_path: Path):
    with pytest.raises(IncompleteError, match=r"[2-5] of 120 rows rejected .*, more than max_reject_fraction 0\.01"):
        embed(config(corpus, tmp_path / "store", max_reject_fraction=0.01))
    receipts = read_receipts(Store(str(tmp_path / "store")), table_folder("t")).values()
    assert sum(receipt.rejected for receipt in receipts) >= 2
    report = embed(config(corpus, tmp_path / "store", max_reject_fraction=0.05))
    assert (report.embedded, report.rejected, report.units_skipped) == (115, 5, len(receipts))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encode": EncodeConfig(precision="fp32", dimensions=32)}, "has space"),
        ({"preprocess": PreprocessConfig(decode="scaled")}, "has space"),
        (
            {"preprocess": PreprocessConfig(fit="model")},
            r"has space \w+ \(.* pad to .*\), wanted \w+ \(.* shortest to",
        ),
        ({"unit_rows": 21}, "has unit_rows 20, wanted 21"),
        ({"source": {"name": "other"}}, "has source 's', wanted 'other'"),
        ({"source": {"keep_columns": ("label",)}}, "has kept"),
        ({"source": {"keep_columns": ("image",)}, "partition_by": ("image",)}, "'image' is binary; wanted text"),
    ],
)
def test_a_table_never_mixes(begun: Path, changes: dict, said: str):
    with pytest.raises(InputError, match=said):
        embed(config(begun / "corpus", begun / "store", **changes))


@pytest.mark.usefixtures("light_encoder")
def test_other_weights_or_another_mean_are_another_space_and_an_append_is_refused(corpus: Path, tmp_path: Path):
    embed(config(corpus, tmp_path / "store"))
    space = read_record(Store(str(tmp_path / "store")), "t").space
    for change in ("weights", "mean"):
        folder = Path(shutil.copytree(DEMO_MODEL, tmp_path / change))
        if change == "weights":
            with (folder / WEIGHTS_FILE).open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"\x01")
        else:
            about = json.loads((folder / CONFIG_FILE).read_text())
            about["preprocess_cfg"]["mean"][0] += 0.01
            (folder / CONFIG_FILE).write_text(json.dumps(about))
        other = resolve(str(folder))
        wanted = other.space(other.preprocess_spec("pad"), None)
        with pytest.raises(InputError, match=f"table t: has space {space} .*, wanted {wanted} "):
            embed(config(corpus, tmp_path / "store", model=str(folder)))
    assert embed(config(corpus, tmp_path / "store")).rows_now == 0


def test_what_rows_were_computed_with_stands_in_the_record_and_the_receipts(corpus: Path, tmp_path: Path):
    report = embed(config(corpus, tmp_path / "store"))
    store = Store(str(tmp_path / "store"))
    record = read_record(store, "t")
    assert record.model_sha256 == resolve(str(DEMO_MODEL)).sha256
    assert record.model_sha256.keys() == {CONFIG_FILE, WEIGHTS_FILE}
    assert record.precision == "fp32"
    receipts = read_receipts(store, table_folder("t")).values()
    assert {encoder for receipt in receipts for encoder in receipt.encoders} == set(report.encoders)
    assert report.encoders[0].startswith("cpu fp32 torch ")
    assert store.read_json(f"{table_folder('t')}/table.json")["versions"]["torch"] in report.encoders[0]


@pytest.mark.usefixtures("light_encoder")
def test_the_first_of_equal_keys_is_embedded_and_the_others_are_rejects(corpus: Path, tmp_path: Path):
    first = {"source": {"duplicate_keys": "first"}, "max_reject_fraction": 0.05}
    write_shard(corpus / "shard-3.parquet", 0, [encoded(i) for i in range(50)])
    report = embed(config(corpus, tmp_path / "store", **first))
    assert (report.rows_in, report.embedded) == (170, 115)
    assert report.reasons == {**REASONS, "duplicate_key": 50}
    data, rejects = rows_of(tmp_path / "store"), rows_of(tmp_path / "store", "rejects")
    assert len(set(data["_row_id"].to_pylist())) == 115
    assert set(rejects.filter(pc.equal(rejects["reason"], "duplicate_key"))["shard"].to_pylist()) == {
        f"{corpus}/shard-3.parquet"
    }
    # A shard that sorts before all others comes last all the same: the rows that are embedded stay.
    write_shard(corpus / "a-shard.parquet", 30, [encoded(i) for i in range(100, 200)])
    report = embed(config(corpus, tmp_path / "store", **first))
    assert (report.rows_now, report.embedded, report.reasons["duplicate_key"]) == (100, 115 + 10, 50 + 90)
    keys = rows_of(tmp_path / "store")["_row_id"].to_pylist()
    assert len(keys) == len(set(keys)) == 125


@pytest.mark.usefixtures("light_encoder")
def test_a_row_whose_elder_was_never_committed_is_not_lost(corpus: Path, tmp_path: Path):
    """A run dies after it rejected a duplicate and before it embedded the row that this one gave way to."""
    first = {"source": {"duplicate_keys": "first"}}
    write_shard(corpus / "shard-3.parquet", 0, [encoded(i) for i in range(20)])
    embed(config(corpus, tmp_path / "store", **first))
    store = Store(str(tmp_path / "store"))
    receipts = read_receipts(store, table_folder("t")).values()
    elder = next(one for one in receipts if (one.shard, one.first_row) == (f"{corpus}/shard-0.parquet", 0))
    store.remove(f"{table_folder('t')}/receipts/{elder.unit}.json")
    report = embed(config(corpus, tmp_path / "store", **first))
    assert (report.rows_now, report.embedded, report.reasons["duplicate_key"]) == (20, 115, 20)
    keys = rows_of(tmp_path / "store")["_row_id"].to_pylist()
    assert len(keys) == len(set(keys)) == 115


@pytest.mark.usefixtures("light_encoder")
def test_images_are_fetched_by_http_where_it_is_allowed(tmp_path: Path):
    pictures = {f"/{i}.jpg": encoded(i) for i in range(5)}

    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "corpus").mkdir()
    paths = [f"{address}{name}" for name in pictures] + [f"{address}/no.jpg", "http://169.254.169.254/latest"]
    pq.write_table(pa.table({"image": paths}), tmp_path / "corpus" / "a.parquet")
    fields = {"source": {"key_column": None}, "max_reject_fraction": 1.0}
    closed = embed(config(tmp_path / "corpus", tmp_path / "closed", **fields))
    assert closed.reasons == {"fetch_denied": 7}
    public = FetchConfig(schemes=("http",))
    assert embed(config(tmp_path / "corpus", tmp_path / "public", fetch=public, **fields)).reasons == {
        "blocked_address": 7
    }
    inside = FetchConfig(schemes=("http",), networks=("127.0.0.0/8",))
    report = embed(config(tmp_path / "corpus", tmp_path / "inside", fetch=inside, **fields))
    assert (report.embedded, report.reasons) == (5, {"blocked_address": 1, "fetch_not_found": 1})
    server.shutdown()


@pytest.mark.usefixtures("light_encoder")
def test_a_slow_image_is_one_reject_of_the_run(corpus: Path, tmp_path: Path):
    slow = saved(Image.new("RGB", (9900, 9900), "red"), compress_level=1)
    write_shard(corpus / "shard-3.parquet", 500, [slow, encoded(1)])
    report = embed(config(corpus, tmp_path / "store", preprocess=PreprocessConfig(max_decode_s=0.3)))
    assert (report.rows_in, report.embedded) == (122, 116)
    assert report.reasons == {**REASONS, "too_slow": 1}


def zoo(folder: Path) -> dict[str, str | None]:
    """Make files that must cost next to nothing, with the reason that each must be given; None for a good one."""
    red = saved(Image.new("RGB", (64, 64), "red"))
    files: dict[str, tuple[bytes, str | None]] = {
        "bomb.png": (saved(Image.new("L", (30_000, 30_000)), compress_level=9), "too_many_pixels"),
        "claims-60000.png": (png_header(60_000, 60_000), "too_many_pixels"),
        "200-MB.jpg": (encoded(1) + bytes(200 << 20), "fetch_too_large"),
        "encapsulated.eps": (saved(Image.new("RGB", (64, 64), "red"), "EPS"), "not_an_image"),
        "vector.svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        "checksum.png": (red[:-13] + bytes([red[-13] ^ 1]) + red[-12:], "decode_failed"),
        "empty.jpg": (b"", "empty"),
        "10000-frames.gif": (gif(10_000), None),  # its first frame is as good as any picture
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "directory.jpg").mkdir()
    return {name: reason for name, (_, reason) in files.items()} | {"directory.jpg": "fetch_denied"}


def gif(frames: int) -> bytes:
    """An animation of large frames in few bytes: the same compressed frame, again and again."""
    one = saved(Image.new("P", (2000, 2000), 1), "GIF")
    body = one.index(b"\x2c")  # the image separator: what stands before it is the header
    return one[:body] + one[body:-1] * frames + b";"


@pytest.mark.usefixtures("light_encoder")
def test_a_zoo_of_hostile_files_costs_next_to_nothing(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    wanted = zoo(tmp_path / "corpus")
    pq.write_table(pa.table({"image": list(wanted), "name": list(wanted)}), tmp_path / "corpus" / "a.parquet")
    fields = {"source": {"key_column": "name"}, "max_reject_fraction": 1.0}
    report = embed(config(tmp_path / "corpus", tmp_path / "store", **fields))
    rejects = rows_of(tmp_path / "store", "rejects")
    found = dict(zip(rejects["_row_id"].to_pylist(), rejects["reason"].to_pylist(), strict=True))
    assert found == {name: reason for name, reason in wanted.items() if reason}
    assert rows_of(tmp_path / "store")["_row_id"].to_pylist() == ["10000-frames.gif"]
    assert report.rows_in == len(wanted)
    sandbox = Sandbox(resolve(str(DEMO_MODEL)).preprocess_spec("pad"))
    sandbox.pixels([encoded(1)])
    process = psutil.Process(sandbox._process.pid)
    for name in set(wanted) - {"directory.jpg", "10000-frames.gif"}:  # of that, one frame of 2,000 x 2,000 is decoded
        before = process.cpu_times().user
        sandbox.pixels([(tmp_path / "corpus" / name).read_bytes()])
        assert round(process.cpu_times().user - before, 2) <= 0.05, name  # in ticks of a hundredth
    before = process.cpu_times().user
    _, [reject] = sandbox.pixels([(tmp_path / "corpus" / "10000-frames.gif").read_bytes()])
    assert reject is None
    assert process.cpu_times().user - before <= 1
    sandbox.close()


@pytest.mark.usefixtures("light_encoder")
def test_a_cell_of_200_megabytes_is_a_reject_by_its_length(tmp_path: Path):
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [encoded(1), encoded(1) + bytes(200 << 20), encoded(2)])
    report = embed(config(tmp_path / "corpus", tmp_path / "store", max_reject_fraction=1.0))
    assert (report.embedded, report.reasons) == (2, {"too_many_bytes": 1})


def test_the_models_own_fit_is_the_one_that_is_embedded(corpus: Path, tmp_path: Path):
    import open_clip
    import torch

    embed(config(corpus, tmp_path / "store", preprocess=PreprocessConfig(fit="model")))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{DEMO_MODEL}")
    images = dict(zip(*(pq.read_table(corpus)[name].to_pylist() for name in ("key", "image")), strict=True))
    for row in rows_of(tmp_path / "store").to_pylist()[::10]:
        pixels = transform(Image.open(io.BytesIO(images[row["_row_id"]])).convert("RGB"))
        with torch.inference_mode():
            expected = model.eval().encode_image(pixels[None], normalize=True)
        assert float(expected[0] @ torch.tensor(row["vector"])) >= 0.9999


def test_dimensions_shorten_the_vectors(corpus: Path, tmp_path: Path):
    embed(config(corpus, tmp_path / "store", encode=EncodeConfig(precision="fp32", dimensions=16)))
    assert rows_of(tmp_path / "store").schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert read_record(Store(str(tmp_path / "store")), "t").d == 16
    with pytest.raises(InputError, match="wanted at most 64, got 65"):
        embed(config(corpus, tmp_path / "other", encode=EncodeConfig(dimensions=65)))


def test_nothing_is_written_before_keys_are_checked(corpus: Path, tmp_path: Path):
    write_shard(corpus / "shard-9.parquet", 5, [encoded(1)])
    with pytest.raises(InputError, match="row-00005"):
        embed(config(corpus, tmp_path / "store"))
    assert list((tmp_path / "store").rglob("*.parquet")) == []


def test_workers_write_where_the_driver_commits_wherever_they_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # Ray's workers were started elsewhere
    embed(config(corpus, "relative"))
    assert rows_of(tmp_path / "relative").num_rows == 115


def test_whoever_plans_does_not_import_torch():
    """It takes seconds, and gigabytes of address space, of which the driver has no use."""
    heavy = "{'torch', 'open_clip', 'huggingface_hub'}"
    loaded = f"import jobs.embed, sys; sys.exit(' '.join({heavy} & sys.modules.keys()) or 0)"
    subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True)


def test_a_budget_of_memory_is_stated_and_kept(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    limits = PreprocessConfig(max_image_pixels=100_000, max_image_bytes=100_000)
    budget, picture_bytes = 8 << 20, 16 * 100_000 + 2 * 100_000
    with caplog.at_level("INFO"):
        report = embed(config(corpus, tmp_path / "store", preprocess=limits, memory_budget=budget))
    assert report.embedded == 115
    pools = json.loads(next(r.getMessage() for r in caplog.records if "pools=" in r.getMessage()).partition("=")[2])
    assert pools["block_rows"] < 128
    assert pools["preprocessors"] * picture_bytes + pools["in_flight_bytes"] <= budget
    with pytest.raises(InputError, match="memory_budget: 1048576 bytes"):
        embed(config(corpus, tmp_path / "other", memory_budget=1 << 20))
    assert not list((tmp_path / "other").rglob("table.json"))


@pytest.mark.usefixtures("light_encoder")
def test_kept_columns_far_larger_than_pixels_do_not_stall_the_run(tmp_path: Path):
    shard = write_shard(tmp_path / "corpus" / "a.parquet", 0, [encoded(i) for i in range(300)])
    rows = pq.read_table(shard)
    large = pa.array([bytes([i % 256]) * 100_000 for i in range(300)], pa.binary())
    pq.write_table(rows.append_column("scan", large), shard, use_dictionary=False)
    report = embed(config(tmp_path / "corpus", tmp_path / "store", source={"keep_columns": ("scan",)}, unit_rows=8192))
    assert (report.embedded, rows_of(tmp_path / "store").num_rows) == (300, 300)
