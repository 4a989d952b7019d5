import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipeline.exchange.projection import principal_plane


def test_coordinates_are_those_of_a_whole_decomposition():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 12)) * np.arange(12, 0, -1) + 5).astype(np.float32)
    plane = principal_plane((vectors[start : start + 77] for start in range(0, 500, 77)), 12)
    found, wanted = plane(vectors), PCA(2).fit_transform(vectors.astype(np.float64))
    assert found.dtype == np.float32
    for column in range(2):
        sign = np.sign(found[:, column] @ wanted[:, column])
        assert np.allclose(found[:, column], sign * wanted[:, column], atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(0, 5), (1, 5), (4, 1), (4, 2)])
def test_few_vectors_and_few_dimensions_have_coordinates_too(n: int, d: int):
    vectors = np.random.default_rng(1).standard_normal((n, d)).astype(np.float32)
    found = principal_plane([vectors], d)(vectors)
    assert found.shape == (n, 2)
    assert np.isfinite(found).all()
    assert d > 1 or not found[:, 1].any()
