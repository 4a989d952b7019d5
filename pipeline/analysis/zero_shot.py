"""Classification by words alone: each picture gets the class whose prompts it lies nearest to.

In: vectors of pictures, of classes, and which class is right. Out: accuracy, and precision, recall and F1 by class. As
CLIP does it (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): a class is the mean of its prompts' vectors.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError

TEMPLATES = ("a photo of a {}.",)  # CLIP's own, where there is only one
Block = tuple[NDArray[np.float32], NDArray[np.int64]]  # vectors (b, d) of pictures, and the class of each


@dataclass(frozen=True)
class ZeroShot:
    """What became of n pictures of c classes.

    Attributes:
        left_out: pictures without a class, or of another one.
        top_1, top_5: shares of pictures whose class is the best, or among the best five.
        by_class: class, rows, precision, recall, f1; 0 where there is nothing to divide by.
        confusion: (c, c) pictures, by their class and by the one they got.
    """

    images: int
    left_out: int
    top_1: float
    top_5: float
    macro_f1: float
    by_class: pa.Table
    confusion: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:  # JSON's types
        """Give all of it."""
        return {**vars(self), "by_class": self.by_class.to_pylist(), "confusion": self.confusion.tolist()}


def class_vectors(
    classes: Sequence[str], templates: Sequence[str], encode: Callable[[list[str]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Encode classes: (c, d) of norm 1.

    Args:
        templates: each with {} where the class's name goes.

    Raises:
        InputError: there are no classes, one is named twice, or a template has no place for a name.
    """
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"zero-shot: wanted classes, each once, got {list(classes)}")
    if not templates or any("{}" not in template for template in templates):
        raise InputError(f"zero-shot: wanted templates with {{}} for the class's name, got {list(templates)}")
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = np.asarray(encode(prompts)).reshape(len(classes), len(templates), -1).mean(axis=1)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def zero_shot(blocks: Iterable[Block], classes: Sequence[str], vectors: NDArray[np.float32]) -> ZeroShot:
    """Classify pictures, and count.

    Args:
        blocks: the class of a picture is its place among the classes, or -1 for none of them.
        vectors: (c, d) of the classes.

    Raises:
        InputError: there is no picture.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    in_five = images = left_out = 0
    for all_rows, classes_of in blocks:
        known = classes_of >= 0
        rows, right = all_rows[known], classes_of[known]
        left_out += len(all_rows) - len(rows)
        ranked = np.argsort(-(rows @ vectors.T), axis=1, kind="stable")[:, :5]
        np.add.at(confusion, (right, ranked[:, 0]), 1)
        in_five += int((ranked == right[:, None]).any(axis=1).sum())
        images += len(rows)
    if not images:
        raise InputError("zero-shot: no pictures of these classes")
    hits, given, there = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    precision, recall = _share(hits, given), _share(hits, there)
    f1 = _share(2 * hits, given + there)
    by_class = {"class": list(classes), "rows": there, "precision": precision, "recall": recall, "f1": f1}
    return ZeroShot(
        images=images,
        left_out=left_out,
        top_1=float(hits.sum() / images),
        top_5=in_five / images,
        macro_f1=float(f1.mean()),
        by_class=pa.table(by_class),
        confusion=confusion,
    )


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0))
