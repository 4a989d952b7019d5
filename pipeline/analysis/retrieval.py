"""From pictures to their captions and back: in how many cases is the right one among the best k, of all there are.

In: vectors of pictures, of captions, and which caption each picture has; pictures of one caption share it. Out: recall
and median rank in both directions. Scores are computed tile by tile, never all at once. A wrong one that scores the
same stands before the right one: a model that gives everything the same vector finds nothing.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

KS = (1, 5, 10)  # as in CLIP's evaluations on Flickr30K and COCO (Radford et al. 2021, arXiv 2103.00020, table 13)
TILE = 4096  # pictures by captions: 64 MiB of scores
SAME = 2e-6  # of two scores: the two ways they are computed here differ by up to 7e-7 (d 64 to 1280, 2026-11)


@dataclass(frozen=True)
class Direction:
    """One direction: recall by k, and the median rank of the first that is right."""

    recall: dict[int, float]
    median_rank: float


@dataclass(frozen=True)
class Retrieval:
    """Both directions, over n pictures and m captions."""

    images: int
    captions: int
    text_to_image: Direction
    image_to_text: Direction

    def as_dict(self) -> dict[str, Any]:  # JSON's types
        """Give all of it."""
        return asdict(self)


def retrieval(images: NDArray[np.float32], captions: NDArray[np.float32], caption_of: NDArray[np.int64]) -> Retrieval:
    """Rank all captions for each picture, and all pictures for each caption.

    Args:
        images: (n, d) of norm 1; may be mapped.
        captions: (m, d) likewise; each of at least one picture.
        caption_of: (n,) the caption of each picture.

    Raises:
        InputError: there are no pictures, or a caption without one.
    """
    if not len(images) or len(np.unique(caption_of)) != len(captions):
        raise InputError(f"retrieval: wanted pictures, and one at least for each of {len(captions)} captions")
    own = np.empty(len(images), np.float32)  # of each picture, its score with its caption
    for first in range(0, len(images), TILE):
        some = slice(first, first + TILE)
        own[some] = np.einsum("nd,nd->n", images[some], captions[caption_of[some]])
    best = np.full(len(captions), -np.inf, np.float32)  # of each caption, that of its best picture
    np.maximum.at(best, caption_of, own)
    better_captions, better_images = np.zeros(len(images), np.int64), np.zeros(len(captions), np.int64)
    own -= SAME
    best -= SAME
    for rows, columns, scores in _tiles(images, captions):
        mine = caption_of[rows, None] == np.arange(columns.start, columns.stop)
        scores[mine] = -np.inf  # what is right is no rival
        better_captions[rows] += (scores > own[rows, None]).sum(axis=1)
        better_images[columns] += (scores > best[columns]).sum(axis=0)
    return Retrieval(len(images), len(captions), _direction(better_images), _direction(better_captions))


def _tiles(
    images: NDArray[np.float32], captions: NDArray[np.float32]
) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
    """Yield which pictures, which captions, and their scores."""
    for first in range(0, len(images), TILE):
        rows = slice(first, min(first + TILE, len(images)))
        for start in range(0, len(captions), TILE):
            columns = slice(start, min(start + TILE, len(captions)))
            yield rows, columns, np.asarray(images[rows] @ captions[columns].T)


def _direction(better: NDArray[np.int64]) -> Direction:
    """Sum up how many wrong ones lie before the first that is right."""
    return Direction({k: float((better < k).mean()) for k in KS}, float(np.median(better + 1)))
