"""The same vectors and queries given to others, and how fast each of them finds as much: QPS at equal recall.

In: an open index and queries with their exact neighbours. Out: a `Reached` for every peer and for us. A peer runs in a
process and a Python of its own, which uv installs (jobs/benchmark/peers.py); both kinds of query count apart.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from jobs.benchmark import peers
from jobs.benchmark.config import IndexBenchmarkConfig
from pipeline.searching.index import OpenIndex
from pipeline.store import Store

# What each is installed with; all of them bring NumPy.
PACKAGES = {
    "usearch": ("usearch==2.26.6",),
    "usearch_i8": ("usearch==2.26.6",),
    "autofaiss": ("autofaiss==2.18.0", "faiss-cpu==1.15.1", "pyarrow<22"),  # it has NumPy 1, which later ones refuse
    "lancedb_ivf_pq": ("lancedb==0.40.0", "numpy"),
    "lancedb_ivf_hnsw_sq": ("lancedb==0.40.0", "numpy"),
}
OUR_LADDER = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # nprobe


@dataclass(frozen=True)
class Reached:
    """The most queries a second at which an index finds enough, by kind of query; None where it never does."""

    name: str
    build_s: float
    qps_image: float | None
    qps_text: float | None
    settings: dict[str, float | None]  # of its dial, there
    curve: list[dict[str, float]]


def compare(
    config: IndexBenchmarkConfig,
    store: Store,
    opened: OpenIndex,
    fresh: dict[str, NDArray[np.float32]],
    exact: dict[str, NDArray[np.int64]],
) -> list[Reached]:
    """Measure ourselves, then every peer, on the same two threads."""
    folder = Path(config.out) / f"index-peers-{config.rows}x{config.dimensions}"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, xq in fresh.items():
        np.save(folder / f"{kind}.npy", xq)
        np.save(folder / f"{kind}-exact.npy", exact[kind])
    _write_vectors(opened, folder / "vectors.npy")
    faiss.omp_set_num_threads(peers.THREADS)

    def search(xq: NDArray[np.float32], nprobe: int) -> NDArray[np.int64]:
        return opened.index.search(xq, peers.K, nprobe=nprobe, margin=opened.card.margin)[1]

    ours = list(peers.measured(search, folder, OUR_LADDER))
    reached = [_reached(f"rayclip {opened.card.factory}", opened.card.build_seconds, ours, config.recall_target)]
    for name in config.peers:
        packages = [part for package in PACKAGES[name] for part in ("--with", package)]
        uv = [sys.executable, "-m", "uv", "run", "--no-project", "--isolated", "--quiet", "--python", sys.executable]
        script = [str(Path(peers.__file__).absolute()), name, str(folder.absolute())]
        ran = subprocess.run(
            [*uv, *packages, "python", *script], stdout=subprocess.PIPE, text=True, cwd=folder, check=True
        )
        built, *curve = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        reached.append(_reached(name, built["build_s"], curve, config.recall_target))
        print(reached[-1], flush=True)
    return reached


def _reached(name: str, build_s: float, curve: list[dict[str, float]], target: float) -> Reached:
    qps: dict[str, float | None] = {}
    settings: dict[str, float | None] = {}
    for kind in ("image", "text"):
        enough = [(point[f"qps_{kind}"], point["setting"]) for point in curve if point[kind] >= target]
        qps[kind], settings[kind] = max(enough, default=(None, None))
    return Reached(name, build_s, qps["image"], qps["text"], settings, curve)


def _write_vectors(opened: OpenIndex, target: Path) -> None:
    """Write the index's vectors (n, d) as float32, for programs that take nothing smaller."""
    vectors = np.lib.format.open_memmap(target, "w+", np.float32, (opened.card.end, opened.card.d))
    for ids, block in opened.index.exact.blocks():
        vectors[ids] = block
    vectors.flush()
