import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.store import Store


@pytest.fixture(params=["disk", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    name = request.node.name.replace("[", "-").replace("]", "")
    if request.param == "disk":
        return Store(str(tmp_path / "store"))
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/{name}")
    return Store(f"memory://{name}")


def test_create_never_replaces(store: Store):
    store.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def test_of_many_writers_of_one_name_one_wins(store: Store):
    def attempt(number: int) -> bool:
        try:
            store.create("race", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    if store.url.startswith("memory:"):
        assert any(won)  # fsspec's memory filesystem does not claim more
    else:
        assert sum(won) == 1
        assert store.read("race") == b"%d" % won.index(True)


def test_replace_and_remove_can_be_repeated(store: Store):
    store.replace("x", b"1")
    store.replace("x", b"22")
    assert store.files("") == {"x": 2}
    store.remove("x")
    store.remove("x")
    with pytest.raises(FileNotFoundError):
        store.read("x")


def test_list_is_deep_relative_and_empty_where_nothing_is(store: Store):
    store.create("t/data/unit=a/1.parquet", b"abc")
    store.create("t/data/2.parquet", b"")
    assert store.files("t/data") == {"unit=a/1.parquet": 3, "2.parquet": 0}
    assert store.files("nothing") == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_read_many_gives_every_file_of_the_suffix_by_name(store: Store, count: int):
    for number in range(count):
        store.create(f"r/{number}.json", b"%d" % number)
    store.create("r/other.txt", b"no")
    assert store.read_many("r", ".json") == {f"{number}.json": b"%d" % number for number in range(count)}


def test_folders_are_those_right_below(store: Store):
    for path in ("a/x/1", "a/y/z/2", "a/3"):
        store.create(path, b"")
    assert store.folders("a") == ["x", "y"]
    assert store.folders("nothing") == []
    assert store.exists("a/3")
    assert not store.exists("a/x")


def test_files_travel_to_and_from_disk(store: Store, tmp_path: Path):
    source = tmp_path / "large"
    source.write_bytes(b"12345")
    store.put_file("v/large", source)
    assert store.get_file("v/large", tmp_path).read_bytes() == b"12345"


def test_a_pickled_store_reads_the_same_files(store: Store):
    store.create("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_a_failed_write_on_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.create("folder/file", b"content")
    assert store.files("") == {}


def test_a_store_that_cannot_be_written_is_an_input_error(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        Store(str(tmp_path / "file" / "store")).check_writable(single_writer=False)


def test_an_unknown_scheme_is_an_input_error():
    with pytest.raises(InputError, match="nosuch"):
        Store("nosuch://bucket/store")


def test_removing_the_last_file_of_a_folder_on_disk_removes_the_folder(tmp_path: Path):
    store = Store(str(tmp_path))
    store.create("data/unit=a/1", b"")
    store.create("data/unit=b/1", b"")
    store.remove("data/unit=a/1")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["unit=b"]


def test_a_bucket_that_does_not_exist_is_an_input_error(s3: str):
    with pytest.raises(InputError, match="cannot be written"):
        Store("s3://no-such-bucket/store").check_writable(single_writer=False)
