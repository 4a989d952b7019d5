import hashlib
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.errors import IncompleteError
from pipeline.filesystem import sha256_of
from pipeline.indexing import vectors as v
from pipeline.indexing.build import exact_of
from pipeline.indexing.index import Index, inner_ivf
from pipeline.indexing.lists import read_lists
from pipeline.indexing.merge import merge, verify
from pipeline.indexing.partial import LISTS, Partial, fill
from pipeline.indexing.train import train
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from tests.indexing.conftest import MERGEABLE, made_up_vectors, write_table


def spans_of(store: Store) -> list[v.Span]:
    return v.lay_out(read_receipts(store, table_folder("t")).values())


def partials_of(store: Store, trained: bytes, digest: str, count: int, folder: str = "p") -> list[Partial]:
    groups = v.divide(spans_of(store), count)
    assert len(groups) == count
    source = (store.url, table_folder("t"))
    return [fill(*source, group, trained, digest, 32, f"{folder}/{i}") for i, group in enumerate(groups)]


def trained_on(factory: str, vectors: np.ndarray) -> tuple[bytes, str]:
    trained = train(factory, vectors, vectors.shape[1], 1)
    return trained, hashlib.sha256(trained).hexdigest()


def index_of(store: Store, partials: list[Partial], trained: bytes, digest: str, scratch: Path) -> Index:
    merged = merge(store, partials, trained, digest, scratch, scratch / "index.faiss")
    return Index(merged, exact_of(store, partials, scratch))


