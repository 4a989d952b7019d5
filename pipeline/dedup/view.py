"""What people look at to choose the threshold: groups that are only just joined, and pairs that only just are not.

In: what was found. Out: few groups, with their pictures as small JPEGs. All of it is best effort: a picture that the
source has no more is missing.
"""

import io
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.analysis.source import open_source
from pipeline.dedup.edges import EXACT, Found, Stage
from pipeline.dedup.plan import Plan
from pipeline.dedup.record import Groups, row_ids
from pipeline.embedding.sandbox import Sandbox
from pipeline.errors import RunError
from pipeline.model import WHITE
from pipeline.searching.pictures import Pictures
from pipeline.table import table_folder

SETS, MEMBERS = 8, 6  # that are shown of a kind, and of a group
SHOWN_S = 60.0  # after which no more pictures are read
PICTURE_PX = 128


@dataclass(frozen=True)
class Member:
    """A row of a group."""

    row_id: str
    is_keeper: bool
    picture: bytes | None = None


@dataclass(frozen=True)
class Set:
    """Rows shown side by side: how alike the least alike joined two are, and how many more there are."""

    similarity: float
    members: tuple[Member, ...]
    more: int


Chosen = tuple[float, NDArray[np.int64]]  # similarity and ids


@dataclass(frozen=True)
class Sheet:
    """One stage's groups just above what joins, pairs just below, and pairs above that pictures did not confirm."""

    stage: str
    least: float
    above: tuple[Set, ...]
    below: tuple[Set, ...]
    unconfirmed: tuple[Set, ...]


def sheets(plan: Plan, found: Found, groups: Groups) -> list[Sheet]:
    """Choose what is shown of every stage but that of equal bytes, and get the pictures."""
    pictures = _Seen(plan)

    def shown(chosen: list[Chosen]) -> tuple[Set, ...]:
        return tuple(_set(plan, one, groups, pictures) for one in chosen)

    try:
        return [
            Sheet(
                name,
                stage.least,
                above=shown(_above(stage, groups)),
                below=shown(_apart(stage, stage.counts & ~stage.joins, groups)),
                unconfirmed=shown(_apart(stage, ~stage.counts, groups)),
            )
            for name, stage in found.stages.items()
            if name != EXACT
        ]
    finally:
        pictures.close()


def _above(stage: Stage, groups: Groups) -> list[Chosen]:
    """Choose the groups that hold the least alike pairs that join."""
    some = stage.pairs[stage.joins]
    group = groups.of(some.a)
    inside = np.flatnonzero((group == groups.of(some.b)) & (group >= 0))
    order = inside[np.lexsort((some.b[inside], some.a[inside], some.similarity[inside]))]
    first = order[np.sort(np.unique(group[order], return_index=True)[1])][:SETS]
    return [(float(some.similarity[i]), groups.ids[groups.group == group[i]]) for i in first]


def _apart(stage: Stage, which: NDArray[np.bool_], groups: Groups) -> list[Chosen]:
    """Choose the most alike of some pairs, of rows that nothing else puts into one group."""
    some = stage.pairs[which]
    one, other = groups.of(some.a), groups.of(some.b)
    apart = np.flatnonzero((one != other) | (one < 0))
    order = apart[np.lexsort((some.b[apart], some.a[apart], -some.similarity[apart]))][:SETS]
    return [(float(some.similarity[i]), np.array([some.a[i], some.b[i]])) for i in order]


def _set(plan: Plan, chosen: Chosen, groups: Groups, pictures: "_Seen") -> Set:
    similarity, ids = chosen
    keepers = np.isin(ids, groups.ids[groups.is_keeper])
    order = np.lexsort((ids, ~keepers))[:MEMBERS]
    names = row_ids(plan, ids[order]).to_pylist()
    members = (Member(name, bool(keepers[i]), pictures.of(int(ids[i]))) for name, i in zip(names, order, strict=True))
    return Set(similarity, tuple(members), len(ids) - len(order))


class _Seen:
    """Pictures by vector id, decoded where a bad one harms nobody, until the time is over."""

    def __init__(self, plan: Plan) -> None:
        source = open_source(plan.store, table_folder(plan.table), plan.record, ())
        self.pictures = Pictures(plan.store, plan.index, plan.record, source.fetch.spec)
        spec = replace(plan.record.preprocess, height_px=PICTURE_PX, width_px=PICTURE_PX, resize_mode="pad")
        self.sandbox = Sandbox(replace(spec, fill=WHITE, decode="scaled", thumbnail_px=None, limits=source.limits))
        self.until = time.monotonic() + SHOWN_S

    def close(self) -> None:
        """End the process that decodes."""
        self.sandbox.close()

    def of(self, number: int) -> bytes | None:
        """Give a small JPEG of a row's picture; None where there is none to be had."""
        if time.monotonic() > self.until:
            return None
        try:
            encoded = self.pictures.thumbnail(number) or self.pictures.of(number)
        except RunError:
            return None
        pixels, [refusal] = self.sandbox.pixels([encoded])
        if refusal is not None:
            return None
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0))).save(written, "JPEG", quality=80)
        return written.getvalue()
