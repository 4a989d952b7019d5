"""Which FAISS key: from rows, width and budgets to a factory string, and which keys can be merged at all.

Pure. The bands follow FAISS's own guidelines and what was measured (facts/faiss.md 3.4 and 3.6, jobs/BENCHMARKS.md):
exact search while it is fast, then inverted lists of half floats, of 8-bit codes, and of rotated RaBitQ codes as memory
gets short. Half floats are the fastest too: 8-bit codes take more time to decode than they save in memory read. Product
quantisation comes last: on text queries it fails without being noticed.
"""

import math
import re
from dataclasses import dataclass

from pipeline.errors import InputError

FLAT_BELOW = 100_000  # rows; a full scan takes milliseconds up to here
# Rows from which a graph over the centroids is made: some 9,000 lists. At 4,000 of 512, comparing a query with every
# centroid took 92 us in a batch and 215 alone; a graph that found 0.99 of the nearest lists, 115 to 160
# (jobs/BENCHMARKS.md): FAISS's guideline of 10^6 has it lose recall and win nothing.
HNSW_FROM = 5_000_000
POINTS_PER_CENTROID = 39  # FAISS warns below it (Clustering.cpp, min_points_per_centroid)
KMEANS_ROUNDS = 10  # IndexIVF's default
ID_BYTES = 8
RERANK = 4  # candidates per result wanted; facts/faiss.md 3.6 recommends 4 to 10
HALF_BYTES = 2  # of a coordinate as it is kept for re-ranking

# facts/faiss.md 3.1: these give the same lists whether filled at once or in parts. FastScan, HNSW, IDMap, Refine and
# Panorama keys fail on merge or, worse, corrupt silently.
_CODES = r"(Flat|SQ4|SQ6|SQ8|SQfp16|SQbf16|PQ\d+(x8)?|RaBitQ[1-9]?)"
_PREFIX = r"((OPQ\d+(_\d+)?|PCAR?\d+|RR\d*|L2norm),)*"
_MERGEABLE = re.compile(rf"^(Flat|{_PREFIX}IVF[1-9]\d*(_HNSW\d+)?,{_CODES})$")

_UNSAFE = (  # what a key has that is refused, and why
    (r"IDMap", "ids of partial indexes collide when they are merged, without a word (faiss #3495)"),
    (r"Panorama", "its partial indexes are corrupted when they are merged, without a word"),
    (r"(^|,)(Refine|RFlat)", "merging reaches only its first stage; exact re-ranking is done anyway, from float16"),
    (r"^(HNSW|NSG)", "graphs cannot be merged; IVF<n>_HNSW<m> has one over its centroids"),
    (r"x4fs|RaBitQfs", "FastScan lists can neither be merged on disk nor mapped"),
    (r"^(SQ|PQ|RaBitQ)", "without inverted lists every code is looked at; IVF<n> in front of it helps"),
)


@dataclass(frozen=True)
class Choice:
    """A key and what it costs; sizes in bytes, from facts/faiss.md 3.4."""

    factory: str
    index_bytes: int  # what searching wants in memory
    vectors_bytes: int  # float16 or float32, mapped from disk
    training_rows: int
    multiply_adds: float  # of training, filling and measuring

    def seconds(self, multiply_adds_per_s: float, bytes_per_s: float) -> float:
        """Estimate how long a build takes on a machine: computing, and reading and writing all of it three times."""
        files_s = 3 * (self.index_bytes + self.vectors_bytes) / bytes_per_s
        return self.multiply_adds / multiply_adds_per_s + files_s


def choose_factory(n: int, d: int, memory_budget: int, latency_budget_ms: float | None = None) -> str:
    """Choose the most exact key whose index of n rows of width d fits the budgets.

    With a latency budget, lists are made twice and four times as many until a query should keep to it, as far as
    there are rows to train them on; a budget that none keeps to has the fastest of them chosen, and the card tells.

    Raises:
        InputError: none fits in memory.
    """
    if n < FLAT_BELOW and 4 * n * d <= memory_budget and _keeps(_flat_ms(n, d), latency_budget_ms):
        return "Flat"
    lists = list_count(n)
    while not _keeps(_lists_ms(n, d, lists), latency_budget_ms) and 2 * lists * POINTS_PER_CENTROID <= n:
        lists *= 2
    key = f"IVF{lists}_HNSW32" if n >= HNSW_FROM else f"IVF{lists}"
    halves = f"{key},SQfp16"
    codes = (
        halves,
        f"{key},SQ8",
        f"RR,{key},RaBitQ4",
        f"RR,{key},RaBitQ",
        *(f"OPQ{m},{key},PQ{m}" for m in _subspaces(d)),
    )
    for factory in codes:
        if index_bytes(factory, n, d) <= memory_budget:
            return factory
    least = index_bytes(codes[-1], n, d)
    raise InputError(f"memory_budget: {n} rows of {d} need at least {least} bytes, got {memory_budget}")