def merged_by_faiss(store: Store, partials: list[Partial], trained: bytes) -> faiss.Index:
    """What FAISS's own merge in memory makes of the same lists."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    ivf = inner_ivf(index)
    for partial in partials:
        lists = faiss.read_InvertedLists(faiss.FileIOReader(store.path(f"{partial.folder}/{LISTS}")))
        ivf.invlists.merge_from(lists, 0)
    index.ntotal = ivf.ntotal = ivf.invlists.compute_ntotal()
    return index


@pytest.mark.parametrize("factory", MERGEABLE)
def test_merged_partials_answer_as_one_index_in_memory_in_a_file_and_mapped(
    store: Store, vectors: np.ndarray, tmp_path: Path, factory: str
):
    trained, digest = trained_on(factory, vectors)
    partials = partials_of(store, trained, digest, 8)
    mapped = index_of(store, partials[::-1], trained, digest, tmp_path)  # their order must not matter
    exact = mapped.exact
    (whole,) = partials_of(store, trained, digest, 1, "whole")
    (tmp_path / "whole").mkdir()
    monolithic = index_of(store, [whole], trained, digest, tmp_path / "whole")
    others = {
        "mapped": mapped.whole,
        "in a file, read": faiss.read_index(str(tmp_path / "index.faiss")),
        "in memory": mapped.whole if factory == "Flat" else merged_by_faiss(store, partials, trained),
    }
    xq = made_up_vectors(200, 32, seed=9)
    for nprobe in (None,) if factory == "Flat" else (1, 4, 16):
        expected_scores, expected_ids = monolithic.search(xq, 10, nprobe=nprobe)
        for way, merged in others.items():
            scores, ids = Index(merged, exact).search(xq, 10, nprobe=nprobe)
            np.testing.assert_array_equal(ids, expected_ids, err_msg=way)
            np.testing.assert_array_equal(scores, expected_scores, err_msg=way)
    np.testing.assert_allclose(exact.take(np.arange(len(vectors))), vectors, atol=1e-3)
    verify(store, mapped, partials, trained, tmp_path)


@pytest.mark.parametrize("factory", [key for key in MERGEABLE if key != "Flat" and "HNSW" not in key])
def test_one_index_is_what_faiss_makes_of_all_vectors_at_once(
    store: Store, vectors: np.ndarray, tmp_path: Path, factory: str
):
    trained, digest = trained_on(factory, vectors)
    ours = index_of(store, partials_of(store, trained, digest, 4), trained, digest, tmp_path)
    theirs = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    theirs.add_with_ids(vectors, np.arange(len(vectors)))
    xq = made_up_vectors(200, 32, seed=9)
    params = faiss.SearchParametersIVF(nprobe=4)
    if isinstance(theirs, faiss.IndexPreTransform):
        params = faiss.SearchParametersPreTransform(index_params=params)
    expected_scores, expected_ids = theirs.search(xq, 10, params=params)
    scores, ids = ours.search(xq, 10, nprobe=4)
    # A rotation is a matrix product whose last bit depends on how many vectors are added at once.
    has_rotation = factory.startswith(("RR", "OPQ", "PCA"))
    assert (ids == expected_ids).mean() >= (0.995 if has_rotation else 1)
    same = ids == expected_ids
    np.testing.assert_allclose(scores[same], expected_scores[same], rtol=1e-3 if has_rotation else 0)


def test_vectors_lie_in_the_lists_that_are_truly_nearest_whatever_the_coarse_quantiser_finds(
    store: Store, vectors: np.ndarray, tmp_path: Path
):
    trained, digest = trained_on("IVF40_HNSW4,Flat", vectors)
    index = index_of(store, partials_of(store, trained, digest, 2), trained, digest, tmp_path)
    ivf = inner_ivf(index.whole)
    centroids = faiss.downcast_index(faiss.downcast_index(ivf.quantizer).storage).reconstruct_n(0, 40)
    nearest = np.argmax(vectors @ centroids.T, axis=1)
    for number in range(40):
        size = ivf.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) if size else np.empty(0, np.int64)
        assert set(ids.tolist()) == set(np.flatnonzero(nearest == number).tolist())


def test_a_partial_of_another_training_is_refused(store: Store, vectors: np.ndarray, tmp_path: Path):
    trained, digest = trained_on("IVF16,SQ8", vectors)
    other, other_digest = trained_on("IVF16,SQ8", vectors[:700])
    partials = partials_of(store, trained, digest, 4)
    group = v.divide(spans_of(store), 4)[2]
    partials[2] = fill(store.url, table_folder("t"), group, other, other_digest, 32, "p/2")
    with pytest.raises(IncompleteError, match="p/2: filled under training"):
        index_of(store, partials, trained, digest, tmp_path)


def test_a_partial_that_is_lost_doubled_or_mislabelled_does_not_verify(
    store: Store, vectors: np.ndarray, tmp_path: Path
):
    trained, digest = trained_on("IVF16,SQ8", vectors)
    partials = partials_of(store, trained, digest, 4)
    with pytest.raises(IncompleteError, match="ntotal"):
        verify(store, index_of(store, partials[:3], trained, digest, tmp_path), partials, trained, tmp_path)
    doubled = [*partials[:3], partials[2]]
    with pytest.raises(IncompleteError, match="missing, doubled or deleted"):
        verify(store, index_of(store, doubled, trained, digest, tmp_path), doubled, trained, tmp_path)
    whole = index_of(store, partials, trained, digest, tmp_path)
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
    same = np.repeat(made_up_vectors(20, 32), 30, axis=0)
    store = write_table(str(tmp_path / "s"), "t", same, 100)
    trained, digest = trained_on(factory, same)
    partials = partials_of(store, trained, digest, 3)
    verify(store, index_of(store, partials, trained, digest, tmp_path), partials, trained, tmp_path)


def test_lists_in_a_file_are_byte_for_byte_what_faiss_writes(store: Store, vectors: np.ndarray, tmp_path: Path):
    trained, digest = trained_on("RR,IVF16,RaBitQ4", vectors)
    partials = partials_of(store, trained, digest, 3)
    index_of(store, partials, trained, digest, tmp_path)
    faiss.write_index(merged_by_faiss(store, partials, trained), str(tmp_path / "theirs.faiss"))
    assert (tmp_path / "index.faiss").read_bytes() == (tmp_path / "theirs.faiss").read_bytes()
    mapped = read_lists(Path(store.path(f"{partials[0].folder}/{LISTS}")))
    assert isinstance(faiss.downcast_InvertedLists(mapped), faiss.OnDiskInvertedLists)
