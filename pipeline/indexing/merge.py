"""Partials in, one index out, and proof that nothing was lost, doubled or mixed on the way.

FAISS merges lists of different trainings, and lists whose ids collide, without a word. So digests are compared before,
and count, ids and self-hits from every partial after. Lists go from files to a file, one at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IncompleteError
from pipeline.indexing.exact import Selection
from pipeline.indexing.index import Index, inner_ivf, own_lists, transformed
from pipeline.indexing.lists import ids_of, read_index, read_lists, write_index
from pipeline.indexing.partial import LISTS, PROBES, RECEIPT, VECTORS, Partial, add
from pipeline.store import Store


def merge(
    store: Store, partials: list[Partial], trained: bytes, digest: str, scratch: Path, target: Path
) -> faiss.Index:
    """Merge partials with the empty trained index into a file, in the order of their ids, and open it.

    Args:
        scratch: where copies of a remote store's files go.
        target: the file.

    Raises:
        IncompleteError: a partial was filled under another training, or a file of it is damaged.
    """
    lists = lists_of(store, partials, digest, scratch)
    if lists:
        write_index(trained, lists, target)
    else:
        index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
        for partial in ordered(partials):
            index.add(np.load(part_of(store, partial, VECTORS, scratch), mmap_mode="r"))
        faiss.write_index(index, str(target))
    return read_index(target)


def lists_of(store: Store, partials: list[Partial], digest: str, scratch: Path) -> list[faiss.InvertedLists]:
    """Map the inverted lists of partials, in the order of their ids; none where the key has none.

    Raises:
        IncompleteError: a partial was filled under another training, or a file of it is damaged.
    """
    for partial in partials:
        if partial.training != digest:
            raise IncompleteError(f"{partial.folder}: filled under training {partial.training[:12]}, not {digest[:12]}")
    having = [partial for partial in ordered(partials) if LISTS in partial.sha256]
    return [read_lists(part_of(store, partial, LISTS, scratch)) for partial in having]


def verify(store: Store, index: Index, partials: Sequence[Partial], trained: bytes, scratch: Path) -> None:
    """Check count, ids, and that rows of every partial find themselves.

    Raises:
        IncompleteError: the merged index is not the sum of its partials.
    """
    rows = sum(partial.rows for partial in partials)
    if index.whole.ntotal != rows:
        raise IncompleteError(f"merged index: ntotal {index.whole.ntotal}, wanted {rows}")
    ivf = inner_ivf(index.whole)
    if ivf is not None:
        first = min(partial.base for partial in partials)
        check_ids(ivf.invlists, np.arange(first, first + rows))
    check_self_hits(store, index, partials, trained, scratch)


def check_ids(lists: faiss.InvertedLists, wanted: NDArray[np.int64]) -> None:
    """Check that lists hold exactly these ids, which ascend, each of them once.

    Raises:
        IncompleteError: they do not.
    """
    first, end = int(wanted[0]), int(wanted[-1]) + 1
    seen = np.zeros(end - first, np.uint8)
    for ids in (ids_of(lists, number) for number in range(lists.nlist)):
        if len(ids) and (ids.min() < first or ids.max() >= end):
            raise IncompleteError(f"merged index: ids from {ids.min()} to {ids.max()}, wanted {first} to {end - 1}")
        np.add.at(seen, ids - first, 1)
    expected = np.zeros(end - first, np.uint8)
    expected[wanted - first] = 1
    if not (seen == expected).all():
        raise IncompleteError(f"merged index: {int((seen != expected).sum())} ids are missing, doubled or deleted")


def check_self_hits(store: Store, index: Index, partials: Sequence[Partial], trained: bytes, scratch: Path) -> None:
    """Let a few rows of every partial look for themselves.

    Raises:
        IncompleteError: one does not find itself.
    """
    for partial in partials:
        with np.load(part_of(store, partial, PROBES, scratch)) as probes:
            _look(index, trained, partial.folder, probes["numbers"], probes["vectors"])


def _look(index: Index, trained: bytes, place: str, numbers: NDArray[np.int64], xq: NDArray[np.float32]) -> None:
    """Let rows look for themselves in the lists they belong in; one that is not first must score as it should.

    Exact duplicates crowd a row out, and so do coarse codes; neither is the merge's fault. Then the row's score under
    its own id is compared with what it gets in an index that holds nothing else.
    """
    ivf = inner_ivf(index.whole)
    if ivf is None:
        scores = (index.exact.take(numbers) * xq).sum(axis=1)
        wrong = numbers[~np.isclose(scores, (xq * xq).sum(axis=1), rtol=1e-4)]
    else:
        x = transformed(index.whole, xq)
        own = own_lists(ivf, x)
        missed = np.flatnonzero(index.probe(x, 1, *own)[1][:, 0] != numbers)
        alone = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
        add(alone, xq[missed], numbers[missed])
        found, expected = np.zeros(len(missed), np.float32), np.zeros(len(missed), np.float32)
        for i, row in enumerate(missed):
            itself = Selection.of(numbers[row : row + 1], int(numbers[row]) + 1)
            where = (x[row : row + 1], 1, own[0][row : row + 1], own[1][row : row + 1], itself)
            found[i] = index.probe(*where)[0][0, 0]
            expected[i] = Index(alone, index.exact).probe(*where)[0][0, 0]
        wrong = numbers[missed[~np.isclose(found, expected, rtol=1e-4)]]  # a rotation moves last bits only
    if len(wrong):
        raise IncompleteError(f"merged index: vectors {wrong[:5].tolist()} of {place} do not find themselves")


def part_of(store: Store, partial: Partial, name: str, scratch: Path) -> Path:
    """Give one of a partial's files, once it is known to be whole; a damaged one costs its receipt."""
    try:
        return store.get_checked(f"{partial.folder}/{name}", partial.sha256[name], scratch)
    except IncompleteError:
        store.remove(f"{partial.folder}/{RECEIPT}")  # so that the next run builds it again
        raise


def ordered(partials: list[Partial]) -> list[Partial]:
    """Sort partials by their ids."""
    return sorted(partials, key=lambda partial: partial.base)
