"""What a build has made, measured and written: the files of a version, then its card.

In: a `Made`, lists and vectors that were merged and verified. Out: the card of a version that may be published. The
same for an index that was built anew and for one that rows were added to.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.indexing import publish
from pipeline.indexing.index import Index
from pipeline.indexing.merge import ordered
from pipeline.indexing.partial import IDS, VECTORS, Partial
from pipeline.indexing.plan import Plan
from pipeline.indexing.plot import draw
from pipeline.indexing.publish import Card
from pipeline.indexing.tune import FIRST, Setting, Truth, qps_one_thread, recall_by_depth, save, stated, tune
from pipeline.indexing.vectors import Span, count
from pipeline.lease import Lease
from pipeline.machine import available_cpus, peak_bytes
from pipeline.table import parse_receipt

# Where building anew is advised: added rows so much farther from the centroids of their lists than those trained on,
# and lists so much less alike. A guess, until corpora that drift were measured.
FARTHER, MORE_UNEQUAL = 1.1, 1.5


@dataclass
class Made:
    """An index that can be searched, and what its card will say of where it comes from."""

    version: str
    factory: str
    index: Index  # without nprobe and margin
    spans: list[Span]  # of rows that can be found
    end: int
    base: str
    base_rows: int
    trained_on: int
    training: str
    training_rows: int
    partials: list[Partial]  # that were filled for it
    drift: dict[str, float]
    files: dict[str, list[str]] = field(default_factory=dict)  # by what they are for
    bytes: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def name(self, role: str, path: str, size: int, sha256: str) -> None:
        """Note a file of the version."""
        self.files.setdefault(role, []).append(path)
        self.bytes[path], self.sha256[path] = size, sha256

    def keep(self, role: str, path: str, card: Card) -> None:
        """Note a file of the version that this one goes on from."""
        self.name(role, path, card.bytes[path], card.sha256[path])


def finish(plan: Plan, made: Made, truths: Sequence[Truth], whole: Path, lease: Lease, first: Setting = FIRST) -> Card:
    """Tune and measure, put the files that lie in ``whole`` and those of partials, and the card.

    Args:
        first: the setting to begin tuning with.

    Raises:
        IncompleteError: the lease was lost.
    """
    threads = available_cpus()
    chosen, curve = tune(made.index, truths, plan.config.recall_target, threads, first)
    index = replace(made.index, nprobe=chosen.nprobe, margin=chosen.margin)
    asked = stated(truths)
    draw(curve, chosen, plan.config.recall_target, whole / publish.PLOT)
    save(truths, whole / publish.TRUTH)
    _write_units(made.spans, whole / publish.UNITS)
    lease.confirm()
    _put(plan, made, whole)
    card = Card(
        version=made.version,
        table=plan.table,
        space=plan.record.space,
        inputs=plan.inputs,
        asked=plan.asked,
        factory=made.factory,
        metric="inner_product",
        ntotal=count(made.spans),
        end=made.end,
        base=made.base,
        base_rows=made.base_rows,
        trained_on=made.trained_on,
        d=plan.record.d,
        nprobe=chosen.nprobe,
        margin=chosen.margin,
        rerank=index.rerank,
        recall_target=plan.config.recall_target,
        recall_at_10=chosen.recall_at_10,
        recall={truth.kind: recall_by_depth(index, truth) for truth in asked},
        recall_curve=[asdict(point) for point in curve],
        queries={truth.kind: len(truth.xq) for truth in asked},
        latency_ms=chosen.latency_ms,
        qps=chosen.qps,
        qps_one_thread=qps_one_thread(index, chosen, asked),
        threads=threads,
        seed=plan.config.seed,
        training_rows=made.training_rows,
        training=made.training,
        drift=made.drift,
        advice=_advice(plan, made.drift, chosen.latency_ms),
        partials=len(made.partials),
        build_seconds=round(time.monotonic() - plan.started, 2),
        peak_bytes={"build": peak_bytes(), "fill": max((partial.peak_bytes for partial in made.partials), default=0)},
        files=made.files,
        bytes=made.bytes,
        sha256=made.sha256,
    )
    lease.confirm()
    publish.write_card(plan.store, card)
    return card


def read_units(path: Path) -> list[Span]:
    """Read which units a version has, as `finish` wrote them."""
    rows = pq.read_table(path).to_pylist()
    return [Span(parse_receipt(f"unit at {row['base']}", row["receipt"].encode()), row["base"]) for row in rows]


def live_ids(spans: Sequence[Span]) -> NDArray[np.int64]:
    """List the ids of some units' vectors."""
    return np.concatenate([np.arange(span.base, span.base + span.rows) for span in spans])


def _write_units(spans: Sequence[Span], target: Path) -> None:
    """Write which ids belong to which unit, with its receipt: what leads from an id back to its row and its picture."""
    receipts = [json.dumps(asdict(span.receipt)) for span in spans]
    pq.write_table(pa.table({"base": [span.base for span in spans], "receipt": receipts}), target)


def _put(plan: Plan, made: Made, whole: Path) -> None:
    """Put a version's own files; vectors and row ids of partials stay as they are, under another name."""
    place = f"{publish.index_folder(plan.table)}/"
    sizes, sha256 = publish.digests(whole)
    for name in sha256:
        path = f"{made.version}/{name}"
        made.name(name, path, sizes[name], sha256[name])
        plan.store.put_file(place + path, whole / name)
    roles = {publish.VECTORS: VECTORS, publish.ROW_IDS: IDS} if made.index.nlist else {publish.ROW_IDS: IDS}
    for partial in ordered(made.partials):
        for role, name in roles.items():
            path = f"{made.version}/{role}-{partial.base:012d}{Path(name).suffix}"
            plan.store.link_file(place + path, f"{partial.folder}/{name}")
            made.name(role, path, partial.bytes[name], partial.sha256[name])


def _advice(plan: Plan, drift: dict[str, float], latency_ms: float) -> str | None:
    """Say what would help where rows came that the training does not fit, or a query takes longer than it should."""
    found = []
    if "nearness_added" in drift and 1 - drift["nearness_added"] > FARTHER * (1 - drift["nearness"]):
        found.append(
            f"rows added lie at {drift['nearness_added']} of their lists' centroids, those trained on at "
            f"{drift['nearness']}: build anew with --rebuild"
        )
    if drift.get("imbalance_now", 0.0) > MORE_UNEQUAL * drift.get("imbalance", 0.0):
        found.append(
            f"lists are unequal by {drift['imbalance_now']}, at training by {drift['imbalance']}: build anew with "
            "--rebuild"
        )
    budget = plan.config.latency_budget_ms
    if budget is not None and latency_ms > budget:
        found.append(
            f"a query takes {latency_ms} ms of the {budget} of latency_budget_ms: name a --factory with more lists or "
            "smaller codes, or a lower recall_target"
        )
    return "; ".join(found) or None
