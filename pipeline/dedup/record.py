"""What rests of a run: edges and groups as Parquet, and the card that is written last and says whether it is whole.

    <store>/duplicates/<table>/<id>/edges/*.parquet    row_id_a, row_id_b, stage, similarity, hamming, joins
    <store>/duplicates/<table>/<id>/groups.parquet     group, _row_id, is_keeper, similarity to the keeper, stages
    <store>/duplicates/<table>/<id>/report.html, card.json

Rows without a duplicate are in no group; what to drop are the rows of groups that are no keepers.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.dedup.edges import Found
from pipeline.dedup.groups import NO_GROUP
from pipeline.dedup.pairs import NO_HAMMING, Pairs
from pipeline.dedup.plan import Plan
from pipeline.filesystem import sha256_of
from pipeline.store import Store

CARD, GROUPS, EDGES, REPORT = "card.json", "groups.parquet", "edges", "report.html"
FILE_ROWS = 1 << 20  # edges in one file
VECTORS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Duplicates:
    """The card of a run. Counts close: rows = alone + grouped, keepers = groups, grouped = keepers + dropped."""

    id: str
    table: str
    folder: str  # below the store's root
    index: str  # the version whose rows were compared
    space: str
    parameters: dict[str, Any]  # of the config, in JSON's types
    rows: int
    alone: int
    grouped: int
    groups: int
    keepers: int
    dropped: int
    edges: dict[str, int]  # that join rows, by stage
    counts: dict[str, int]  # pictures that could not be seen, pairs that were left out, and the like
    thresholds: list[dict[str, float]]  # of vectors: what groups there would be at each
    recall: dict[str, float | int | None] | None  # of pairs of vectors; None: not asked for
    seconds: dict[str, float]  # by stage
    sha256: dict[str, str]  # by file


@dataclass(frozen=True)
class Groups:
    """Rows that have duplicates, by id, ascending; all of shape (n,)."""

    ids: NDArray[np.int64]
    group: NDArray[np.int64]
    is_keeper: NDArray[np.bool_]
    similarity: NDArray[np.float32]

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the groups of some rows; NO_GROUP of those that are alone."""
        if not len(self.ids):
            return np.full(len(ids), NO_GROUP)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, self.group[place], NO_GROUP)


def write_edges(plan: Plan, found: Found, place: Path) -> None:
    """Write the edges of all stages, in files of FILE_ROWS."""
    (place / EDGES).mkdir()
    number = 0
    for name, stage in found.stages.items():
        for first in range(0, len(stage.pairs), FILE_ROWS):
            here = slice(first, first + FILE_ROWS)
            pq.write_table(
                _edges(plan, name, stage.pairs[here], stage.joins[here]), place / EDGES / f"part-{number:05d}.parquet"
            )
            number += 1
    if not number:
        pq.write_table(schema.DUPLICATE_EDGES_SCHEMA.empty_table(), place / EDGES / "part-00000.parquet")


def write_groups(plan: Plan, found: Found, groups: Groups, place: Path) -> None:
    """Write the rows of groups, group by group, the keeper first."""
    order = np.lexsort((groups.ids, ~groups.is_keeper, groups.group))
    stages = _stages(found, groups)
    table = pa.table(
        {
            "group": groups.group[order],
            schema.ROW_ID: row_ids(plan, groups.ids[order]),
            "is_keeper": groups.is_keeper[order],
            "similarity": groups.similarity[order],
            "stages": stages.take(pa.array(order)),
        },
        schema.DUPLICATE_GROUPS_SCHEMA,
    )
    pq.write_table(table, place / GROUPS)


def similarity_to_keepers(plan: Plan, ids: NDArray[np.int64], keeper: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score the vectors of rows against those of their keepers (n,)."""
    found = np.empty(len(ids), np.float32)
    for first in range(0, len(ids), VECTORS_AT_ONCE):
        x, y = (plan.index.index.exact.take(one[first : first + VECTORS_AT_ONCE]) for one in (ids, keeper))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        found[first : first + VECTORS_AT_ONCE] = np.einsum("nd,nd->n", x, y) / norms
    return found


def row_ids(plan: Plan, ids: NDArray[np.int64]) -> pa.Array:
    """Give the row ids of vector ids."""
    found = plan.index.row_ids.take(pa.array(ids, pa.int64())).cast(pa.string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def put(plan: Plan, place: Path) -> dict[str, str]:
    """Put the files of a folder into the store: SHA-256 by path."""
    sha256 = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = path.relative_to(place).as_posix()
        sha256[name] = sha256_of(path)
        plan.store.put_file(f"{plan.folder}/{name}", path)
    return sha256


def write_card(store: Store, card: Duplicates) -> None:
    """Write a card: from now on the run is there."""
    store.replace_json(f"{card.folder}/{CARD}", asdict(card))


def read_card(store: Store, folder: str) -> Duplicates | None:
    """Read a run's card; None if there is none, or it is damaged."""
    try:
        return Duplicates(**store.read_json(f"{folder}/{CARD}"))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def check_files(store: Store, card: Duplicates, scratch: Path) -> None:
    """Compare the files of a run with their digests.

    Raises:
        IncompleteError: one is missing or damaged.
    """
    for name, digest in card.sha256.items():
        store.get_checked(f"{card.folder}/{name}", digest, scratch)


def read_groups(store: Store, card: Duplicates) -> pa.Table:
    """Read the rows of groups, as `schema.DUPLICATE_GROUPS_SCHEMA` has them.

    Raises:
        IncompleteError: the file is missing or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="rayclip-duplicates-") as scratch:
        return pq.read_table(store.get_checked(f"{card.folder}/{GROUPS}", card.sha256[GROUPS], Path(scratch)))


def _edges(plan: Plan, stage: str, pairs: Pairs, joins: NDArray[np.bool_]) -> pa.Table:
    columns = {
        "row_id_a": row_ids(plan, pairs.a),
        "row_id_b": row_ids(plan, pairs.b),
        "stage": pa.array([stage] * len(pairs), pa.string()),
        "similarity": pairs.similarity,
        "hamming": pa.array(pairs.hamming, pa.int16(), mask=pairs.hamming == NO_HAMMING),
        "joins": joins,
    }
    return pa.table(columns, schema.DUPLICATE_EDGES_SCHEMA)


def _stages(found: Found, groups: Groups) -> pa.Array:
    """Name, for each row of a group, the stages that join it to another row of it."""
    flags = []
    for stage in found.stages.values():
        some = stage.pairs[stage.joins]
        one, other = groups.of(some.a), groups.of(some.b)
        inside = (one == other) & (one != NO_GROUP)
        flags.append(np.isin(groups.ids, np.concatenate([some.a[inside], some.b[inside]])))
    together = np.array(flags, np.bool_).reshape(len(flags), len(groups.ids))
    codes = (together * (1 << np.arange(len(flags)))[:, None]).sum(axis=0)
    names = list(found.stages)
    sets = [[name for bit, name in enumerate(names) if code >> bit & 1] for code in range(1 << len(names))]
    return pa.array(sets, pa.list_(pa.string())).take(pa.array(codes, pa.int64()))
