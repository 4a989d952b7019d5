"""An index changed without building it anew: rows that were added, rows that are gone, lists written together.

In: a `Plan` and the card of the version that is published. Out: the card of a version that names that one's files. New
rows are filled into a delta under the same training; rows that are gone stay in lists and files, and are left out of
every search. Where the delta and what is gone make up a tenth, base and delta are written as one, without what is gone.
"""

import logging
from pathlib import Path

import numpy as np

from pipeline.indexing import publish, vectors
from pipeline.indexing.build import blocks, exact_of, mean_nearness
from pipeline.indexing.choose import nlist, rerank
from pipeline.indexing.exact import Exact, Selection
from pipeline.indexing.fill import fill_all
from pipeline.indexing.index import Index, inner_ivf
from pipeline.indexing.lists import delta_index, imbalance, lengths, read_index, read_lists, write_index, write_lists
from pipeline.indexing.made import Made, finish, live_ids, read_units
from pipeline.indexing.merge import check_ids, check_self_hits, lists_of
from pipeline.indexing.plan import Plan, digest, new_version
from pipeline.indexing.publish import Card
from pipeline.indexing.tune import brought_up, load
from pipeline.indexing.vectors import Span
from pipeline.lease import Lease

logger = logging.getLogger(__name__)

COMPACT_FROM = 0.1  # of the rows in lists: added to the delta, or gone


def can_update(plan: Plan, card: Card) -> bool:
    """Tell whether a version can be gone on from: of the same kind, and most of its rows those it was trained on."""
    wanted = (plan.record.space, plan.config.seed, plan.asked)
    if not nlist(card.factory) or publish.TRUTH not in card.files or (card.space, card.seed, card.asked) != wanted:
        return False
    if plan.config.factory not in (None, card.factory):
        return False
    kept, new = vectors.changes(known_spans(plan, card), plan.receipts, card.end)
    end = card.end + vectors.count(new)
    changed = (end - vectors.count(kept + new)) + (end - card.trained_on)  # gone, and added since
    return changed <= plan.config.rebuild_after * card.trained_on


def known_spans(plan: Plan, card: Card) -> list[Span]:
    """Read which units a version has."""
    with plan.store.scratch(publish.index_folder(plan.table)) as scratch:
        return read_units(_version_file(plan, card, card.only(publish.UNITS), scratch))


def update(plan: Plan, card: Card, lease: Lease, scratch: Path, *, compact: bool = False) -> Card:
    """Add the rows that are new, and leave out those that are gone.

    Args:
        compact: write base and delta as one, however small the delta.

    Raises:
        IncompleteError: a file is damaged, the new lists do not verify, or the lease was lost.
    """
    kept, new = vectors.changes(known_spans(plan, card), plan.receipts, card.end)
    spans, end = kept + new, card.end + vectors.count(new)
    live = Selection.of(live_ids(spans), end)
    folder = publish.build_folder(plan.table, digest([plan.inputs, card.version]))
    old = {path: _version_file(plan, card, path, scratch) for path in card.sha256}
    trained = old[card.only(publish.TRAINED)].read_bytes()
    partials = fill_all(plan, new, trained, card.training, folder) if new else []
    base = read_index(old[card.only(publish.INDEX)])
    added = [read_lists(old[path]) for path in card.files.get(publish.DELTA, [])]
    added += lists_of(plan.store, partials, card.training, scratch)
    listed = int(base.ntotal) + end - card.base_rows
    changed = listed - live.count + end - card.base_rows  # gone, and in the delta
    whole = scratch / "version"
    whole.mkdir()
    lists = [inner_ivf(base).invlists, *added]
    drift = {**card.drift, "imbalance_now": round(imbalance(np.sum([lengths(each) for each in lists], axis=0)), 3)}
    if partials:
        drift["nearness_added"] = mean_nearness(partials)
    if compact := compact or changed > COMPACT_FROM * listed:
        write_index(trained, lists, whole / publish.INDEX, live)
        base, added = read_index(whole / publish.INDEX), []
        check_ids(inner_ivf(base).invlists, live.ids)
    elif added:
        write_lists(added, whole / publish.DELTA)
        added = [read_lists(whole / publish.DELTA)]
        check_ids(added[0], np.arange(card.base_rows, end))
    files = [np.load(old[path], mmap_mode="r") for path in card.files[publish.VECTORS]]
    index = Index(
        base,
        Exact([*files, *(exact_of(plan.store, partials, scratch).files if partials else [])]),
        rerank=rerank(card.factory),
        deltas=[delta_index(trained, each) for each in added],
        live=live,
    )
    check_self_hits(plan.store, index, partials, trained, scratch)
    truths = brought_up(load(old[card.only(publish.TRUTH)]), blocks(plan, new), live)
    version = new_version(digest([plan.inputs, card.version, compact]))
    made = Made(
        version=version,
        factory=card.factory,
        index=index,
        spans=spans,
        end=end,
        base=version if compact else card.base,
        base_rows=end if compact else card.base_rows,
        trained_on=card.trained_on,
        training=card.training,
        training_rows=card.training_rows,
        partials=partials,
        drift=drift,
    )
    stays = {publish.TRAINED, publish.VECTORS, publish.ROW_IDS} | (set() if compact else {publish.INDEX})
    for role in sorted(stays):
        for path in card.files[role]:
            made.keep(role, path, card)
    changed_card = finish(plan, made, truths, whole, lease, card.nprobe or 1)
    plan.store.remove_many([f"{folder}/{path}" for path in plan.store.files(folder)], lease.check)
    logger.info(
        "index=%s/%s goes_on_from=%s added=%d gone=%d compacted=%s",
        plan.table, version, card.version, vectors.count(new), end - live.count, compact,
    )  # fmt: skip
    return changed_card


def _version_file(plan: Plan, card: Card, path: str, scratch: Path) -> Path:
    """Give a file that a version names, once it is known to be whole."""
    return plan.store.get_checked(f"{publish.index_folder(plan.table)}/{path}", card.sha256[path], scratch)
