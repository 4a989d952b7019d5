"""Write a small store in the present format: `python tests/stores/make.py FOLDER`, from a checkout in a neutral place.

Stores of released formats are kept here, so that later versions are tested on what earlier ones wrote. The source is an
object store's, since paths of a machine mean nothing on another: corpus.parquet, as s3://images/stores/corpus.parquet.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer

HERE = Path(__file__).parent
ROWS = 40


def main(folder: Path) -> None:
    corpus = HERE / "corpus.parquet"
    if not corpus.exists():
        from jobs.demo.__main__ import figures

        rows = list(figures(ROWS, np.random.default_rng(1)))
        pq.write_table(pa.Table.from_pylist(rows), corpus, row_group_size=10)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_DEFAULT_REGION="us-east-1")
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", RAY_AUTH_MODE="disabled")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="images")
    s3.put_object(Bucket="images", Key="stores/corpus.parquet", Body=corpus.read_bytes())
    embed = {
        "store": folder, "model": "jobs/demo/model", "table": "t", "unit_rows": 20, "encode.precision": "fp32",
        "source.name": "figures", "source.path": "s3://images/stores/*.parquet", "source.key_column": "key",
        "source.keep_columns": '["caption", "colour"]',
    }  # fmt: skip
    for job, flags in (("jobs.embed", embed), ("jobs.build_index", {"store": folder})):
        subprocess.run([sys.executable, "-m", job, *(f"--{name}={value}" for name, value in flags.items())], check=True)
    server.stop()
    for lease in folder.glob("*/t/lease"):
        shutil.rmtree(lease)  # of processes of this machine
    for page in folder.glob("runs/*/report.html"):
        page.unlink()  # for people, and large


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
