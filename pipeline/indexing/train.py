"""A sample of vectors in, an empty trained index out: once per version, and its digest goes with every partial.

k-means runs in FAISS: on all GPUs where there are any, else on all CPUs, block by block over a sample that may be
memory-mapped. Centroids are spherical, since scores are inner products.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.indexing.choose import nlist, training_points
from pipeline.indexing.index import inner_ivf

LEAST_ROWS = 20_000  # codes are trained too, and take little time
HNSW_BUILD_BEAM = 200  # FAISS's 40 makes a graph of centroids in which many cannot be found


def training_rows(factory: str, n: int) -> int:
    """Say how many vectors the training of a key wants; none for Flat."""
    wanted = training_points(nlist(factory))
    return min(n, max(wanted, LEAST_ROWS)) if wanted else 0


def check_trainable(factory: str, n: int, d: int) -> None:
    """Check, without any vector, that FAISS takes a key at this width and that there are enough rows to train it on.

    Raises:
        InputError: FAISS refuses it, or there are too few.
    """
    try:
        faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:  # FAISS has no other
        raise InputError(f"factory {factory!r}: FAISS does not make it for {d} dimensions: {error}") from error
    # Product quantisers have 256 centroids of their own.
    wanted = max(nlist(factory), 256 if "PQ" in factory else 0)
    if n < wanted:
        raise InputError(f"factory {factory!r}: wanted at least {wanted} vectors to train on, got {n}")


def train(factory: str, xt: NDArray[np.float32], d: int, threads: int) -> bytes:
    """Train an index of inner product on xt (n, d), the same for the same xt; serialized by FAISS."""
    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    ivf = inner_ivf(index)
    if ivf is not None:
        ivf.cp.spherical = True
        quantizer = faiss.downcast_index(ivf.quantizer)
        if isinstance(quantizer, faiss.IndexHNSW):
            quantizer.hnsw.efConstruction = HNSW_BUILD_BEAM
        if faiss.get_num_gpus():
            on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))  # kept until training ends
            ivf.clustering_index = on_gpus
    if not index.is_trained:
        index.train(xt)
    if ivf is not None:
        ivf.clustering_index = None
    return bytes(faiss.serialize_index(index))
