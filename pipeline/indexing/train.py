"""A sample of vectors in, an empty trained index out: once per version, and its digest goes with every partial."""

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.indexing.choose import POINTS_PER_CENTROID, nlist


def training_rows(factory: str, n: int) -> int:
    """Say how many vectors the training of a key wants; none for Flat."""
    wanted = 2 * POINTS_PER_CENTROID * nlist(factory)
    return min(n, max(wanted, 20_000)) if wanted else 0


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
    """Train an index of inner product on xt (n, d); serialized by FAISS."""
    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(np.ascontiguousarray(xt))
    return bytes(faiss.serialize_index(index))
