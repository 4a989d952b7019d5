import re

import faiss
import pytest

from pipeline.errors import InputError
from pipeline.indexing.choose import check_mergeable, choose_factory, cost, index_bytes, nlist, rerank
from tests.indexing.conftest import MERGEABLE, made_up_vectors

GIB = 1 << 30


@pytest.mark.parametrize(
    ("n", "d", "budget", "factory"),
    [
        (1, 512, GIB, "Flat"),
        (99_999, 512, GIB, "Flat"),
        (100_000, 512, GIB, "IVF1265,SQfp16"),
        (1_000_000, 512, GIB, "IVF4000,SQfp16"),
        (1_000_000, 512, 600 << 20, "IVF4000,SQ8"),
        (1_000_000, 512, 400 << 20, "RR,IVF4000,RaBitQ4"),
        (1_000_000, 512, 100 << 20, "RR,IVF4000,RaBitQ"),
        (1_000_000, 512, 50 << 20, "OPQ32,IVF4000,PQ32"),
        (5_000_000, 512, 8 * GIB, "IVF8944_HNSW32,SQfp16"),
        (10_000_000, 768, 8 * GIB, "IVF12649_HNSW32,SQ8"),
        (50_000_000, 768, 64 * GIB, "IVF65536_HNSW32,SQ8"),
        (100_000_000, 768, 64 * GIB, "RR,IVF262144_HNSW32,RaBitQ4"),
        (2_000_000_000, 768, 900 * GIB, "RR,IVF1048576_HNSW32,RaBitQ4"),
    ],
)
def test_the_most_exact_key_that_fits_is_chosen(n: int, d: int, budget: int, factory: str):
    assert choose_factory(n, d, budget) == factory


def test_more_lists_are_made_for_a_latency_that_few_do_not_keep_to_as_far_as_rows_last():
    def lists(budget_ms: float | None) -> int:
        return nlist(choose_factory(1_000_000, 512, GIB, budget_ms))

    assert lists(None) == lists(1000.0) == 4000
    assert lists(0.5) > 4000
    assert lists(0.0001) == 16_000  # with 32,000, 39 points would be left for none
    assert choose_factory(50_000, 512, GIB) == "Flat"
    assert nlist(choose_factory(50_000, 512, GIB, 0.5)) > 0


@pytest.mark.parametrize("factory", [key for key in MERGEABLE if not key.startswith("PCA")])
def test_what_an_index_takes_is_what_faiss_writes(factory: str):
    n, d = 5000, 32
    vectors = made_up_vectors(n, d)
    index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    written = len(faiss.serialize_index(index))
    prefix = 4 * d * d if factory.startswith(("RR", "OPQ")) else 0
    codebook = 4 * 256 * d if "PQ" in factory.rpartition(",")[2] else 0
    assert written - prefix - codebook == pytest.approx(index_bytes(factory, n, d), rel=0.02, abs=4096)


def test_what_a_build_takes_grows_with_rows_lists_and_width():
    small, large = cost("IVF4000,SQ8", 1_000_000, 512, 1500), cost("IVF4000,SQ8", 2_000_000, 512, 1500)
    assert large.multiply_adds > small.multiply_adds
    assert small.vectors_bytes == 1_000_000 * 512 * 2
    assert cost("IVF4000,SQ8", 1_000_000, 1024, 1500).multiply_adds == 2 * small.multiply_adds
    assert small.seconds(1e11, 1e9) > small.multiply_adds / 1e11
    assert cost("Flat", 1000, 512, 10).vectors_bytes == 0


def test_a_budget_that_nothing_fits_is_refused_with_what_it_would_take():
    with pytest.raises(InputError, match="need at least") as error:
        choose_factory(10**9, 768, GIB)
    least = int(re.search(r"need at least (\d+) bytes", str(error.value)).group(1))
    assert choose_factory(10**9, 768, least)


@pytest.mark.parametrize("n", [10, 150_000, 3_000_000])
@pytest.mark.parametrize("budget", [8 * GIB, 2 * GIB])
def test_whatever_is_chosen_can_be_merged_and_faiss_knows_it(n: int, budget: int):
    factory = check_mergeable(choose_factory(n, 64, budget))
    assert faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT).d == 64


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("HNSW32", "graphs cannot be merged"),
        ("HNSW32,Flat", "graphs cannot be merged"),
        ("NSG32", "graphs cannot be merged"),
        ("IDMap,HNSW32", "ids of partial indexes collide"),
        ("IDMap2,IVF16,SQ8", "ids of partial indexes collide"),
        ("IDMap2,Flat", "ids of partial indexes collide"),
        ("IVF16,FlatPanorama4", "corrupted"),
        ("IVF16,PQ8x4fs", "FastScan"),
        ("IVF16,PQ8x4fsr", "FastScan"),
        ("IVF16,RaBitQfs", "FastScan"),
        ("IVF16,RaBitQfs4", "FastScan"),
        ("IVF16,SQ8,RFlat", "only its first stage"),
        ("IVF16,SQ8,Refine(SQfp16)", "only its first stage"),
        ("SQ8", "without inverted lists"),
        ("PQ8", "without inverted lists"),
        ("IVF0,Flat", "not known"),
        ("nonsense", "not known"),
        ("", "not known"),
    ],
)
def test_keys_that_do_not_merge_exactly_are_refused_with_the_reason(factory: str, reason: str):
    with pytest.raises(InputError, match=reason):
        check_mergeable(factory)


def test_lists_and_exactness_are_read_from_the_key():
    assert [nlist(key) for key in ("Flat", "IVF16,Flat", "RR,IVF65536_HNSW32,RaBitQ4")] == [0, 16, 65536]
    keys = ("Flat", "IVF16,Flat", "IVF16,SQfp16", "IVF16,SQ8", "PCA16,IVF4,Flat", "PCA16,IVF4,SQfp16")
    assert [rerank(key) for key in keys] == [None, None, 1, 4, 4, 4]
