import hashlib
import io
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.embedding import reuse
from pipeline.embedding.reuse import FILES_IN_MEMORY, Elder, Reuse, ReuseSpec
from pipeline.store import Store
from pipeline.table import File

D = 4
FOLDER = "embeddings/t"
SHARD, OTHER = "/a.parquet", "/b.parquet"
Row = tuple[str, bytes | None, str | None]  # shard, image, reason


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def vector_of(image: bytes, encoder: str) -> bytes:
    """Give what some encoder made of an image: D float32, different for each."""
    return hashlib.sha256(encoder.encode() + image).digest()[: 4 * D]


def image(number: int) -> bytes:
    return b"image %d" % number


class Elders:
    """Writes files of earlier states as the write step does."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self._names = count()

    def __call__(self, images: list[bytes], *encoders: str, content_hashes: bool = True) -> Elder:
        encoders = encoders or ("cpu fp32",)
        vectors = np.frombuffer(b"".join(vector_of(one, encoders[0]) for one in images), np.float32)
        columns = [
            pa.array([f"k{rank}" for rank in range(len(images))]),
            pa.repeat("s", len(images)),
            pa.repeat("m@1", len(images)),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors), D),
            *([pa.array([digest(one) for one in images], pa.string())] if content_hashes else []),
        ]
        form = schema.embeddings_schema(D, pa.schema([]), content_hashes=content_hashes)
        written = io.BytesIO()
        pq.write_table(pa.table(columns, schema=form), written)
        content, path = written.getvalue(), f"data/{next(self._names)}.parquet"
        self.store.create(f"{FOLDER}/{path}", content)
        return Elder(File(path, len(images), len(content), hashlib.sha256(content).hexdigest()), encoders)

    def path(self, elder: Elder) -> Path:
        return Path(self.store.path(f"{FOLDER}/{elder.file.path}"))

    def reuse(self, **by_shard: tuple[Elder, ...]) -> Reuse:
        known = {f"/{name}.parquet": elders for name, elders in by_shard.items()}
        return Reuse(ReuseSpec(self.store.url, FOLDER), known)


@pytest.fixture
def elders(tmp_path: Path) -> Elders:
    return Elders(tmp_path)


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that are read, in their order."""
    paths, read_checked = [], reuse.read_checked

    def noted(store: Store, folder: str, file: File) -> pa.Table:
        paths.append(file.path)
        return read_checked(store, folder, file)

    monkeypatch.setattr(reuse, "read_checked", noted)
    return paths


def batch(rows: list[Row]) -> pa.Table:
    shards, images, reasons = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            schema.SHARD: pa.array(shards, pa.string()),
            schema.ROW: pa.array(range(len(rows)), pa.int64()),
            schema.IMAGE: pa.array(images, pa.large_binary()),
            **schema.outcome_columns(list(reasons), list(reasons)),
            "label": pa.array([f"label {row}" for row in range(len(rows))], pa.string()),
        }
    )


def of_shard(shard: str, numbers: list[int] | range) -> list[Row]:
    return [(shard, image(number), None) for number in numbers]


def expected(rows: list[Row], known: dict[tuple[str, bytes], list[str]]) -> dict[str, list]:
    """Find vectors the slow way: known is, by shard and contents, the encoders of the files that hold them."""
    columns: dict[str, list] = {schema.CONTENT_HASH: [], schema.KNOWN: [], schema.ENCODER: [], schema.IMAGE: []}
    for shard, contents, reason in rows:
        is_good = contents is not None and reason is None
        encoders = known.get((shard, contents)) if is_good else None
        columns[schema.CONTENT_HASH].append(digest(contents) if is_good else None)
        columns[schema.KNOWN].append(vector_of(contents, encoders[0]) if encoders else None)
        columns[schema.ENCODER].append(" or ".join(encoders) if encoders else None)
        columns[schema.IMAGE].append(None if encoders else contents)
    return columns


def check(step: Callable[[pa.Table], pa.Table], rows: list[Row], known: dict[tuple[str, bytes], list[str]]) -> None:
    given = batch(rows)
    out = step(given)
    assert out.num_rows == len(rows)
    assert {name: out[name].to_pylist() for name in expected(rows, known)} == expected(rows, known)
    for name in (schema.SHARD, schema.ROW, schema.REASON, schema.ERROR, "label"):
        assert out[name].equals(given[name])


def test_known_contents_get_the_stored_bytes_and_encoder_and_no_others_do(elders: Elders):
    step = elders.reuse(a=(elders([image(n) for n in range(5)], "gpu bf16"),))
    known = {(SHARD, image(n)): ["gpu bf16"] for n in range(5)}
    rows: list[Row] = [
        *of_shard(SHARD, [3, 7, 0, 3]),  # 3 twice: its vector too
        (SHARD, image(2), "truncated"),
        (SHARD, None, "null"),
        (SHARD, None, None),
        (SHARD, b"", None),
        *of_shard(OTHER, [3]),
    ]
    check(step, rows, known)
    assert step(batch(rows))[schema.KNOWN].null_count == len(rows) - 3


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_rows_is_as_in_the_slow_computation(elders: Elders, seed: int):
    rng = random.Random(seed)
    by_shard, known = {}, {}
    for name in "abc":
        files = []
        for number in range(rng.randrange(7)):
            held, encoder = rng.sample(range(100 * number, 100 * number + 30), 10), f"device {number}"
            files.append(elders([image(n) for n in held], encoder))
            known.update({(f"/{name}.parquet", image(n)): [encoder] for n in held})
        by_shard[name] = tuple(files)
    step = elders.reuse(**by_shard)
    for _ in range(5):
        rows: list[Row] = [
            (f"/{rng.choice('abcd')}.parquet", image(rng.randrange(700)), rng.choice([None] * 9 + ["too_slow"]))
            for _ in range(rng.randrange(60))
        ]
        check(step, sorted(rows, key=lambda row: row[0]) if rng.random() < 0.5 else rows, known)


