"""What others make of the same vectors: a script for a Python that has one of them: `python peers.py <peer> <folder>`.

In: a folder with vectors.npy, and queries and their ten exact neighbours of both kinds. Out: a line of JSON for each
setting of the peer's own dial. Imports nothing of ours, so that it runs where only the peer is installed.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

K = 10
THREADS = 2
LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # what a dial is set to: candidates kept, or lists probed
Search = Callable[[np.ndarray, int], np.ndarray]  # queries and a setting -> ids (n, K)


def usearch(vectors: np.ndarray, dtype: str = "f32") -> Search:
    """Build usearch's HNSW, as jammi does: its own defaults, all threads."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype=dtype)
    index.add(np.arange(len(vectors)), vectors, threads=THREADS)

    def search(xq: np.ndarray, beam: int) -> np.ndarray:
        index.expansion_search = beam
        return np.asarray(index.search(xq, K, threads=THREADS).keys, np.int64)

    return search


def usearch_i8(vectors: np.ndarray) -> Search:
    """The same with 8-bit codes."""
    return usearch(vectors, "i8")


def autofaiss(vectors: np.ndarray) -> Search:
    """Have autofaiss choose and build: an HNSW graph below some memory; its dial is efSearch or nprobe."""
    import faiss
    from autofaiss import build_index

    faiss.omp_set_num_threads(THREADS)
    memory = {"max_index_memory_usage": "16G", "current_memory_available": "18G"}
    index, _ = build_index(vectors, save_on_disk=False, metric_type="ip", nb_cores=THREADS, **memory)

    def search(xq: np.ndarray, setting: int) -> np.ndarray:
        faiss.ParameterSpace().set_index_parameter(index, "efSearch" if hasattr(index, "hnsw") else "nprobe", setting)
        return np.asarray(index.search(xq, K)[1])

    return search


def lancedb_ivf_pq(vectors: np.ndarray) -> Search:
    """Build LanceDB's IVF_PQ; its dial is nprobes and how many times the rows wanted are refined."""
    return _lancedb(vectors, "IVF_PQ", lambda query, setting: query.nprobes(setting).refine_factor(setting))


def lancedb_ivf_hnsw_sq(vectors: np.ndarray) -> Search:
    """Build LanceDB's IVF_HNSW_SQ; its dial is ef in each of all its lists, with refining of four times the rows."""
    return _lancedb(
        vectors, "IVF_HNSW_SQ", lambda query, setting: query.nprobes(1000).ef(4 * K + setting).refine_factor(4)
    )


def _lancedb(vectors: np.ndarray, kind: str, dialled: Callable[..., Any]) -> Search:  # their query builders
    import lancedb
    import pyarrow as pa

    folder = tempfile.mkdtemp(dir=".")
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    rows = pa.table({"id": np.arange(len(vectors)), "vector": values})
    table = lancedb.connect(folder).create_table("t", rows)
    table.create_index(metric="dot", vector_column_name="vector", index_type=kind)
    pool = ThreadPoolExecutor(THREADS)

    def one(query: np.ndarray, setting: int) -> list[int]:
        found = dialled(table.search(query).distance_type("dot").limit(K), setting).select(["id"]).to_arrow()
        ids: list[int] = (found["id"].to_pylist() + [-1] * K)[:K]
        return ids

    def search(xq: np.ndarray, setting: int) -> np.ndarray:
        return np.array(list(pool.map(lambda query: one(query, setting), xq)), np.int64)

    return search


PEERS = {each.__name__: each for each in (usearch, usearch_i8, autofaiss, lancedb_ivf_pq, lancedb_ivf_hnsw_sq)}


def measured(search: Search, folder: Path, ladder: tuple[int, ...]) -> Iterator[dict[str, float]]:
    """Turn a dial, and measure recall of each kind of query, and queries a second of both."""
    kinds = {
        kind: (np.load(folder / f"{kind}.npy"), np.load(folder / f"{kind}-exact.npy")) for kind in ("image", "text")
    }
    for setting in ladder:
        found: dict[str, float] = {"setting": setting}
        for kind, (xq, exact) in kinds.items():
            search(xq[:50], setting)
            started = time.perf_counter()
            ids = search(xq, setting)
            seconds = time.perf_counter() - started
            found[kind] = round(float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, ids, strict=True)])), 4)
            found[f"qps_{kind}"] = round(len(xq) / seconds, 1)
        yield found
        if min(found["image"], found["text"]) > 0.99:
            return


def main(name: str, folder: Path) -> None:
    """Build, and print what is measured."""
    vectors = np.load(folder / "vectors.npy")
    started = time.perf_counter()
    search = PEERS[name](vectors)
    print(json.dumps({"build_s": round(time.perf_counter() - started, 1)}), flush=True)
    for found in measured(search, folder, LADDER):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
