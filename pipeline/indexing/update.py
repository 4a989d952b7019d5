"""An index changed without building it anew: rows that were added, rows that are gone, lists written together.

In: a `Plan` and the card of the version that is published. Out: the card of a version that names that one's files. New
rows are filled into a delta under the same training; rows that are gone stay in lists and files, and are left out of
every search. Where the delta and what is gone make up a tenth, base and delta are written as one, without what is gone.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import faiss
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
    whole = scratch / "version"
    whole.mkdir()
    old = {path: _version_file(plan, card, path, scratch) for path in card.sha256}
    change = Change(plan, card, old, *vectors.changes(known_spans(plan, card), plan.receipts, card.end))
    folder = publish.build_folder(plan.table, digest([plan.inputs, card.version]))
    partials = []
    if change.new:
        partials = fill_all(plan, change.new, change.trained, card.training, folder, is_addition=True)
    lists = lists_of(plan.store, partials, card.training, scratch)
    index, drift, is_compact = _index(change, lists, whole, compact=compact)
    files = [np.load(old[path], mmap_mode="r") for path in card.files[publish.VECTORS]]
    if partials:
        files += exact_of(plan.store, partials, scratch).files
        drift["nearness_added"] = mean_nearness(partials)
    index = replace(index, exact=Exact(files))
    check_self_hits(plan.store, index, partials, change.trained, scratch)
    version = new_version(digest([plan.inputs, card.version, is_compact]))
    made = Made(
        version=version,
        factory=card.factory,
        index=index,
        spans=change.spans,
        end=change.end,
        base=version if is_compact else card.base,
        base_rows=change.end if is_compact else card.base_rows,
        trained_on=card.trained_on,
        training=card.training,
        training_rows=card.training_rows,
        partials=partials,
        drift=drift,
    )
    for role in (publish.TRAINED, publish.VECTORS, publish.ROW_IDS, *([] if is_compact else [publish.INDEX])):
        for path in card.files[role]:
            made.keep(role, path, card)
    truths = brought_up(load(old[card.only(publish.TRUTH)]), blocks(plan, change.new), change.live)
    changed = finish(plan, made, truths, whole, lease, (card.nprobe or 1, card.margin))
    plan.store.remove_many([f"{folder}/{path}" for path in plan.store.files(folder)], lease.check)
    logger.info(
        "index=%s/%s goes_on_from=%s added=%d gone=%d compacted=%s",
        plan.table, version, card.version, vectors.count(change.new), change.end - change.live.count, is_compact,
    )  # fmt: skip
    return changed


@dataclass(frozen=True)
class Change:
    """A version, and which rows stay in it and come to it."""

    plan: Plan
    card: Card
    old: dict[str, Path]  # the version's files, known to be whole
    kept: list[Span]
    new: list[Span]

    @property
    def spans(self) -> list[Span]:
        """The units there will be, in the order of ids."""
        return self.kept + self.new

    @property
    def end(self) -> int:
        """Ids below it will be given."""
        return self.card.end + vectors.count(self.new)

    @cached_property
    def live(self) -> Selection:
        """The ids of rows that are not gone."""
        return Selection.of(live_ids(self.spans), self.end)

    @cached_property
    def trained(self) -> bytes:
        """The empty index that all lists were filled under."""
        return self.old[self.card.only(publish.TRAINED)].read_bytes()


def _index(
    change: Change, filled: list[faiss.InvertedLists], whole: Path, *, compact: bool
) -> tuple[Index, dict[str, float], bool]:
    """Put lists that were filled behind the delta's, or all into a base of their own; say whether it was that.

    Returns:
        An index still without vectors, how well rows fit its lists, and whether base and delta are one.
    """
    card, live, end = change.card, change.live, change.end
    base = read_index(change.old[card.only(publish.INDEX)])
    added = [*(read_lists(change.old[path]) for path in card.files.get(publish.DELTA, [])), *filled]
    lists = [inner_ivf(base).invlists, *added]
    drift = {**card.drift, "imbalance_now": round(imbalance(np.sum([lengths(each) for each in lists], axis=0)), 3)}
    listed, in_delta = sum(each.compute_ntotal() for each in lists), end - card.base_rows
    deltas = []
    if compact := compact or listed - live.count + in_delta > COMPACT_FROM * listed:
        write_index(change.trained, lists, whole / publish.INDEX, live)
        base = read_index(whole / publish.INDEX)
        check_ids(inner_ivf(base).invlists, live.ids)
    elif added:
        write_lists(added, whole / publish.DELTA)
        delta = read_lists(whole / publish.DELTA)
        check_ids(delta, np.arange(card.base_rows, end))
        deltas = [delta_index(change.trained, delta)]
    nothing = Exact([np.empty((0, card.d), np.float16)])
    return Index(base, nothing, rerank=rerank(card.factory), deltas=deltas, live=live), drift, compact


def _version_file(plan: Plan, card: Card, path: str, scratch: Path) -> Path:
    """Give a file that a version names, once it is known to be whole."""
    return plan.store.get_checked(f"{publish.index_folder(plan.table)}/{path}", card.sha256[path], scratch)
