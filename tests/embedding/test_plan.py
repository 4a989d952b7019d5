import glob
import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig
from pipeline.embedding.plan import Shard, Survey, cut, survey
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


def known(found: Survey) -> dict[str, Shard]:
    return {one.url: one for one in found.shards}


def spoil(path: Path) -> None:
    """Leave nothing of a file but its name, its size and its time."""
    before = path.stat()
    path.write_bytes(b"?" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("fingerprint", ["listing", "content"])
def test_shards_that_are_known_are_not_opened_again(corpus: Path, fingerprint: str):
    asked = source(str(corpus), keep_columns=("label",), fingerprint=fingerprint)
    before = survey(asked)
    for number in (1, 2):  # the first is opened: it says what the columns are
        spoil(corpus / f"shard-{number}.parquet")
    assert survey(asked, known(before)) == before
    with pytest.raises(InputError, match=r"shard-1\.parquet cannot be read"):
        survey(asked)


def test_where_one_has_changed_no_other_is_opened_but_one_that_says_what_columns_are(corpus: Path):
    before = survey(source(str(corpus)))
    write_shard(corpus / "shard-1.parquet", 40, [b"other"] * 7)
    spoil(corpus / "shard-2.parquet")
    after = survey(source(str(corpus)), known(before))
    assert [one.rows for one in after.shards] == [40, 7, 40]
    assert after.shards[::2] == before.shards[::2]


def test_new_shards_are_found_and_removed_ones_left_out_whatever_is_known(corpus: Path):
    before = survey(source(str(corpus)))
    (corpus / "shard-0.parquet").unlink()
    write_shard(corpus / "shard-9.parquet", 900, [b"x"] * 3)
    after = survey(source(str(corpus)), known(before))
    assert [one.url[-9:] for one in after.shards] == ["1.parquet", "2.parquet", "9.parquet"]
    assert after == survey(source(str(corpus)))


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def copied(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("change", [touched, copied])
def test_by_content_a_shard_that_was_only_copied_keeps_its_state_and_its_units(
    corpus: Path, change: Callable[[Path], None]
):
    asked = source(str(corpus), fingerprint="content")
    before = survey(asked)
    change(corpus / "shard-1.parquet")
    after = survey(asked, known(before))
    assert after.shards[1].fingerprint != before.shards[1].fingerprint
    assert replace(after.shards[1], fingerprint=before.shards[1].fingerprint) == before.shards[1]
    assert [unit.id for unit in cut(after.shards, 10)] == [unit.id for unit in cut(before.shards, 10)]
    again = survey(asked, known(after))
    assert again == after
    by_listing = survey(source(str(corpus)), known(before))
    assert by_listing.shards[1].state == by_listing.shards[1].fingerprint != before.shards[1].state


def test_by_content_one_changed_byte_is_another_state_of_that_shard_alone(corpus: Path):
    asked = source(str(corpus), fingerprint="content")
    before = survey(asked)
    path = corpus / "shard-1.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])  # of the same length
    after = survey(asked, known(before))
    assert [one.sha256 for one in after.shards] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(corpus.iterdir())
    ]
    assert [a.state == b.state for a, b in zip(after.shards, before.shards, strict=True)] == [True, False, True]
    shared = {unit.id for unit in cut(after.shards, 10)} & {unit.id for unit in cut(before.shards, 10)}
    assert len(shared) == 8


@pytest.mark.parametrize("fingerprint", ["listing", "content"])
def test_shards_that_were_only_listed_before_keep_their_state(corpus: Path, fingerprint: str):
    listed = [replace(one, state="1:1.0") for one in survey(source(str(corpus))).shards]  # first seen long ago
    found = survey(source(str(corpus), fingerprint=fingerprint), {one.url: one for one in listed})
    assert [one.state for one in found.shards] == ["1:1.0"] * 3
    assert [one.sha256 is not None for one in found.shards] == [fingerprint == "content"] * 3


def test_a_digest_is_of_all_of_a_file_that_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_shard(tmp_path / "a.parquet", 0, [b"x" * 1000] * 10)
    monkeypatch.setattr("pipeline.embedding.plan.HASH_BYTES", 100)
    (one,) = survey(source(str(path), fingerprint="content")).shards
    assert one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 2)])
