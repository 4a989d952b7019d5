import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig
from pipeline.embedding.plan import Shard, cut, survey
from pipeline.errors import InputError
from tests.conftest import write_shard


def source(path: object, **fields: object) -> SourceConfig:
    return SourceConfig(name="s", path=path, **{"key_column": "key", **fields})


def shard(name: str, *group_rows: int) -> Shard:
    return Shard(name, 1, "f", group_rows, 10, 0, "f")


@pytest.mark.parametrize("seed", range(20))
def test_units_tile_every_shard_and_keep_to_their_size_where_row_groups_allow(seed: int):
    rng = random.Random(seed)
    shards = tuple(
        shard(f"{i}.parquet", *(rng.choice([0, 1, 7, 100, 250]) for _ in range(rng.randrange(8)))) for i in range(5)
    )
    units = cut(shards, 100)
    assert len({unit.id for unit in units}) == len(units)
    for one in shards:
        mine = [unit for unit in units if unit.shard == one.url]
        expected = 0
        for unit in mine:
            assert unit.first_row == expected
            assert unit.rows == sum(one.group_rows[unit.first_group : unit.first_group + unit.groups])
            full = [rows for rows in one.group_rows[unit.first_group : unit.first_group + unit.groups] if rows]
            assert unit.rows <= 100 or len(full) == 1
            expected += unit.rows
        assert expected == one.rows


def test_a_unit_is_named_by_its_place_and_the_state_of_its_shard():
    before = cut((shard("a b/ä.parquet", 10),), 100)[0]
    rewritten = cut((Shard("a b/ä.parquet", 1, "g", (10,), 10, 0, "g"),), 100)[0]
    elsewhere = cut((Shard("b/ä.parquet", 1, "f", (10,), 10, 0, "f"),), 100)[0]
    assert len({before.id, rewritten.id, elsewhere.id}) == 3
    assert before.id.replace("-", "").isalnum()


def test_folders_globs_files_and_lists_mean_the_same_shards(corpus: Path):
    (corpus / "_temporary").mkdir()
    (corpus / "_temporary" / "half.parquet").write_bytes(b"PAR1")
    (corpus / "notes.txt").write_text("not a shard")
    whole = survey(source(str(corpus)))
    assert [one.url for one in whole.shards] == [f"{corpus}/shard-{number}.parquet" for number in range(3)]
    assert whole.rows == 120
    assert survey(source(f"{corpus}/*.parquet")) == whole
    assert survey(source(f"{corpus}/shard-[01].parquet")).rows == 80
    assert survey(source(f"{corpus}/shard-2.parquet")).shards == whole.shards[2:]
    two = survey(source((f"{corpus}/shard-0.parquet", f"{corpus}/shard-2.parquet")))
    assert two.shards == whole.shards[::2]  # the same shards, however they are named
    with pytest.raises(InputError, match="is named twice"):
        survey(source((str(corpus), f"{corpus}/shard-2.parquet")))


def test_a_name_with_brackets_is_a_name(tmp_path: Path):
    write_shard(tmp_path / "a[1].parquet", 0, [b"x"])
    assert survey(source(str(tmp_path / "a[1].parquet"))).rows == 1


def test_equal_names_in_two_folders_are_two_shards(tmp_path: Path):
    for number, folder in enumerate(("day1", "day2")):
        write_shard(tmp_path / folder / "part-0.parquet", 10 * number, [b"x"] * 10)
    units = cut(survey(source(str(tmp_path / "*" / "part-0.parquet"))).shards, 100)
    assert len({unit.id for unit in units}) == 2


def test_rewriting_a_shard_changes_its_fingerprint_only(corpus: Path):
    before = survey(source(str(corpus)))
    write_shard(corpus / "shard-1.parquet", 40, [b"other"] * 40, group_rows=10)
    after = survey(source(str(corpus)))
    changed = [a.url for a, b in zip(before.shards, after.shards, strict=True) if a.fingerprint != b.fingerprint]
    assert changed == [f"{corpus}/shard-1.parquet"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_column": "picture"}, "no column 'picture'; it has key, image, label, number"),
        ({"key_column": "id"}, "no column 'id'"),
        ({"keep_columns": ("lable",)}, "no column 'lable'"),
        ({"image_column": "number"}, "'number' is int32; wanted binary, string, or struct"),
    ],
)
def test_a_wrong_column_is_named_with_what_there_is(corpus: Path, fields: dict, said: str):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        survey(source(str(corpus), **fields))


def test_an_empty_source_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no Parquet files"):
        survey(source(str(tmp_path / "nothing")))
    write_shard(tmp_path / "a.parquet", 0, [])
    with pytest.raises(InputError, match="no rows in 1 shards"):
        survey(source(str(tmp_path)))


def test_an_unreadable_shard_is_named(corpus: Path):
    (corpus / "shard-1.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    with pytest.raises(InputError, match=r"shard-1\.parquet cannot be read"):
        survey(source(str(corpus)))


def test_shards_whose_columns_differ_are_refused(corpus: Path):
    table = pq.read_table(corpus / "shard-2.parquet")
    pq.write_table(table.set_column(2, "label", pa.array(range(40))), corpus / "shard-2.parquet")
    with pytest.raises(InputError, match=r"shard-2\.parquet: image: binary, label: int64; wanted.*label: string"):
        survey(source(str(corpus), keep_columns=("label",)))
    assert survey(source(str(corpus))).rows == 120  # nobody asked for that column


def test_names_of_ours_cannot_be_kept(tmp_path: Path):
    pq.write_table(pa.table({"image": [b""], "vector": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="the name 'vector' is ours"):
        survey(SourceConfig(name="s", path=str(tmp_path), keep_columns=("vector",)))


def test_keys_without_a_text_form_are_refused(tmp_path: Path):
    pq.write_table(pa.table({"image": [b""], "key": [[1, 2]]}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match="wanted a scalar that has a text form"):
        survey(source(str(tmp_path)))
