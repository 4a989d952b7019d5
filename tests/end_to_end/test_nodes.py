"""A cluster of two nodes that loses the one with the encoder in mid-run, for good, and gains another."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from ray.cluster_utils import Cluster

from tests.conftest import DEMO_MODEL, ROOT, encoded, write_shard

ROWS = 3000


@pytest.fixture
def cluster():
    """A head with CPUs for reads and decoders, and a node whose one logical GPU the encoder needs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 200 << 20})
    yield cluster
    cluster.shutdown()


def add_encoder_node(cluster: Cluster):
    return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 << 20)


def test_a_node_that_leaves_takes_no_row_with_it(cluster: Cluster, tmp_path: Path):
    images = [encoded(i) for i in range(50)]
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [images[i % 50] for i in range(ROWS)], group_rows=100)
    leaving = add_encoder_node(cluster)
    cluster.wait_for_nodes()
    command = [sys.executable, "-m", "jobs.embed", "--store", str(tmp_path / "store"), "--model", str(DEMO_MODEL)]
    command += ["--table", "t", "--unit_rows", "100", "--source.name", "s", "--source.path", str(tmp_path / "corpus")]
    command += ["--source.key_column", "key", "--encode.batch_size", "4"]
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = []
    for line in job.stderr:
        log.append(line)
        if " unit=" in line:
            break
    cluster.remove_node(leaving, allow_graceful=False)
    time.sleep(2)
    add_encoder_node(cluster)
    out, rest = job.communicate(timeout=240)
    log = "".join(log) + rest
    assert job.returncode == 0, log[-4000:]
    assert f"rows in {ROWS} = embedded {ROWS} + rejected 0" in out
    pools = json.loads(log.partition("pools=")[2].partition("\n")[0])
    assert (pools["encoders"], pools["encoder_gpus"]) == (1, 1.0)
    rows = ds.dataset(tmp_path / "store/embeddings/t/data", partitioning="hive").to_table()["_row_id"].to_pylist()
    assert sorted(rows) == [f"row-{row:05d}" for row in range(ROWS)]
