"""The example notebooks, executed from top to bottom: on this machine, and on a cluster with an object store."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "jobs" / "demo" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def figures(demo_rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("figures")
    pq.write_table(pa.Table.from_pylist(demo_rows), folder / "figures.parquet", row_group_size=100)
    return str(folder / "*.parquet")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, figures: str) -> dict[str, str]:
    """What a notebook finds in its environment: one store for all, so that it is filled once."""
    return {"RAYCLIP_STORE": str(tmp_path_factory.mktemp("notebooks") / "store"), "RAYCLIP_FIGURES": figures}


def executed(path: Path, environment: dict[str, str]) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env={**os.environ, **environment})
    return notebook


def shown(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(str(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, here: dict[str, str]):
    notebook = executed(path, here)
    assert "Embedded(table='figures__" in shown(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    if path.stem == "embed_and_search":
        assert len(pictures(notebook)) == 1
    if path.stem == "encode":
        assert "query: is of space" in shown(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.fixture
def cluster(s3: str) -> Iterator[str]:
    """A Ray that was started beside the notebook; it sees the object store's address. Gives its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=4"]
    command += ["--include-dashboard=false", "--object-store-memory=268435456", "--disable-usage-stats", "--block"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield f"127.0.0.1:{port}"
    for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
        process.kill()
    head.wait(30)


def test_the_same_notebook_runs_on_a_cluster_with_an_object_store(s3: str, cluster: str, figures: str):
    addresses = {"RAYCLIP_STORE": f"{s3}/notebook-store", "RAYCLIP_RAY": cluster, "RAYCLIP_FIGURES": figures}
    notebook = executed(ROOT / "jobs/demo/notebooks/embed_and_search.ipynb", addresses)
    assert "Embedded(table='figures__" in shown(notebook)
    assert len(pictures(notebook)) == 1
    import s3fs

    kept = s3fs.S3FileSystem().find(f"{s3}/notebook-store".removeprefix("s3://"))
    assert any(path.endswith("CURRENT") for path in kept)