def test_shards_that_cannot_be_read_are_left_out_and_named_where_the_source_skips_them(corpus: Path, bad: tuple):
    whole = survey(source(str(corpus)))
    for number in bad:
        (corpus / f"shard-{number}.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    found = survey(source(str(corpus), bad_shards="skip"))
    assert found.shards == tuple(whole.shards[number] for number in range(3) if number not in bad)
    assert sorted(found.unreadable) == [f"{corpus}/shard-{number}.parquet" for number in bad]
    assert all("Parquet" in why for why in found.unreadable.values())


def test_a_shard_that_is_known_and_cannot_be_read_now_is_left_out_too(corpus: Path):
    skip = source(str(corpus), bad_shards="skip")
    before = survey(skip)
    (corpus / "shard-1.parquet").write_bytes(b"PAR1")
    touched(corpus / "shard-2.parquet")
    found = survey(skip, known(before))
    assert [one.url[-9:] for one in found.shards] == ["0.parquet", "2.parquet"]
    assert list(found.unreadable) == [f"{corpus}/shard-1.parquet"]


@pytest.mark.parametrize("bad_shards", ["error", "skip"])
def test_a_source_of_nothing_but_unreadable_shards_is_an_error(corpus: Path, bad_shards: str):
    for path in corpus.iterdir():
        path.write_bytes(b"PAR1 this is not Parquet PAR1")
    with pytest.raises(InputError, match=r"shard-\d\.parquet"):
        survey(source(str(corpus), bad_shards=bad_shards))


def test_a_wrong_column_is_no_reason_to_skip_a_shard(corpus: Path):
    pq.write_table(pa.table({"key": ["a"], "picture": [b"x"]}), corpus / "shard-1.parquet")
    with pytest.raises(InputError, match="no column 'image'"):
        survey(source(str(corpus), bad_shards="skip"))


@pytest.mark.parametrize("bad", ["shard-0", "shard-9"])  # the one that is always opened; a new one
def test_one_unreadable_shard_is_left_out_where_all_others_are_known(corpus: Path, bad: str):
    skip = source(str(corpus), bad_shards="skip")
    before = survey(skip)
    (corpus / f"{bad}.parquet").write_bytes(b"PAR1")
    found = survey(skip, known(before))
    assert list(found.unreadable) == [f"{corpus}/{bad}.parquet"]
    assert found.shards == tuple(one for one in before.shards if one.url not in found.unreadable)


@pytest.mark.parametrize("pattern", ["", "/*/*.parquet", "/**/*.parquet"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, error: OSError
):
    for day in "12":
        write_shard(tmp_path / f"day={day}" / "a.parquet", 0, [b"x"])
    asked = source(f"{tmp_path}{pattern}")
    assert survey(asked).rows == 2
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("day=2"):
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match="cannot be listed"):
        survey(asked)


def test_a_folder_that_went_while_its_source_was_listed_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for day in "12":
        write_shard(tmp_path / f"day={day}" / "a.parquet", 0, [b"x"])
    scandir = os.scandir

    def gone(path: str) -> object:
        if str(path).endswith("day=2"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert survey(source(str(tmp_path))).rows == 1


TREE = ["day=1/a-0", "day=1/a-1", "day=1/b-0", "day=2/a-0", "day=2/deep/a-1", "day=10/a-0", "day=1/a[0]", "top"]


@pytest.fixture(scope="module", params=["disk", "s3"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same shards on disk and on S3, with other files between them."""
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        write_shard(folder / f"{name}.parquet", 0, [b"x"])
    (folder / "day=1" / "notes.txt").write_text("not a shard")
    if request.param == "disk":
        return folder, str(folder)
    root = f"{request.getfixturevalue('s3')}/tree"
    filesystem = fsspec.filesystem("s3")
    for path in folder.rglob("*.*"):
        filesystem.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return folder, root


@pytest.mark.parametrize(
    "pattern",
    [
        "*.parquet",
        "*/*.parquet",
        "**/*.parquet",
        "day=?/a-?.parquet",
        "day=[12]/a-0.parquet",
        "day=[!1]/*.parquet",
        "*/a-[0-9].parquet",
        "day=1/a[[]0].parquet",
        "day=1/a[]0.parquet",
        "day=[12]*/**/a-1.parquet",
        "day=3/*.parquet",
    ],
)
def test_a_glob_means_on_every_store_what_it_means_in_python(tree: tuple[Path, str], pattern: str):
    folder, root = tree
    wanted = sorted(str(Path(path).relative_to(folder)) for path in glob.glob(f"{folder}/{pattern}", recursive=True))
    asked = source(f"{root}/{pattern}")
    if not wanted:
        with pytest.raises(InputError, match="no Parquet files"):
            survey(asked)
    else:
        assert [one.url.removeprefix(f"{root}/") for one in survey(asked).shards] == wanted


def test_a_name_with_brackets_is_a_name_on_every_store(tree: tuple[Path, str]):
    _, root = tree
    (one,) = survey(source(f"{root}/day=1/a[0].parquet")).shards
    assert one.url == f"{root}/day=1/a[0].parquet"
    assert one.rows == 1
