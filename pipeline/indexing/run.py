"""The index job: choose, train once, fill partials in parallel, merge, verify, measure, write, publish.

In: an `IndexConfig`. Out: a published version and its card. What is read are the files that receipts named when the
build began: shards embedded meanwhile do not show, and one that is replaced meanwhile makes the build fail.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from pipeline import compute
from pipeline.config import IndexConfig
from pipeline.errors import InputError
from pipeline.indexing import publish, vectors
from pipeline.indexing.choose import POINTS_PER_CENTROID, check_mergeable, choose_factory, is_exact, nlist
from pipeline.indexing.index import NO_ID, Index
from pipeline.indexing.merge import merge, merge_ids, merge_vectors, verify
from pipeline.indexing.partial import Partial, fill, inner_ivf, read_partial
from pipeline.indexing.publish import Card
from pipeline.indexing.queries import Queries, Texts, read_texts
from pipeline.indexing.train import check_trainable, train, training_rows
from pipeline.indexing.tune import exact_neighbours, recall_by_depth, tune
from pipeline.indexing.vectors import Span
from pipeline.lease import Lease
from pipeline.machine import available_cpus
from pipeline.runs import Run, write_run
from pipeline.stopping import alive
from pipeline.store import Store
from pipeline.table import TableRecord, find_table, live_receipts, read_receipts, read_record, table_folder

logger = logging.getLogger(__name__)

TRAINED, TRAINED_NOTE = "trained.faiss", "trained.json"
RERANK = 4  # candidates per result wanted; facts/faiss.md 3.6 recommends 4 to 10


TextEncoder = Callable[[TableRecord, Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Build:
    """What is being built, and from what."""

    config: IndexConfig
    store: Store
    record: TableRecord
    table: str
    spans: list[Span]
    factory: str
    texts: Texts | None  # to measure recall with, beside rows
    encode_texts: TextEncoder | None
    inputs: str  # digest of all that the result depends on
    version: str

    @property
    def folder(self) -> str:
        """Where training and partials lie until the version is written; a build that died goes on from there."""
        return publish.build_folder(self.table, self.inputs)

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return vectors.count(self.spans)


def build(config: IndexConfig, run: Run | None = None, encode_texts: TextEncoder | None = None) -> Card:
    """Build, measure and publish the index of a table; nothing to do if CURRENT was built from the same.

    Args:
        run: where to note which table it is.
        encode_texts: gives the vectors (n, d) of texts in a table's space; None: recall by text is not measured, unless
            its queries are vectors already.

    Raises:
        InputError: no such table, no vectors in it, or a factory that cannot be used.
        LeaseHeldError: another build of this table's index is running.
        IncompleteError: a file is damaged, the merge does not verify, or recall is below the target.
    """
    started = time.monotonic()
    store = Store(config.store)
    store.check_writable(single_writer=config.single_writer)
    table = find_table(store, config.table)
    with Lease(store, publish.index_folder(table)) as lease:
        plan = _plan(config, store, table, encode_texts)
        if run is not None:
            run.table = table
            write_run(store, run)
        current = publish.read_current(store, plan.table)
        if current is not None:
            card = publish.read_card(store, plan.table, current)
            if card.inputs == plan.inputs:
                logger.info("index=%s/%s ntotal=%d is current; nothing to do", plan.table, current, card.ntotal)
                return card
        publish.remove_unfinished(store, table, lease, keep=plan.folder)
        if (measured := _same_inputs(plan)) is not None:  # refused before, or not published for a crash
            lease.confirm()
            publish.publish(store, measured)
            return measured
        compute.start_ray()
        with store.scratch(publish.index_folder(plan.table)) as scratch:
            card = _build_version(plan, lease, scratch, started)
        lease.confirm()
        publish.publish(store, card)
    logger.info(
        "index=%s/%s factory=%s ntotal=%d nprobe=%s recall_at_10=%s latency_ms=%.2f seconds=%.1f",
        card.table, card.version, card.factory, card.ntotal, card.nprobe, card.recall_at_10, card.latency_ms,
        card.build_seconds,
    )  # fmt: skip
    return card


def _same_inputs(plan: Build) -> Card | None:
    """Find a version that was built from the same."""
    cards = (publish.read_card(plan.store, plan.table, name) for name in publish.versions(plan.store, plan.table))
    return next((card for card in cards if card.inputs == plan.inputs), None)


def _plan(config: IndexConfig, store: Store, table: str, encode_texts: TextEncoder | None) -> Build:
    record = read_record(store, table)
    spans = vectors.lay_out(live_receipts(read_receipts(store, table_folder(table)).values()))
    if record is None or not spans:
        raise InputError(f"table {table}: no embedded rows to index")
    n = vectors.count(spans)
    factory = check_mergeable(config.factory or choose_factory(n, record.d, config.memory_budget))
    check_trainable(factory, n, record.d)
    files = [file.sha256 for span in spans for file in span.receipt.data]
    texts = read_texts(config.text_queries, record.d)
    if texts is not None and texts.vectors is None and encode_texts is None:
        texts = None
    asked = [config.recall_target, config.queries, texts and texts.digest]
    parts = [files, record.space, factory, *asked, config.seed]
    inputs = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    version = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{inputs[:8]}"
    return Build(config, store, record, table, spans, factory, texts, encode_texts, inputs, version)


def _build_version(plan: Build, lease: Lease, scratch: Path, started: float) -> Card:
    """Train, fill, merge, verify, measure, and write the version's files and card."""
    store, threads = plan.store, available_cpus()
    query_ids = vectors.draw_rows(plan.spans, min(plan.n, plan.config.queries), plan.config.seed + 1)
    training_ids = vectors.draw_rows(plan.spans, training_rows(plan.factory, plan.n), plan.config.seed)
    if len(unasked := np.setdiff1d(training_ids, query_ids)) >= POINTS_PER_CENTROID * nlist(plan.factory):
        training_ids = unasked  # small tables need every row to train on
    trained = _trained(plan, training_ids, threads)
    digest = hashlib.sha256(trained).hexdigest()
    partials = _fill(plan, trained, digest)
    whole = scratch / "version"
    whole.mkdir()
    merged = merge(store, partials, trained, digest, scratch)
    has_lists = inner_ivf(merged) is not None
    exact = merge_vectors(store, partials, plan.record.d, scratch, whole / publish.VECTORS) if has_lists else None
    index = Index(merged, exact, None, None if is_exact(plan.factory) else RERANK)
    verify(store, index, partials, trained, scratch)
    faiss.write_index(merged, str(whole / publish.INDEX))
    merge_ids(store, partials, scratch, whole / publish.ROW_IDS)
    _write_units(plan.spans, whole / publish.UNITS)

    kinds = _queries(plan, query_ids)
    truths = exact_neighbours(vectors.stream(store, table_folder(plan.table), plan.spans), kinds)
    chosen, curve = tune(index, nlist(plan.factory), truths, plan.config.recall_target, threads)
    sizes, sha256 = publish.digests(whole)
    card = Card(
        version=plan.version,
        table=plan.table,
        space=plan.record.space,
        inputs=plan.inputs,
        factory=plan.factory,
        metric="inner_product",
        ntotal=plan.n,
        d=plan.record.d,
        nprobe=chosen.nprobe,
        rerank=index.rerank,
        recall_target=plan.config.recall_target,
        recall_at_10=chosen.recall_at_10,
        recall={truth.kind: recall_by_depth(index, chosen.nprobe, truth) for truth in truths},
        recall_curve=[asdict(point) for point in curve],
        queries={kind.kind: len(kind.xq) for kind in kinds},
        latency_ms=chosen.latency_ms,
        qps=chosen.qps,
        threads=threads,
        seed=plan.config.seed,
        training_rows=len(training_ids),
        training=digest,
        partials=len(partials),
        build_seconds=round(time.monotonic() - started, 2),
        bytes=sizes,
        sha256=sha256,
    )
    lease.confirm()
    publish.write_version(store, card, whole)
    store.remove_many([f"{plan.folder}/{path}" for path in store.files(plan.folder)], lease.check)
    return card


