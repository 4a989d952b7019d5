"""An index built anew: train, fill, merge, verify, find the truth, measure, write.

In: a `Plan`. Out: a card. Training and partials lie in a folder that is named by what the index is built from; a build
that died goes on from there.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.indexing import publish, vectors
from pipeline.indexing.choose import POINTS_PER_CENTROID, nlist, rerank
from pipeline.indexing.exact import NO_ID, Block, Exact
from pipeline.indexing.fill import fill_all
from pipeline.indexing.index import Index, held_by, inner_ivf
from pipeline.indexing.lists import imbalance, lengths
from pipeline.indexing.made import Made, finish
from pipeline.indexing.merge import merge, ordered, part_of, verify
from pipeline.indexing.partial import VECTORS, Partial
from pipeline.indexing.plan import Plan, new_version
from pipeline.indexing.publish import Card
from pipeline.indexing.queries import Queries
from pipeline.indexing.train import train, training_rows
from pipeline.indexing.tune import exact_neighbours
from pipeline.indexing.vectors import Span
from pipeline.lease import Lease
from pipeline.machine import available_cpus
from pipeline.store import Store

TRAINED_NOTE = "trained.json"


def build_anew(plan: Plan, lease: Lease, scratch: Path) -> Card:
    """Build the index of all rows.

    Raises:
        IncompleteError: a file is damaged, the merge does not verify, or the lease was lost.
    """
    store, config, folder = plan.store, plan.config, publish.build_folder(plan.table, plan.inputs)
    spans = vectors.lay_out(plan.receipts)
    query_ids = vectors.draw_rows(spans, min(plan.n, config.queries), config.seed + 1)
    training_ids = vectors.draw_rows(spans, training_rows(plan.factory, plan.n), config.seed)
    if len(unasked := np.setdiff1d(training_ids, query_ids)) >= POINTS_PER_CENTROID * nlist(plan.factory):
        training_ids = unasked  # small tables need every row to train on
    whole = scratch / "version"
    whole.mkdir()
    trained = _trained(plan, spans, training_ids, folder, scratch)
    digest = hashlib.sha256(trained).hexdigest()
    partials = fill_all(plan, spans, trained, digest, folder)
    merged = merge(store, partials, trained, digest, scratch, whole / publish.INDEX)
    ivf = inner_ivf(merged)
    exact = held_by(merged) if ivf is None else exact_of(store, partials, scratch)
    if ivf is not None:
        (whole / publish.TRAINED).write_bytes(trained)
    index = Index(merged, exact, rerank=rerank(plan.factory))
    verify(store, index, partials, trained, scratch)
    version = new_version(plan.inputs)
    made = Made(
        version=version,
        factory=plan.factory,
        index=index,
        spans=spans,
        end=plan.n,
        base=version,
        base_rows=plan.n,
        trained_on=plan.n,
        training=digest,
        training_rows=len(training_ids),
        partials=partials,
        drift=first_drift(partials, ivf),
    )
    truths = exact_neighbours(blocks(plan, spans), _queries(plan, spans, query_ids))
    card = finish(plan, made, truths, whole, lease)
    store.remove_many([f"{folder}/{path}" for path in store.files(folder)], lease.check)
    return card


def blocks(plan: Plan, spans: list[Span]) -> Iterator[Block]:
    """Read the vectors of some units as the table has them."""
    for base, found, _ in vectors.stream(plan.store, plan.table_folder, spans):
        yield np.arange(base, base + len(found)), np.ascontiguousarray(found)


def exact_of(store: Store, partials: list[Partial], scratch: Path) -> Exact:
    """Map the vectors of partials, in the order of their ids."""
    return Exact([np.load(part_of(store, each, VECTORS, scratch), mmap_mode="r") for each in ordered(partials)])


def first_drift(partials: list[Partial], ivf: faiss.IndexIVF | None) -> dict[str, float]:
    """Say how near to their lists' centroids vectors lie, and how unequal lists are, to compare with later."""
    if ivf is None:
        return {}
    return {"nearness": mean_nearness(partials), "imbalance": round(imbalance(lengths(ivf.invlists)), 3)}


def mean_nearness(partials: list[Partial]) -> float:
    """Average over the rows of partials."""
    rows = sum(partial.rows for partial in partials)
    return round(sum(partial.nearness * partial.rows for partial in partials) / rows, 4)


def _queries(plan: Plan, spans: list[Span], ids: NDArray[np.int64]) -> list[Queries]:
    """Read the vectors of rows, and have texts encoded."""
    xq = np.empty((len(ids), plan.record.d), np.float32)
    kinds = [Queries("image", vectors.take(plan.store, plan.table_folder, spans, ids, xq), ids)]
    texts = None if plan.texts is None else plan.texts.vectors
    if plan.texts is not None and plan.encode_texts is not None and texts is None:
        texts = plan.encode_texts(plan.record, plan.texts.texts)
    if texts is not None:
        kinds.append(Queries("text", texts, np.full(len(texts), NO_ID)))
    return kinds


def _trained(plan: Plan, spans: list[Span], ids: NDArray[np.int64], folder: str, scratch: Path) -> bytes:
    """Train the empty index, or read it as this build trained it before it died.

    The sample lies in a file that is mapped: k-means reads it in blocks, so it may be larger than memory.
    """
    store, file, note = plan.store, f"{folder}/{publish.TRAINED}", f"{folder}/{TRAINED_NOTE}"
    try:
        trained = store.read(file)
        if store.read_json(note)["sha256"] == hashlib.sha256(trained).hexdigest():
            return trained
    except (FileNotFoundError, ValueError, KeyError):
        pass
    shape = (len(ids), plan.record.d)
    xt = np.empty(shape, np.float32)
    if len(ids):
        xt = np.lib.format.open_memmap(scratch / "sample.npy", "w+", np.float32, shape)
        vectors.take(store, plan.table_folder, spans, ids, xt)
    trained = train(plan.factory, xt, plan.record.d, available_cpus())
    (scratch / "sample.npy").unlink(missing_ok=True)
    store.replace(file, trained)
    store.replace_json(note, {"sha256": hashlib.sha256(trained).hexdigest()})
    return trained
