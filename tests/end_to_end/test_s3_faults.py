"""An S3 server that fails in every way it may, one request in three: nothing is lost, doubled or different."""

import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from pipeline.errors import LeaseHeldError
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import live_receipts, read_checked, read_receipts
from tests.conftest import DEMO_MODEL, encoded, write_shard
from tests.faults import KINDS, FaultyProxy

ROUNDS = int(os.environ.get("RAYCLIP_RACES", "5"))  # the full number is 100
RACERS = 8


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share=0.05, seed=20261121, hold_s=0.2) as proxy:
        yield proxy


def upload_corpus(bucket: str, folder: str, tmp_path) -> str:
    """Four shards of 30 pictures, one of them with a null and a text."""
    store = Store(bucket)
    for number in range(4):
        images: list[bytes | None] = [encoded(100 * number + i) for i in range(30)]
        if number == 1:
            images[3], images[5] = None, b"text"
        path = write_shard(tmp_path / f"{number}.parquet", 30 * number, images, group_rows=10)
        store.replace(f"{folder}/corpus/{number}.parquet", path.read_bytes())
    return f"{bucket}/{folder}"


def rows_of(url: str) -> pa.Table:
    """Everything that the receipts name, data and rejects, by row id."""
    store, folder = Store(url), "embeddings/t"
    receipts = live_receipts(read_receipts(store, folder).values()).values()
    data = pa.concat_tables([read_checked(store, folder, file) for r in receipts for file in r.data])
    rejects = pa.concat_tables([read_checked(store, folder, file) for r in receipts for file in r.rejects])
    assert sum(r.rows_in for r in receipts) == data.num_rows + rejects.num_rows == 120
    return data.sort_by("_row_id")


def test_a_backfill_over_a_failing_store_is_byte_for_byte_the_one_over_a_good_store(
    s3: str, proxy: FaultyProxy, tmp_path, run_job: Callable[..., subprocess.CompletedProcess[str]]
):
    url = upload_corpus(s3, "faults", tmp_path)
    flags = {
        "model": str(DEMO_MODEL), "table": "t", "unit_rows": "20", "max_reject_fraction": "0.1",
        "source.name": "s", "source.path": f"{url}/corpus", "source.key_column": "key",
        "source.keep_columns": '["label"]',
        "index.text_queries": "none",
        "encode.precision": "fp32", "encode.batch_size": "1",  # so that a vector does not depend on its neighbours
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    good = run_job("jobs.backfill", *arguments, "--store", f"{url}/good")
    assert good.returncode == 0, good.stderr[-3000:]
    bad = run_job("jobs.backfill", *arguments, "--store", f"{url}/bad", AWS_ENDPOINT_URL=proxy.url, timeout_s=280)
    assert bad.returncode == 0, bad.stderr[-3000:]
    assert "rows in 120 = embedded 118 + rejected 2" in bad.stdout
    assert all(proxy.injected[kind] for kind in set(KINDS) - {"409"}), proxy.injected
    assert rows_of(f"{url}/bad").equals(rows_of(f"{url}/good"))
    store = Store(f"{url}/bad")
    receipts = read_receipts(store, "embeddings/t").values()
    named = {file.path for r in receipts for file in (*r.data, *r.rejects)}
    found = [path for path in store.files("embeddings/t") if path.startswith(("data/", "rejects/"))]
    assert sorted(found) == sorted(named)


def race(url: str, endpoint: str, number: int, barrier, wins) -> None:
    """Try for a lease and for a receipt in every round; note which were won."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    store = Store(url)
    for turn in range(ROUNDS):
        barrier.wait()
        lease = Lease(store, f"race/{turn}")
        try:
            while not lease.take():
                pass
            wins.append(("lease", turn, number))
        except LeaseHeldError:
            pass
        try:
            store.create(f"race/{turn}/receipt.json", b"%d" % number)
            wins.append(("receipt", turn, number))
        except FileExistsError:
            pass
        barrier.wait()  # a lease is held until the round is over


def test_of_eight_processes_one_wins_each_lease_and_each_receipt(s3: str, proxy: FaultyProxy):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier, wins = manager.Barrier(RACERS), manager.list()
        racers = [
            context.Process(target=race, args=(f"{s3}/races", proxy.url, number, barrier, wins))
            for number in range(RACERS)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [racer.exitcode for racer in racers] == [0] * RACERS
        won = list(wins)
    assert sorted((what, turn) for what, turn, _ in won) == sorted(
        (what, turn) for what in ("lease", "receipt") for turn in range(ROUNDS)
    )
    store = Store(f"{s3}/races")
    for what, turn, number in won:
        if what == "receipt":
            assert store.read(f"race/{turn}/receipt.json") == b"%d" % number
    assert proxy.injected["409"] + proxy.injected["late"] > 0


def test_a_store_without_conditional_writes_is_refused_or_taken_at_your_word(
    s3: str, tmp_path, run_job: Callable[..., subprocess.CompletedProcess[str]]
):
    url = upload_corpus(s3, "plain", tmp_path)
    flags = [
        "--store",
        f"{url}/store",
        "--model",
        str(DEMO_MODEL),
        "--source.name",
        "s",
        "--source.path",
        f"{url}/corpus",
    ]
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share=0.0, strip_conditions=True) as plain:
        refused = run_job("jobs.embed", *flags, AWS_ENDPOINT_URL=plain.url)
        assert refused.returncode == 2
        assert re.search(r"has no conditional writes.* --single_writer", refused.stderr.splitlines()[-1])
        assert Store(f"{url}/store").files("") == {}
        taken = run_job("jobs.embed", *flags, "--single_writer", AWS_ENDPOINT_URL=plain.url)
    assert taken.returncode == 0, taken.stderr[-2000:]
    assert "rows in 120 = embedded 118" in taken.stdout