def _queries(plan: Build, ids: NDArray[np.int64]) -> list[Queries]:
    """Read the vectors of rows, and have texts encoded."""
    kinds = [Queries("image", vectors.take(plan.store, table_folder(plan.table), plan.spans, ids), ids)]
    xq = None if plan.texts is None else plan.texts.vectors
    if plan.texts is not None and plan.encode_texts is not None and xq is None:
        xq = plan.encode_texts(plan.record, plan.texts.texts)
    if xq is not None:
        kinds.append(Queries("text", xq, np.full(len(xq), NO_ID)))
    return kinds


def _trained(plan: Build, ids: NDArray[np.int64], threads: int) -> bytes:
    """Train the empty index, or read it as this build trained it before it died."""
    store, file, note = plan.store, f"{plan.folder}/{TRAINED}", f"{plan.folder}/{TRAINED_NOTE}"
    try:
        trained = store.read(file)
        if store.read_json(note)["sha256"] == hashlib.sha256(trained).hexdigest():
            return trained
    except (FileNotFoundError, ValueError, KeyError):
        pass
    xt = np.empty((0, plan.record.d), np.float32)
    if len(ids):
        xt = vectors.take(store, table_folder(plan.table), plan.spans, ids)
    trained = train(plan.factory, xt, plan.record.d, threads)
    store.replace(file, trained)
    store.replace_json(note, {"sha256": hashlib.sha256(trained).hexdigest()})
    return trained


def _fill(plan: Build, trained: bytes, digest: str) -> list[Partial]:
    """Fill partials in parallel Ray tasks, each on one thread; those that have their receipt are not filled again."""
    task = ray.remote(fill).options(num_cpus=1)
    shared = ray.put(trained)
    partials: list[Partial] = []
    waiting = []
    for group in vectors.divide(plan.spans, plan.config.partials):
        folder = f"{plan.folder}/{group[0].base:012d}"
        if (done := read_partial(plan.store, folder, group, digest)) is not None:
            partials.append(done)
            continue
        source = (plan.store.url, table_folder(plan.table), group)
        waiting.append(task.remote(*source, shared, digest, plan.record.d, folder))
    logger.info("index=%s/%s partials_done=%d to_fill=%d", plan.table, plan.version, len(partials), len(waiting))
    while waiting:
        ready, waiting = ray.wait(waiting)
        partials += compute.get(ready)
        alive()
    return partials


def _write_units(spans: list[Span], target: Path) -> None:
    """Write which ids belong to which unit, with its receipt: what leads from an id back to its row and its picture."""
    receipts = [json.dumps(asdict(span.receipt)) for span in spans]
    pq.write_table(pa.table({"base": [span.base for span in spans], "receipt": receipts}), target)
