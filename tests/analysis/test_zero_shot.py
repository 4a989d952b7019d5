import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from pipeline.analysis.zero_shot import class_vectors, zero_shot
from pipeline.errors import InputError


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_counts_are_scikit_learns():
    rng = np.random.default_rng(0)
    classes = unit(rng.normal(size=(7, 12)))
    right = rng.integers(-1, 6, size=500)  # some of no class, and a class without pictures
    pictures = unit(classes[right] + rng.normal(size=(500, 12)) * 0.6)
    blocks = [(pictures[:123], right[:123]), (pictures[123:], right[123:])]
    found = zero_shot(blocks, [f"c{number}" for number in range(7)], classes)
    known = right >= 0
    got = (pictures @ classes.T).argmax(axis=1)[known]
    wanted = right[known]
    assert (found.images, found.left_out) == (known.sum(), (~known).sum())
    assert found.top_1 == pytest.approx(accuracy_score(wanted, got))
    assert found.macro_f1 == pytest.approx(f1_score(wanted, got, average="macro", labels=range(7), zero_division=0))
    assert (found.confusion == confusion_matrix(wanted, got, labels=range(7))).all()
    theirs = precision_recall_fscore_support(wanted, got, labels=range(7), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), theirs, strict=True):
        assert np.allclose(found.by_class[name].to_numpy(), values)
    five = np.argsort(-(pictures @ classes.T), axis=1)[:, :5]
    assert found.top_5 == pytest.approx(np.mean([right[i] in five[i] for i in np.flatnonzero(known)]))


def test_a_class_is_the_mean_of_its_prompts():
    asked: list[str] = []

    def encode(prompts: list[str]) -> np.ndarray:
        asked.extend(prompts)
        return unit(np.random.default_rng(0).normal(size=(len(prompts), 5)))

    vectors = class_vectors(["cat", "dog"], ["a {}.", "one {}"], encode)
    assert asked == ["a cat.", "one cat", "a dog.", "one dog"]
    prompts = unit(np.random.default_rng(0).normal(size=(4, 5)))
    assert np.allclose(vectors, unit(prompts.reshape(2, 2, 5).mean(axis=1)))
    for classes, templates in (([], ["{}"]), (["a", "a"], ["{}"]), (["a"], []), (["a"], ["a photo"])):
        with pytest.raises(InputError, match="zero-shot: wanted"):
            class_vectors(classes, templates, encode)


def test_no_pictures_are_refused():
    with pytest.raises(InputError, match="no pictures of these classes"):
        zero_shot([(np.ones((2, 3), np.float32), np.array([-1, -1]))], ["a"], np.ones((1, 3), np.float32))
