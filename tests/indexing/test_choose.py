import faiss
import pytest

from pipeline.errors import InputError
from pipeline.indexing.choose import check_mergeable, choose_factory, is_exact, nlist

GIB = 1 << 30


@pytest.mark.parametrize(
    ("n", "d", "budget", "factory"),
    [
        (1, 512, GIB, "Flat"),
        (99_999, 512, GIB, "Flat"),
        (100_000, 512, GIB, "IVF1265,SQ8"),
        (1_000_000, 512, GIB, "IVF4000,SQ8"),
        (1_000_000, 512, 400 << 20, "RR,IVF4000,RaBitQ4"),
        (10_000_000, 768, 8 * GIB, "IVF65536_HNSW32,SQ8"),
        (100_000_000, 768, 64 * GIB, "RR,IVF262144_HNSW32,RaBitQ4"),
    ],
)
def test_the_most_exact_key_that_fits_is_chosen(n: int, d: int, budget: int, factory: str):
    assert choose_factory(n, d, budget) == factory


def test_a_budget_that_nothing_fits_is_refused_with_what_it_would_take():
    with pytest.raises(InputError, match="need at least"):
        choose_factory(10**9, 768, GIB)


@pytest.mark.parametrize("n", [10, 150_000, 3_000_000])
@pytest.mark.parametrize("budget", [8 * GIB, 2 * GIB])
def test_whatever_is_chosen_can_be_merged_and_faiss_knows_it(n: int, budget: int):
    factory = check_mergeable(choose_factory(n, 64, budget))
    assert faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT).d == 64


@pytest.mark.parametrize(
    "factory",
    [
        "HNSW32",
        "IDMap2,IVF16,SQ8",
        "IVF16,PQ8x4fs",
        "IVF16,FlatPanorama4",
        "IVF16,SQ8,RFlat",
        "IVF16,SQ8,Refine(SQfp16)",
        "IVF16,RaBitQfs",
        "SQ8",
        "IVF0,Flat",
        "NSG32",
        "nonsense",
        "",
    ],
)
def test_keys_that_do_not_merge_exactly_are_refused(factory: str):
    with pytest.raises(InputError, match="do not merge exactly"):
        check_mergeable(factory)


def test_lists_and_exactness_are_read_from_the_key():
    assert [nlist(key) for key in ("Flat", "IVF16,Flat", "RR,IVF65536_HNSW32,RaBitQ4")] == [0, 16, 65536]
    assert [is_exact(key) for key in ("Flat", "IVF16,Flat", "IVF16,SQ8", "PCA16,IVF4,Flat")] == [
        True,
        True,
        False,
        False,
    ]
