"""What tests share: a real local Ray, a real S3 server on loopback, the demo's model, and corpora made on the spot."""

import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # before any import of ray
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="rayclip-cache-")  # what other runs found out is not ours

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from moto.server import ThreadedMotoServer
from PIL import Image

ROOT = Path(__file__).parent.parent
DEMO_MODEL = ROOT / "jobs" / "demo" / "model"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A moto S3 server; its environment is set before Ray starts, so that workers see it too. Gives a bucket's URL."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    boto3.client("s3").create_bucket(Bucket="images")
    yield "s3://images"
    server.stop()


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """One Ray for all tests that compute in this process."""
    ray.init(
        address="local",  # not a cluster that happens to run here
        num_cpus=4,
        object_store_memory=256 << 20,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(seed: int, width: int = 80, height: int = 60, kind: str = "JPEG", **options: object) -> bytes:
    """A small picture with coarse random colours, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return saved(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), kind, **options)


def write_shard(path: Path, first: int, images: list[bytes | None], group_rows: int = 50) -> Path:
    """A shard with a key, the images, and two columns to keep."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = range(first, first + len(images))
    table = pa.table(
        {
            "key": pa.array([f"row-{row:05d}" for row in rows]),
            "image": pa.array(images, pa.binary()),
            "label": pa.array([("cat", "dog", None)[row % 3] for row in rows]),
            "number": pa.array(list(rows), pa.int32()),
        }
    )
    pq.write_table(table, path, row_group_size=group_rows)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three shards of 40 rows: five null, cut short, or text posing as an image."""
    for number in range(3):
        images: list[bytes | None] = [encoded(100 * number + i) for i in range(40)]
        if number == 1:
            images[3], images[17] = None, None
            images[5], images[29] = images[5][:-100], b"this is a text file"
            images[39] = b""
        write_shard(tmp_path / "corpus" / f"shard-{number}.parquet", 40 * number, images, group_rows=10)
    return tmp_path / "corpus"


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a job as people do, in a process of its own."""

    def run(*arguments: str, timeout_s: float = 150, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def light_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process encode by something that starts at once, where the vectors are not the question."""
    from pipeline.embedding.dataflow import dataflow
    from tests.light import LightEncode

    monkeypatch.setattr("pipeline.embedding.run.dataflow", partial(dataflow, encode=LightEncode))


@pytest.fixture(scope="session")
def demo_rows() -> list[dict]:
    """Three hundred drawn pictures, some of them broken."""
    from jobs.demo.__main__ import figures

    return list(figures(300, np.random.default_rng(5)))


@pytest.fixture(scope="session")
def demo_store(local_ray: None, demo_rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small published store of the demo's pictures, made once, as the jobs make it."""
    from pipeline.config import EmbedConfig, IndexConfig, SourceConfig
    from pipeline.embedding.run import embed
    from pipeline.indexing.run import build

    folder = tmp_path_factory.mktemp("demo")
    pq.write_table(pa.Table.from_pylist(demo_rows), folder / "figures.parquet", row_group_size=50)
    embed(
        EmbedConfig(
            store=str(folder / "store"),
            model=str(DEMO_MODEL),
            source=SourceConfig(
                name="figures",
                path=str(folder / "figures.parquet"),
                key_column="key",
                keep_columns=("caption", "colour"),
            ),
            unit_rows=100,
        )
    )
    build(IndexConfig(store=str(folder / "store")))
    return str(folder / "store")
