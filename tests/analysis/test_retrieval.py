import numpy as np
import pytest

from pipeline.analysis import retrieval as module
from pipeline.analysis.retrieval import KS, retrieval
from pipeline.errors import InputError


def made(images: int, captions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(captions, 16)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    of = np.concatenate([np.arange(captions), rng.integers(captions, size=images - captions)])
    rng.shuffle(of)
    pictures = (texts[of] + 0.5 * rng.normal(size=(images, 16))).astype(np.float32)
    return pictures / np.linalg.norm(pictures, axis=1, keepdims=True), texts, of


def obvious(pictures: np.ndarray, texts: np.ndarray, of: np.ndarray) -> tuple[dict, dict, float, float]:
    """Sort everything."""
    scores = pictures.astype(np.float64) @ texts.T.astype(np.float64)
    to_image = [
        1 + min(np.flatnonzero(of[np.argsort(-scores[:, text], kind="stable")] == text)) for text in range(len(texts))
    ]
    to_text = [1 + list(np.argsort(-row, kind="stable")).index(of[i]) for i, row in enumerate(scores)]

    def at(ranks: list[int]) -> dict[int, float]:
        return {k: float(np.mean([rank <= k for rank in ranks])) for k in KS}

    return at(to_image), at(to_text), float(np.median(to_image)), float(np.median(to_text))


@pytest.mark.parametrize("tile", [7, 4096])
@pytest.mark.parametrize(("images", "captions"), [(1, 1), (60, 60), (120, 45)])
def test_both_directions_are_those_of_sorting_everything(
    images: int, captions: int, tile: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "TILE", tile)
    pictures, texts, of = made(images, captions)
    found = retrieval(pictures, texts, of)
    to_image, to_text, image_rank, text_rank = obvious(pictures, texts, of)
    assert found.text_to_image.recall == pytest.approx(to_image)
    assert found.image_to_text.recall == pytest.approx(to_text)
    assert (found.text_to_image.median_rank, found.image_to_text.median_rank) == (image_rank, text_rank)
    if images > 1:
        assert 0 < found.text_to_image.recall[1] < 1


def test_equal_pictures_do_not_stand_in_each_others_way():
    pictures, texts, of = made(10, 5)
    twice = retrieval(np.concatenate([pictures, pictures]), texts, np.concatenate([of, of]))
    once = retrieval(pictures, texts, of)
    assert twice.image_to_text == once.image_to_text


@pytest.mark.parametrize("n", [20, 1000])
def test_a_model_that_gives_everything_the_same_vector_finds_nothing(n: int):
    same = np.repeat(made(1, 1)[1], n, axis=0)
    found = retrieval(same, same, np.arange(n))
    assert found.text_to_image == found.image_to_text
    assert (found.text_to_image.recall[10], found.text_to_image.median_rank) == (0.0, n)


def test_captions_of_one_vector_are_no_help_to_each_other():
    pictures, texts, of = made(30, 30)
    twice = retrieval(np.repeat(pictures, 2, axis=0), np.repeat(texts, 2, axis=0), np.repeat(2 * of, 2) + [0, 1] * 30)
    assert twice.image_to_text.recall[1] == 0.0


def test_nothing_and_captions_without_pictures_are_refused():
    with pytest.raises(InputError, match="wanted pictures"):
        retrieval(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    pictures, texts, of = made(6, 3)
    with pytest.raises(InputError, match="one at least for each of 4 captions"):
        retrieval(pictures, np.concatenate([texts, texts[:1]]), of)
