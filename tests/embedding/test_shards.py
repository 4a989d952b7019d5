import json
import os
import random
from dataclasses import asdict, fields, replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import SourceConfig
from pipeline.embedding.plan import Shard, Survey, survey
from pipeline.embedding.shards import read_shards, write_shards
from pipeline.runs import run_folder
from pipeline.seal import seal
from pipeline.store import Store
from tests.conftest import write_shard

FOLDER = "embeddings/t"
NOTE = f"{FOLDER}/shards.json"
SOURCE = SourceConfig(name="s", path="/s", key_column="key", keep_columns=("label", "number"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def shard(number: int, **changes: object) -> Shard:
    one = Shard(f"/s/ä {number}.parquet", 100 + number, f"{100 + number}:7.5", (10, number), 900, 90, "100:1.5")
    return replace(one, **changes)


def found(*shards: Shard, unreadable: tuple[str, ...] = ()) -> Survey:
    return Survey(shards, "bytes", pa.schema([]), dict.fromkeys(unreadable, "why"))


def note(store: Store, run: str, seen: Survey, source: SourceConfig = SOURCE) -> str:
    """Do what a run does: read what is known, survey, note it."""
    return write_shards(store, FOLDER, source, seen, read_shards(store, FOLDER, source), run_folder(run))


def by_url(*shards: Shard) -> dict[str, Shard]:
    return {one.url: one for one in shards}


@pytest.mark.parametrize("seed", range(5))
def test_shards_are_read_as_they_were_noted(store: Store, seed: int):
    rng = random.Random(seed)
    shards = [
        shard(
            number,
            group_rows=tuple(rng.randrange(100) for _ in range(rng.randrange(4))),
            sha256=rng.choice([None, "0f" * 32]),
            image_bytes=rng.randrange(1 << 40),
        )
        for number in range(1, rng.randrange(2, 40))
    ]
    note(store, "1", found(*shards))
    assert read_shards(store, FOLDER, SOURCE) == by_url(*shards)


def test_what_was_noted_of_a_source_makes_the_same_survey_of_it(corpus: Path, store: Store):
    source = SourceConfig(name="s", path=str(corpus), keep_columns=("label",), fingerprint="content")
    seen = survey(source)
    note(store, "1", seen, source)
    assert survey(source, read_shards(store, FOLDER, source)) == seen


def test_nothing_is_known_and_nothing_is_wrong_before_the_first_run(store: Store, caplog: pytest.LogCaptureFixture):
    assert read_shards(store, FOLDER, SOURCE) == {}
    assert caplog.records == []


@pytest.mark.parametrize(
    "change",
    [
        {"image_column": "picture"},
        {"key_column": None},
        {"key_column": "id"},
        {"keep_columns": ()},
        {"keep_columns": ("label",)},
        {"keep_columns": ("label", "numbers")},
    ],
)
def test_shards_whose_other_columns_were_checked_are_not_known(store: Store, change: dict):
    note(store, "1", found(shard(1)))
    other = SOURCE.model_copy(update=change)
    assert read_shards(store, FOLDER, other) == {}
    note(store, "2", found(shard(1), shard(2)), other)
    assert read_shards(store, FOLDER, other) == by_url(shard(1), shard(2))
    assert read_shards(store, FOLDER, SOURCE) == {}


@pytest.mark.parametrize("change", [{"path": "/elsewhere"}, {"bad_shards": "skip"}, {"removed_shards": "remove"}])
def test_what_has_nothing_to_do_with_columns_changes_nothing(store: Store, change: dict):
    note(store, "1", found(shard(1)))
    assert read_shards(store, FOLDER, SOURCE.model_copy(update=change)) == by_url(shard(1))


def sealed(**shards: object) -> bytes:
    """Make a note that is whole and says what no run would say."""
    columns = {field.name: [getattr(shard(1), field.name)] for field in fields(Shard)}
    return seal({"columns": ["image", "key", "label", "number"], "copy": "c", "shards": {**columns, **shards}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        sealed()[:-1],
        sealed().replace(b"7.5", b"7.6"),
        seal({}),
        seal({"columns": ["image", "key", "label", "number"]}),
        seal({"columns": ["image", "key", "label", "number"], "shards": {}}),
        seal({"columns": ["image", "key", "label", "number"], "shards": None}),
        sealed(bytes=[1, 2]),  # one more than there are shards
        sealed(group_rows=[7]),
        json.dumps({"columns": ["image", "key", "label", "number"], "shards": [asdict(shard(1))]}).encode(),
    ],
    ids=["empty", "list", "cut", "changed", "nothing", "no_shards", "no_columns", "null", "uneven", "no_tuple", "rows"],
)
def test_a_damaged_note_says_nothing_and_is_written_anew(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
):
    store.replace(NOTE, sealed())
    assert read_shards(store, FOLDER, SOURCE) == by_url(shard(1))  # so it is this content that is damaged
    store.replace(NOTE, content)
    assert read_shards(store, FOLDER, SOURCE) == {}
    (line,) = caplog.records
    assert f"{NOTE} is damaged" in line.getMessage()
    note(store, "2", found(shard(1)))
    assert read_shards(store, FOLDER, SOURCE) == by_url(shard(1))


def test_a_run_that_finds_what_was_there_names_the_copy_of_the_one_that_found_it_first(store: Store):
    first = note(store, "1", found(shard(1), shard(2)))
    files = {path: store.read(path) for path in store.files("")}
    assert sorted(files) == [NOTE, first]
    assert [note(store, run, found(shard(1), shard(2))) for run in ("2", "3")] == [first, first]
    assert {path: store.read(path) for path in store.files("")} == files


@pytest.mark.parametrize(
    "later",
    [
        (shard(1), shard(2), shard(3)),
        (shard(1),),
        (shard(1), shard(2, fingerprint="other")),
        (shard(1), shard(2, sha256="0f" * 32)),
    ],
)
def test_every_change_is_noted_and_each_runs_copy_says_what_it_found(store: Store, later: tuple[Shard, ...]):
    copies = [note(store, "1", found(shard(1), shard(2))), note(store, "2", found(*later))]
    assert copies == ["runs/1/shards.json", "runs/2/shards.json"]
    assert read_shards(store, FOLDER, SOURCE) == by_url(*later)
    for copy, shards in zip(copies, [(shard(1), shard(2)), later], strict=True):
        store.replace(NOTE, store.read(copy))
        assert read_shards(store, FOLDER, SOURCE) == by_url(*shards)


def test_shards_that_cannot_be_read_stay_as_they_were_known(store: Store):
    old, new = shard(2), shard(3)
    note(store, "1", found(shard(1), old))
    seen = found(shard(1), unreadable=(old.url, new.url))  # of the new one nothing is known
    copy = note(store, "2", seen)
    assert read_shards(store, FOLDER, SOURCE) == by_url(shard(1), old)
    assert copy == "runs/1/shards.json"  # nothing is known now that was not
    note(store, "3", found(shard(1), replace(old, fingerprint="mended"), new))
    assert read_shards(store, FOLDER, SOURCE) == by_url(shard(1), replace(old, fingerprint="mended"), new)


def test_a_shard_that_was_unreadable_for_a_while_keeps_its_state(tmp_path: Path, store: Store):
    source = SourceConfig(name="s", path=str(tmp_path / "in"), bad_shards="skip", fingerprint="content")
    paths = [write_shard(tmp_path / "in" / f"{name}.parquet", 0, [name.encode()]) for name in "ab"]
    first = survey(source)
    note(store, "1", first, source)
    content = paths[1].read_bytes()
    for run, later in (("2", b"junk"), ("3", content)):
        paths[1].write_bytes(later)
        os.utime(paths[0], (int(run), int(run)))
        seen = survey(source, read_shards(store, FOLDER, source))
        note(store, run, seen, source)
        assert bool(seen.unreadable) == (later == b"junk")
    assert [one.state for one in seen.shards] == [one.state for one in first.shards]
