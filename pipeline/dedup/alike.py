"""Two small grey pictures in, how alike they are out: the correlation of their pixels, as the best of many ways to lay
one on the other; and whether their colours can be one picture's.

Eight ways to turn and mirror, and on either side up to a fifth of each edge cut off. Mean and contrast do not count, so
that a brighter copy is still a copy. Pure.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup.hashes import GREY_PX, window

# Compared at 24 x 24: of 200 copies cut by 5 to 15 % 95 in 100 reach 0.939, at 32 x 32 only 0.897, while pictures of
# one family stay below 0.94 (2026-11-25). At 12 x 12 first: what is not alike there is not compared any closer.
FINE_PX, COARSE_PX = 24, 12
KEPT = (0.95, 0.9, 0.85)  # of an edge
OFFSETS = (0.0, 0.25, 0.5, 0.75, 1.0)
AT_ONCE = 1024  # pairs, laid on each other whole
WINDOWS = ((0.0, 1.0), *((offset, kept) for kept in KEPT for offset in OFFSETS))

# Blue and red against luma (ITU-R BT.601), at the ends of their range but for six pixels of 32 x 32, since a coloured
# thing may be small: of 200 copies of each of seven kinds all but one cut were at most 32 levels apart (2026-11-25).
CHROMA = np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
ENDS = (0.006, 0.994)
MOST_APART = 40

Single = NDArray[np.float32]
MATRICES: dict[int, Single] = {
    pixels: np.concatenate([window(offset, kept, pixels) for offset, kept in WINDOWS])
    for pixels in (COARSE_PX, FINE_PX)
}


def likeness(one: NDArray[np.uint8], other: NDArray[np.uint8], enough: float) -> Single:
    """Say how alike pictures (n, GREY_PX, GREY_PX) are, pair by pair: (n,), -1 to 1.

    Args:
        enough: what is more alike than this is laid no other way; what cannot reach it, not looked at closely.

    Raises:
        ValueError: pictures of another size.
    """
    if one.shape != other.shape or one.shape[1:] != (GREY_PX, GREY_PX):
        raise ValueError(f"wanted pictures of {GREY_PX} x {GREY_PX}, as many of each, got {one.shape}, {other.shape}")
    found = np.zeros(len(one), np.float32)
    for first in range(0, len(one), AT_ONCE):
        here = slice(first, first + AT_ONCE)
        found[here] = _whole(one[here].astype(np.float32), other[here].astype(np.float32))
    for place in np.flatnonzero(found < enough):
        pair = one[place].astype(np.float32), other[place].astype(np.float32)
        if _cut(*pair, COARSE_PX) >= enough:
            found[place] = max(found[place], _cut(*pair, FINE_PX))
    return found


def colours(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Say how blue and how red pictures (n, 3, p, p) are at the least and at the most: (n, 4), the same if turned."""
    chroma = np.einsum("kc,nchw->nkhw", CHROMA, pixels).reshape(len(pixels), len(CHROMA), -1)
    ends = np.quantile(chroma, ENDS, axis=2).transpose(1, 0, 2).reshape(len(pixels), -1)
    return np.asarray(ends.round(), np.int16)


def have_one_colour(one: NDArray[np.int16], other: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Tell of pairs whether their colours can be one picture's: a red star is no copy of a yellow one."""
    return np.asarray((np.abs(one.astype(np.int32) - other) <= MOST_APART).all(axis=1))


def _whole(one: Single, other: Single) -> Single:
    """Lay pictures on each other whole, in eight ways, and take the best."""
    resize = window(0.0, 1.0, FINE_PX)
    x, y = (np.asarray(resize @ pictures @ resize.T, np.float32) for pictures in (one, other))
    flat = _standard(x.reshape(len(x), -1))
    ways = (_standard(turned.reshape(len(y), -1)) for turned in _turned(y))
    best = [np.einsum("np,np->n", flat, way) for way in ways]
    return np.asarray(np.max(best, axis=0), np.float32)


def _cut(one: Single, other: Single, pixels: int) -> float:
    """Lay parts of each picture on all of the other, in eight ways, and take the best."""
    parts = [_parts(picture, pixels) for picture in (one, other)]
    wholes = [part[0].reshape(1, pixels, pixels) for part in parts]
    ways = [_standard(np.stack([turned.reshape(-1) for turned in _turned(whole)])) for whole in wholes]
    return float(max((parts[0] @ ways[1].T).max(), (parts[1] @ ways[0].T).max()))


def _parts(picture: Single, pixels: int) -> Single:
    """Resize every window of a picture: (windows, pixels x pixels), all of it first."""
    matrix, count = MATRICES[pixels], len(WINDOWS)
    parts = (matrix @ picture @ matrix.T).reshape(count, pixels, count, pixels).transpose(0, 2, 1, 3)
    return _standard(np.asarray(parts, np.float32).reshape(count * count, pixels * pixels))


def _turned(pictures: Single) -> list[Single]:
    """Turn and mirror pictures (n, p, p) in all eight ways."""
    return [
        turned[:, ::down, ::across]
        for turned in (pictures, pictures.transpose(0, 2, 1))
        for down, across in itertools.product((1, -1), (1, -1))
    ]


def _standard(flat: Single) -> Single:
    """Give pixels (n, p) a mean of 0 and a norm of 1; what is blank stays nothing."""
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3), np.float32)
