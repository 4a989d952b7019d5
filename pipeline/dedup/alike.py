"""Two small grey pictures in, how alike they are out: the correlation of their spectra, as the best of many ways to lay
one on the other; and whether their colours can be one picture's.

Eight ways to turn and mirror, and on either side up to a sixth of each edge cut off. Brightness and contrast do not
count, so that a brighter copy is still a copy. Every frequency is weighted by its number: natural pictures fall off as
1/f (Field 1987), so that without weights whatever has a sky above a ground is alike. Pure.
"""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from pipeline.dedup.hashes import GREY_PX, window

# Of 308 scenes of families that look alike (2026-11-25), other pictures reach 0.82 with weights, and copies that lost 5
# to 15 % of their edges 0.91 at least; without, 0.97 and 0.96, which no threshold tells apart.
FREQUENCIES = 20  # each way; above are the traces of compression
CUTOFF = 14.0  # the frequency where weights fade: blur and small sizes have little above
AT_ONCE = 1024  # pairs, laid on each other whole
# First few parts of a picture, then, from the best of them on, each of its edges in turn among many. Offset and kept
# share of the edge, as `window` takes them.
COARSE = [(0.0, 1.0), *((place / 2, 0.93) for place in range(3)), *((place / 3, 0.87) for place in range(4))]
FINE = [
    (place / max(1, count - 1), 1 - cut)
    for cut in np.linspace(0, 0.16, 9)
    for count in (1 + round(80 * cut),)  # an eightieth of the edge apart
    for place in range(count)
]
TURNS = 2  # of each edge
# What a part lacks in likeness counts so many times: it was laid in thousands of ways, and plain stripes, if stretched,
# are alike at 0.91, where 98 in 100 crops reach 0.97. A watermark lies on all of a picture, and there 0.85 is enough.
PART_COUNTS = 2.0
LEAST_NORM = 1.0  # a picture that has two levels of contrast has some hundreds
HOPELESS = 0.45  # of the best coarse part: of those crops the least has 0.57, of other pairs one in a hundred 0.32

# Blue and red against luma (ITU-R BT.601), at the ends of their range but for six pixels of 32 x 32, since a coloured
# thing may be small: of 200 copies of each of seven kinds all but one cut were at most 32 levels apart (2026-11-25).
CHROMA = np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
ENDS = (0.006, 0.994)
MOST_APART = 40

Single = NDArray[np.float32]


def _waves(parts: list[tuple[float, float]]) -> Single:
    """Give the matrices that take an edge to the lowest frequencies of its parts: (parts, FREQUENCIES, GREY_PX)."""
    cosines = dct(np.eye(GREY_PX), axis=0, norm="ortho")[:FREQUENCIES]
    return np.stack([cosines @ window(offset, kept, GREY_PX) for offset, kept in parts]).astype(np.float32)


_DISTANCE = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
WEIGHTS = (_DISTANCE * np.exp(-((_DISTANCE / CUTOFF) ** 2))).astype(np.float32)  # none for brightness
COARSE_WAVES, FINE_WAVES = _waves(COARSE), _waves(FINE)
SIGNS = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)  # of waves, when an edge is turned over


def likeness(one: NDArray[np.uint8], other: NDArray[np.uint8], enough: float) -> Single:
    """Say how alike pictures (n, GREY_PX, GREY_PX) are, pair by pair: (n,), -1 to 1.

    Args:
        enough: what is more alike than this is laid no other way.

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
        x, y = one[place].astype(np.float32), other[place].astype(np.float32)
        part = max(_as_part(x, y), _as_part(y, x))
        found[place] = max(found[place], 1 - PART_COUNTS * (1 - part))
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
    """Lay pictures (n, GREY_PX, GREY_PX) on each other whole, in eight ways, and take the best."""
    x, ways = _spectra(one, COARSE_WAVES[0], COARSE_WAVES[0]), _ways(other)
    return np.asarray(np.einsum("nuv,wnuv->wn", x, ways).max(axis=0), np.float32)


def _as_part(picture: Single, other: Single) -> float:
    """Lay parts of one picture on all of another, in eight ways, and take the best."""
    ways = _ways(other)
    scores = np.einsum("dauv,wuv->wda", _spectra(picture, COARSE_WAVES[:, None], COARSE_WAVES), ways, optimize=True)
    best = float(scores.max())
    if best < HOPELESS:
        return best
    turned, _, across = np.unravel_index(int(scores.argmax()), scores.shape)
    way, columns = ways[turned], COARSE_WAVES[across]
    for _ in range(TURNS):
        downs = np.einsum("duv,uv->d", _spectra(picture, FINE_WAVES, columns), way)
        rows = FINE_WAVES[int(downs.argmax())]
        acrosses = np.einsum("auv,uv->a", _spectra(picture, rows, FINE_WAVES), way)
        columns = FINE_WAVES[int(acrosses.argmax())]
        best = max(best, float(downs.max()), float(acrosses.max()))
    return best


def _ways(pictures: Single) -> Single:
    """Give the spectra of pictures turned and mirrored in all eight ways: (8, …, FREQUENCIES, FREQUENCIES)."""
    upright = _spectra(pictures, COARSE_WAVES[0], COARSE_WAVES[0])
    return np.stack(
        [
            turned * down[:, None] * across
            for turned in (upright, upright.swapaxes(-1, -2))
            for down, across in itertools.product((np.ones_like(SIGNS), SIGNS), (np.ones_like(SIGNS), SIGNS))
        ]
    )


def _spectra(pictures: Single, down: Single, across: Single) -> Single:
    """Weight the spectra of parts of pictures and give each a norm of 1; what is blank stays nothing."""
    weighted = down @ pictures @ across.swapaxes(-1, -2) * WEIGHTS
    norms = np.sqrt(np.einsum("...uv,...uv->...", weighted, weighted))
    return np.asarray(weighted / np.maximum(norms, LEAST_NORM)[..., None, None], np.float32)
