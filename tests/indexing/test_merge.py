import hashlib
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.errors import IncompleteError
from pipeline.filesystem import sha256_of
from pipeline.indexing import vectors as v
from pipeline.indexing.index import Index
from pipeline.indexing.merge import merge, merge_ids, merge_vectors, verify
from pipeline.indexing.partial import Partial, fill, inner_ivf
from pipeline.indexing.train import train
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from tests.indexing.conftest import made_up_vectors

MERGEABLE = [
    "Flat",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,SQ4",
    "IVF16,SQfp16",
    "IVF16_HNSW8,SQ8",
    "IVF16,PQ8",
    "IVF16,RaBitQ",
    "RR,IVF16,RaBitQ4",
    "OPQ8_32,IVF16,PQ8",
]


def partials_of(store: Store, trained: bytes, digest: str, count: int) -> list[Partial]:
    groups = v.divide(v.lay_out(read_receipts(store, table_folder("t"))), count)
    assert len(groups) == count
    return [fill(store.url, table_folder("t"), group, trained, digest, 32, f"p/{i}") for i, group in enumerate(groups)]


def trained_on(factory: str, vectors: np.ndarray) -> tuple[bytes, str]:
    trained = train(factory, vectors, vectors.shape[1], 1)
    return trained, hashlib.sha256(trained).hexdigest()


@pytest.mark.parametrize("factory", MERGEABLE)
def test_eight_merged_partials_answer_as_one_index_filled_at_once(
    store: Store, vectors: np.ndarray, tmp_path: Path, factory: str
):
    trained, digest = trained_on(factory, vectors)
    partials = partials_of(store, trained, digest, 8)
    merged = merge(store, partials[::-1], trained, digest, tmp_path)  # their order must not matter
    whole = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    if inner_ivf(whole) is None:
        whole.add(vectors)
    else:
        whole.add_with_ids(vectors, np.arange(len(vectors)))
    xq = made_up_vectors(200, 32, seed=9)
    for nprobe in (None,) if factory == "Flat" else (1, 4, 16):
        scores, ids = Index(merged, None, None, None).search(xq, 10, nprobe)
        expected_scores, expected_ids = Index(whole, None, None, None).search(xq, 10, nprobe)
        np.testing.assert_array_equal(ids, expected_ids)
        # A rotation is a matrix product whose last bit depends on how many vectors are added at once.
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-6 if factory.startswith(("RR", "OPQ")) else 0)
    exact = merge_vectors(store, partials, 32, tmp_path, tmp_path / "vectors.npy")
    np.testing.assert_allclose(exact, vectors, atol=1e-3)
    has_lists = inner_ivf(merged) is not None
    verify(
        store, Index(merged, exact if has_lists else None, None, 4 if has_lists else None), partials, trained, tmp_path
    )


def test_row_ids_are_merged_in_the_order_of_vector_ids(store: Store, vectors: np.ndarray, tmp_path: Path):
    import pyarrow.parquet as pq

    trained, digest = trained_on("Flat", vectors)
    partials = partials_of(store, trained, digest, 5)
    merge_ids(store, partials[::-1], tmp_path, tmp_path / "ids.parquet")
    expected = [
        row
        for _, _, ids in v.stream(store, table_folder("t"), v.lay_out(read_receipts(store, table_folder("t"))))
        for row in ids
    ]
    assert pq.read_table(tmp_path / "ids.parquet")["_row_id"].to_pylist() == [row.as_py() for row in expected]


def test_a_partial_of_another_training_is_refused(store: Store, vectors: np.ndarray, tmp_path: Path):
    trained, digest = trained_on("IVF16,SQ8", vectors)
    other, other_digest = trained_on("IVF16,SQ8", vectors[:700])
    partials = partials_of(store, trained, digest, 4)
    partials[2] = fill(
        store.url,
        table_folder("t"),
        v.divide(v.lay_out(read_receipts(store, table_folder("t"))), 4)[2],
        other,
        other_digest,
        32,
        "p/2",
    )
    with pytest.raises(IncompleteError, match="p/2: filled under training"):
        merge(store, partials, trained, digest, tmp_path)


def test_a_partial_that_is_lost_doubled_or_mislabelled_does_not_verify(
    store: Store, vectors: np.ndarray, tmp_path: Path
):
    trained, digest = trained_on("IVF16,SQ8", vectors)
    partials = partials_of(store, trained, digest, 4)
    lost = Index(merge(store, partials[:3], trained, digest, tmp_path), None, None, None)
    with pytest.raises(IncompleteError, match="ntotal"):
        verify(store, lost, partials, trained, tmp_path)
    doubled = [*partials[:3], partials[2]]
    with pytest.raises(IncompleteError, match="missing or doubled"):
        verify(
            store, Index(merge(store, doubled, trained, digest, tmp_path), None, None, None), doubled, trained, tmp_path
        )
    whole = Index(merge(store, partials, trained, digest, tmp_path), None, None, None)
    verify(store, whole, partials, trained, tmp_path)
    partials[2] = _mislabel_probes(store, partials[2])
    with pytest.raises(IncompleteError, match="do not find themselves"):
        verify(store, whole, partials, trained, tmp_path)


def _mislabel_probes(store: Store, partial: Partial) -> Partial:
    """Make the index look as if it held a partial's vectors under ids of others."""
    path = store.get_file(f"{partial.folder}/probes.npz", Path())
    with np.load(path) as probes:
        numbers, probed = probes["numbers"], probes["vectors"]
    np.savez(path, numbers=np.roll(numbers, 1), vectors=probed)
    return replace(partial, sha256={**partial.sha256, "probes.npz": sha256_of(path)})


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8", "RR,IVF16,RaBitQ"])
def test_rows_with_many_exact_duplicates_still_verify(tmp_path: Path, factory: str):
    from tests.indexing.conftest import write_table

    same = np.repeat(made_up_vectors(20, 32), 30, axis=0)
    store = write_table(str(tmp_path / "s"), "t", same, 100)
    trained, digest = trained_on(factory, same)
    partials = partials_of(store, trained, digest, 3)
    verify(
        store, Index(merge(store, partials, trained, digest, tmp_path), None, None, None), partials, trained, tmp_path
    )