def list_count(n: int) -> int:
    """Choose the number of inverted lists: 4 sqrt(n), and FAISS's guideline from where it was made for GPUs.

    Below 2 x 10^7 rows the guideline's 65,536 would take hours of k-means on a few CPUs, and at 10^6 leave 15 points
    for a centroid.
    """
    if n < 20_000_000:
        return max(16, round(4 * math.sqrt(n)))
    return 65_536 if n < 100_000_000 else 262_144 if n < 1_000_000_000 else 1_048_576


def cost(factory: str, n: int, d: int, queries: int) -> Choice:
    """Say what building and keeping an index takes."""
    lists = nlist(factory)
    points = training_points(lists)
    multiplied = KMEANS_ROUNDS * points * lists + n * lists + queries * n
    width = HALF_BYTES if lists else 0  # Flat has its vectors in the index
    return Choice(factory, index_bytes(factory, n, d), n * d * width, min(n, points), float(d * multiplied))


def index_bytes(factory: str, n: int, d: int) -> int:
    """Say how many bytes an index of a key takes: codes and ids, centroids, and the graph over them."""
    lists = nlist(factory)
    graph = re.search(r"_HNSW(\d+)", factory)
    links = lists * int(graph.group(1)) * 2 * 4 if graph else 0
    ids = n * ID_BYTES if lists else 0
    return n * _code_bytes(factory.rpartition(",")[2], d) + ids + 4 * lists * d + links


def training_points(lists: int) -> int:
    """Say how many vectors k-means wants: a quarter more than the least, since some centroids get fewer than others."""
    return round(1.25 * POINTS_PER_CENTROID * lists)


def check_mergeable(factory: str) -> str:
    """Pass a key through if partial indexes of it merge to what one index would be.

    Raises:
        InputError: it is not known to; with the reason.
    """
    if _MERGEABLE.match(factory):
        return factory
    reason = next((why for has, why in _UNSAFE if re.search(has, factory)), "it is not known to merge exactly")
    raise InputError(
        f"factory {factory!r}: {reason}; wanted Flat or [OPQ|PCA|RR|L2norm,]IVF<n>[_HNSW<m>],<code> with code Flat, "
        "SQ4, SQ6, SQ8, SQfp16, SQbf16, PQ<m> or RaBitQ<b>"
    )


def nlist(factory: str) -> int:
    """Give the number of inverted lists a key asks for; 0 for Flat."""
    found = re.search(r"IVF(\d+)", factory)
    return int(found.group(1)) if found else 0


def rerank(factory: str) -> int | None:
    """Say how many times k candidates of a key are ordered again by their vectors; None where it holds these itself.

    Half floats leave the order next to unchanged: the rows found are scored again, no others.
    """
    if re.fullmatch(r"(IVF\d+(_HNSW\d+)?,)?Flat", factory):  # a rotation in front may drop dimensions
        return None
    return 1 if re.fullmatch(r"IVF\d+(_HNSW\d+)?,SQ(fp|bf)16", factory) else RERANK


def _code_bytes(code: str, d: int) -> int:
    """Give the bytes of one code (facts/faiss.md 3.4)."""
    if code.startswith("PQ"):
        return int(re.sub(r"PQ(\d+).*", r"\1", code))
    if code.startswith("RaBitQ"):
        bits = int(code.removeprefix("RaBitQ") or 1)
        return d * bits // 8 + (8 if bits == 1 else 20)
    return {"Flat": 4 * d, "SQfp16": 2 * d, "SQbf16": 2 * d, "SQ8": d, "SQ6": d * 6 // 8, "SQ4": d // 2}[code]


def _subspaces(d: int) -> list[int]:
    """Give the numbers of sub-quantisers of a PQ that divide the width, the most exact first."""
    return [m for m in (64, 32, 16, 8) if d % m == 0 and m < d // 8]


def _keeps(predicted_ms: float, latency_budget_ms: float | None) -> bool:
    return latency_budget_ms is None or predicted_ms <= latency_budget_ms


# Nanoseconds a coordinate, one thread, measured on two cores (jobs/BENCHMARKS.md): float32 by matrix product, codes as
# lists are scanned. And what share of lists tuned nprobes were, at 10^5 and 10^6 rows.
FLOAT_NS, CODE_NS, PROBED = 0.1, 0.15, 0.02


def _flat_ms(n: int, d: int) -> float:
    return n * d * FLOAT_NS * 1e-6


def _lists_ms(n: int, d: int, lists: int) -> float:
    """Predict a query: all centroids, or as many as a graph of them shows, then the codes of the lists probed."""
    centroids = lists if n < HNSW_FROM else 40 * math.log2(lists)
    probed = PROBED * list_count(n)  # the number of lists probed hardly grows with how many there are
    return (centroids * FLOAT_NS + probed * n / lists * CODE_NS) * d * 1e-6
