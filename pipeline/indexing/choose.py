"""Which FAISS key: from rows, width and memory to a factory string, and which keys can be merged at all.

Pure. The bands follow FAISS's own guidelines and the sizes measured in facts/faiss.md 3.4 and 3.6: exact search while
it is fast, then inverted lists over scalar codes, and rotated RaBitQ codes where memory is short. Product quantisation
is never chosen: on text queries it fails without being noticed.
"""

import math
import re

from pipeline.errors import InputError

FLAT_BELOW = 100_000  # rows; a full scan takes milliseconds up to here
POINTS_PER_CENTROID = 39  # FAISS warns below it (Clustering.cpp, min_points_per_centroid)
ID_BYTES = 8

# facts/faiss.md 3.1: these give the same lists whether filled at once or in parts. FastScan, HNSW, IDMap, Refine and
# Panorama keys fail on merge or, worse, corrupt silently.
_CODES = r"(Flat|SQ4|SQ6|SQ8|SQfp16|SQbf16|PQ\d+|RaBitQ[1-9]?)"
_MERGEABLE = re.compile(rf"^(Flat|((OPQ\d+(_\d+)?|PCAR?\d+|RR\d*|L2norm),)*IVF[1-9]\d*(_HNSW\d+)?,{_CODES})$")


def choose_factory(n: int, d: int, memory_budget: int) -> str:
    """Choose the most exact key whose index of n rows of width d fits the budget.

    Raises:
        InputError: none does.
    """
    if n < FLAT_BELOW and 4 * n * d <= memory_budget:
        return "Flat"
    lists = _lists(n)
    for code, code_bytes, prefix in (
        ("SQ8", d, ""),
        ("RaBitQ4", d // 2 + 20, "RR,"),
        ("RaBitQ", d // 8 + 8, "RR,"),
    ):
        if n * (code_bytes + ID_BYTES) + 4 * nlist(lists) * d <= memory_budget:
            return f"{prefix}{lists},{code}"
    least = n * (d // 8 + 8 + ID_BYTES)
    raise InputError(f"memory_budget: {n} rows of {d} need at least {least} bytes, got {memory_budget}")


def check_mergeable(factory: str) -> str:
    """Pass a key through if partial indexes of it merge to what one index would be.

    Raises:
        InputError: it is not known to.
    """
    if not _MERGEABLE.match(factory):
        raise InputError(
            f"factory {factory!r}: wanted Flat or [OPQ|PCA|RR|L2norm,]IVF<n>[_HNSW<m>],<code> with code Flat, SQ4, "
            "SQ6, SQ8, SQfp16, SQbf16, PQ<m> or RaBitQ<b>; partial indexes of other keys do not merge exactly"
        )
    return factory


def nlist(factory: str) -> int:
    """Give the number of inverted lists a key asks for; 0 for Flat."""
    found = re.search(r"IVF(\d+)", factory)
    return int(found.group(1)) if found else 0


def is_exact(factory: str) -> bool:
    """Tell whether the index itself holds the vectors unchanged, so that re-ranking could not improve it."""
    return re.fullmatch(r"(IVF\d+(_HNSW\d+)?,)?Flat", factory) is not None  # a rotation in front may drop dimensions


def _lists(n: int) -> str:
    if n < 2_000_000:  # 4 sqrt(n): at 10^6 the 65,536 of the next band would leave 15 points per centroid
        return f"IVF{max(16, round(4 * math.sqrt(n)))}"
    return "IVF65536_HNSW32" if n < 20_000_000 else "IVF262144_HNSW32"