@pytest.mark.parametrize("length", [0, 1])
def test_small_batches_have_the_columns_and_types_of_large_ones(elders: Elders, length: int):
    step = elders.reuse(a=(elders([image(0)]),))
    rows = of_shard(SHARD, [0, 1])
    assert step(batch(rows[:length])).schema == step(batch(rows)).schema
    check(step, rows[:length], {(SHARD, image(0)): ["cpu fp32"]})


def test_slices_of_several_pieces_are_as_a_batch_in_one(elders: Elders):
    step = elders.reuse(a=(elders([image(n) for n in range(0, 20, 2)]),))
    whole = batch(of_shard(SHARD, range(20)))
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 1), whole.slice(8)]).slice(3, 14)
    assert step(pieces).combine_chunks().equals(step(whole).slice(3, 14).combine_chunks())


def test_images_of_known_rows_are_gone_and_not_only_hidden(elders: Elders):
    large = [b"%d" % n * 10_000 for n in range(10)]
    step = elders.reuse(a=(elders(large[:9]),))
    out = step(batch([(SHARD, one, None) for one in large]))
    assert out[schema.IMAGE].to_pylist() == [None] * 9 + large[9:]
    assert sum(buffer.size for chunk in out[schema.IMAGE].chunks for buffer in chunk.buffers() if buffer) < 11_000


def damage_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_bit, cut_short, Path.unlink])
def test_what_lies_in_a_damaged_file_is_encoded_again(
    elders: Elders, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
):
    bad, good = elders([image(n) for n in range(10)], "x"), elders([image(n) for n in range(5, 15)], "y")
    damage(elders.path(bad))
    for order in ((bad, good), (good, bad)):
        caplog.clear()
        check(elders.reuse(a=order), of_shard(SHARD, range(20)), {(SHARD, image(n)): ["y"] for n in range(5, 15)})
        (line,) = caplog.records
        assert bad.file.path in line.getMessage()


def test_a_table_without_hashes_has_nothing_to_use_again(elders: Elders):
    first_format = elders([image(n) for n in range(5)], content_hashes=False)
    check(elders.reuse(a=(first_format,)), of_shard(SHARD, range(5)), {})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_two_files_hold_has_the_vector_and_the_encoder_of_one_of_them(elders: Elders, order: tuple[int, int]):
    files = [elders([image(1), image(2)], "x"), elders([image(3), image(2)], "y")]
    out = elders.reuse(a=tuple(files[number] for number in order))(batch(of_shard(SHARD, [1, 2, 3])))
    encoders = out[schema.ENCODER].to_pylist()
    assert (encoders[0], encoders[2]) == ("x", "y")
    assert encoders[1] in ("x", "y")
    assert out[schema.KNOWN].to_pylist() == [vector_of(image(n + 1), encoders[n]) for n in range(3)]


def test_a_file_of_several_encoders_names_them_all(elders: Elders):
    step = elders.reuse(a=(elders([image(0)], "gpu bf16", "cpu fp32"),))
    assert step(batch(of_shard(SHARD, [0])))[schema.ENCODER].to_pylist() == ["cpu fp32 or gpu bf16"]


def test_of_more_files_than_are_kept_in_memory_every_vector_is_found(elders: Elders, files_read: list[str]):
    number_of = 3 * FILES_IN_MEMORY
    files = [elders([image(10 * f + n) for n in range(10)], f"device {f}") for f in range(number_of)]
    known = {(SHARD, image(n)): [f"device {n // 10}"] for n in range(10 * number_of)}
    step = elders.reuse(a=tuple(files))
    for start in range(0, 10 * number_of, 25):
        check(step, of_shard(SHARD, range(start, min(start + 25, 10 * number_of))), known)
    assert len(files_read) <= 2 * number_of  # all of them for their hashes, then each once more in its turn
    check(step, of_shard(SHARD, random.Random(0).sample(range(10 * number_of), 60)), known)


@pytest.mark.parametrize("number_of", range(3, FILES_IN_MEMORY + 1))
def test_as_many_files_as_are_kept_in_memory_are_read_once(elders: Elders, files_read: list[str], number_of: int):
    files = [elders([image(10 * f + n) for n in range(10)]) for f in range(number_of)]
    step = elders.reuse(a=tuple(files))
    for n in range(10):
        step(batch(of_shard(SHARD, range(n, 10 * number_of, 10))))  # a row of every file
    assert len(files_read) == number_of


def test_what_lay_in_a_file_that_is_damaged_meanwhile_is_encoded_again(elders: Elders):
    files = [elders([image(10 * f + n) for n in range(10)]) for f in range(2 * FILES_IN_MEMORY)]
    known = {(SHARD, image(n)): ["cpu fp32"] for n in range(20 * FILES_IN_MEMORY)}
    step = elders.reuse(a=tuple(files))
    check(step, of_shard(SHARD, range(20 * FILES_IN_MEMORY - 10)), known)
    elders.path(files[0]).unlink()
    check(step, of_shard(SHARD, range(10)), {})
