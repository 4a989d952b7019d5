"""Exit 2 and one line that says what, where, wanted, got, before any work; 3 for limits; 4 for a held lease."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import build_index, embed, query
from jobs.launch import launch
from pipeline.config import EmbedConfig, IndexConfig, QueryConfig
from pipeline.lease import Lease
from pipeline.store import Store
from tests.conftest import DEMO_MODEL, encoded, write_shard


@pytest.fixture
def job(corpus: Path, tmp_path: Path) -> Callable[..., int]:
    """Run jobs.embed in this process with good flags, some of them replaced."""

    def run(**changes: str) -> int:
        flags = {
            "store": str(tmp_path / "store"),
            "model": str(DEMO_MODEL),
            "table": "t",
            "source.name": "s",
            "source.path": str(corpus),
            "source.key_column": "key",
            **changes,
        }
        arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
        return launch(EmbedConfig, embed.run, "jobs.embed", arguments)

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source.image_column": "picture"}, "no column 'picture'; it has key, image, label, number"),
        ({"source.key_column": "id"}, "no column 'id'"),
        ({"source.path": "/no/such/place/*.parquet"}, "no Parquet files at /no/such/place"),
        ({"source.path": "nosuch://bucket"}, "nosuch"),
        ({"model": "./no-such-model"}, "no such folder"),
        ({"store": "/proc/version/store"}, "cannot be written"),
        ({"no_such_flag": "1"}, "--no_such_flag"),
        ({"unit_rows": "many"}, "unit_rows"),
        ({"encode.dimensions": "65"}, "wanted at most 64, got 65"),
        ({"expected_sha256": "0" * 64}, "wanted 0000"),
        ({"expected_sha256": "what"}, "expected_sha256"),
        ({"preprocess.formats": '["JPEG", "EPS"]'}, "preprocess.formats"),
        ({"fetch.networks": '["not a network"]'}, "fetch.networks"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    job: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, said: str
):
    assert job(**changes) == 2
    line = one_line(capsys)
    assert line.startswith("jobs.embed: ")
    assert said in line
    assert not (tmp_path / "store" / "embeddings").exists()


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (b"not Parquet at all", "bad.parquet cannot be read"),
        (pa.table({"key": ["row-00003"], "image": [b""]}), "bad.parquet and again at row 3 of"),
        (pa.table({"key": pa.array([None], pa.string()), "image": [b""]}), "bad.parquet, the first at row 0"),
        (pa.table({"key": ["new"], "image": [7]}), "image_column 'image' is int64"),
    ],
)
def test_a_bad_shard_is_named(
    job: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shard: object, said: str
):
    if isinstance(shard, bytes):
        (corpus / "bad.parquet").write_bytes(shard)
    else:
        pq.write_table(shard, corpus / "bad.parquet")
    assert job() == 2
    assert said in one_line(capsys)
    assert list((tmp_path / "store").rglob("*.parquet")) == []


def test_a_held_lease_is_exit_4_naming_the_owner(
    job: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with Lease(Store(str(tmp_path / "store")), "embeddings/t"):
        assert job() == 4
    assert "is held by process" in one_line(capsys)


def test_too_many_rejects_are_exit_3(
    job: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None
):
    folder = tmp_path / "few"
    write_shard(folder / "a.parquet", 0, [encoded(1), b"text"])
    assert job(**{"source.path": str(folder)}) == 3
    assert "1 of 2 rows rejected {'not_an_image': 1}" in capsys.readouterr().err
    assert len(list((tmp_path / "store").rglob("data/**/*.parquet"))) == 1


def test_the_other_jobs_exit_alike(tmp_path: Path, demo_store: str, capsys: pytest.CaptureFixture[str]):
    empty = ["--store", str(tmp_path)]
    assert launch(IndexConfig, build_index.run, "jobs.build_index", empty) == 2
    assert "it has no tables" in one_line(capsys)
    assert launch(QueryConfig, query.run, "jobs.query", [*empty, "--text", "a"]) == 2
    assert "it has no tables" in one_line(capsys)
    assert launch(QueryConfig, query.run, "jobs.query", ["--store", demo_store, "--id", "nobody"]) == 2
    assert "id 'nobody': not in index" in one_line(capsys)


def test_a_process_exits_as_its_job_does(run_job: Callable[..., subprocess.CompletedProcess[str]]):
    done = run_job("jobs.embed", "--stroe", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jobs.embed: error parsing CLI: unrecognized arguments: --stroe x\n"
    assert run_job("jobs.embed", "--help").returncode == 0
