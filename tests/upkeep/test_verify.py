"""Random damage to every kind of file, and jobs.verify names each; nothing damaged is ever loaded."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from jobs import verify as job
from jobs.launch import launch
from pipeline.config import VacuumConfig, VerifyConfig
from pipeline.errors import RunError
from pipeline.indexing.publish import TRUTH, read_current
from pipeline.searching.index import open_index
from pipeline.serving.service import Service
from pipeline.store import Store
from pipeline.table import read_checked, read_receipts, table_folder
from pipeline.upkeep.vacuum import vacuum
from pipeline.upkeep.verify import verify

DAMAGES = 200


@pytest.fixture
def store(demo_store: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_store, tmp_path / "store"))


def table_of(store: Path) -> str:
    return Store(str(store)).folders("embeddings")[0]


def faults(store: Path) -> dict[str, str]:
    return {fault.path: fault.kind for fault in verify(VerifyConfig(store=str(store), table=table_of(store))).faults}


def load_all(store: Path) -> None:
    """Read what a server reads, and what a build that goes on from the index does."""
    opened, table = Store(str(store)), table_of(store)
    for receipt in read_receipts(opened, table_folder(table)).values():
        for file in (*receipt.data, *receipt.rejects):
            read_checked(opened, table_folder(table), file)
    card = open_index(opened, table).card
    opened.get_checked(f"indexes/{table}/{card.only(TRUTH)}", card.sha256[card.only(TRUTH)], Path())


def test_a_whole_store_has_no_fault(store: Path):
    found = verify(VerifyConfig(store=str(store)))
    assert found.faults == ()
    assert found.bytes > 50_000
    load_all(store)


def test_each_of_200_random_flips_and_cuts_is_named_and_not_loaded(store: Path):
    rng = random.Random(20261121)
    kinds = ("data/*/*.parquet", "rejects/*/*.parquet", "receipts/*.json")
    groups = [sorted((store / "embeddings").glob(f"*/{kind}")) for kind in kinds]
    of_indexes = sorted((store / "indexes").glob("*/*/*"))  # the plot is for people
    groups += [[path] for path in of_indexes if "lease" not in path.parts and path.suffix != ".png"]
    groups += [[path] for path in sorted((store / "indexes").glob("*/CURRENT"))]
    missed, loaded = [], []
    for number in range(DAMAGES):
        path = rng.choice(groups[number % len(groups)])
        whole = path.read_bytes()
        if rng.random() < 0.5:
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            damaged = whole[: rng.randrange(len(whole))]
        path.write_bytes(damaged)
        name = str(path.relative_to(store))
        if name not in faults(store):
            missed.append((name, len(damaged), len(whole)))
        try:
            load_all(store)
            loaded.append(name)
        except RunError:
            pass
        path.write_bytes(whole)
    assert missed == []
    assert loaded == []
    assert faults(store) == {}


def test_files_that_are_gone_too_many_or_mixed_up_are_named(store: Path):
    folder = store / "embeddings" / table_of(store)
    first, second = sorted(folder.glob("data/*/*.parquet"))[:2]
    whole, other = first.read_bytes(), second.read_bytes()
    relative = {path: str(path.relative_to(store)) for path in (first, second)}
    first.unlink()
    assert faults(store) == {relative[first]: "missing"}
    first.write_bytes(other)
    assert faults(store) == {relative[first]: "damaged"}  # not the file that was written, though a good one
    first.write_bytes(whole)
    (first.parent / "stray.parquet").write_bytes(whole)
    assert faults(store) == {str((first.parent / "stray.parquet").relative_to(store)): "extra"}
    (first.parent / "stray.parquet").unlink()
    one, two = sorted(folder.glob("receipts/*.json"))[:2]
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    assert set(faults(store).values()) == {"mixed"}
    assert {str(one.relative_to(store)), str(two.relative_to(store))} <= faults(store).keys()
    one.write_bytes(contents[0])
    two.write_bytes(contents[1])
    (folder / "table.json").unlink()
    assert faults(store) == {str((folder / "table.json").relative_to(store)): "missing"}


def test_the_job_ends_with_3_and_a_line_for_each_fault(store: Path, capsys: pytest.CaptureFixture[str]):
    assert launch(VerifyConfig, job.run, "jobs.verify", ["--store", str(store)]) == 0
    path = next((store / "indexes").glob("*/*/row_ids-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    assert launch(VerifyConfig, job.run, "jobs.verify", ["--store", str(store)]) == 3
    assert f"damaged {path.relative_to(store)}: " in capsys.readouterr().out


def test_a_server_refuses_a_damaged_version_and_keeps_the_one_it_has(
    store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    opened, table = Store(str(store)), table_of(store)
    service = Service(str(store), table)
    old = read_current(opened, table)
    folder = store / "indexes" / table
    shutil.copytree(folder / old, folder / "newer")
    fields = json.dumps(opened.read_json(f"indexes/{table}/newer/card.json")).replace(old, "newer")
    opened.replace_json(f"indexes/{table}/newer/card.json", json.loads(fields))
    index = folder / "newer" / "index.faiss"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / "CURRENT").write_text("newer\n")
    assert not service.refresh()
    assert "is damaged: SHA-256" in caplog.text
    assert service.search(service.embed_text("a red star"), 3).index_version == old
    with pytest.raises(RunError, match="is damaged: SHA-256"):
        Service(str(store), table)
    index.write_bytes(whole)
    assert not service.refresh()  # it is not read again at every look
    monkeypatch.setattr("pipeline.serving.service.time.monotonic", lambda: time.time() + 1e9)
    assert service.refresh()
    assert service.search(service.embed_text("a red star"), 3).index_version == "newer"


def test_a_vacuum_removes_what_it_names_and_nothing_else(store: Path):
    table = table_of(store)
    waste = {
        store / "embeddings" / table / "data" / "unit=dead" / "1.parquet",
        store / "embeddings" / table / "receipts" / ".half.json.tmp",
        store / "indexes" / table / "20200101T000000Z-dead" / "index.faiss",
        store / ".probe-1",
    }
    before = {path for path in store.rglob("*") if path.is_file()}
    for path in waste:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    config = VacuumConfig(store=str(store), dry_run=True)
    assert {store / file.path for file in vacuum(config)} == waste
    assert all(path.exists() for path in waste)
    assert {store / file.path for file in vacuum(config.model_copy(update={"dry_run": False}))} == waste
    after = {path for path in store.rglob("*") if path.is_file() and "lease" not in path.parts}
    assert after == {path for path in before if "lease" not in path.parts}
    assert faults(store) == {}


def test_old_versions_and_old_runs_go_but_never_the_published_one(store: Path):
    table = table_of(store)
    folder = store / "indexes" / table
    current = (folder / "CURRENT").read_text().strip()
    for number in range(3):
        shutil.copytree(folder / current, folder / f"3000{number}")
    vacuum(VacuumConfig(store=str(store), keep_versions=2))
    assert {path.name for path in folder.iterdir()} == {current, "30002", "CURRENT", "lease"}
