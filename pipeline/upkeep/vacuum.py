"""What nothing names and nobody needs, found and removed: files of dead runs, old index versions, old records.

In: a store and a table. Out: what goes, and why. A file goes only under the lease of whatever it belongs to, so that a
run which is still writing is never robbed.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.config import VacuumConfig
from pipeline.embedding.receipts import table_files, unnamed
from pipeline.indexing import publish
from pipeline.lease import Lease
from pipeline.runs import RUNS, read_run
from pipeline.schema import Reason
from pipeline.store import PROBE, Store
from pipeline.table import find_table, live_receipts, read_receipts, receipt_path, table_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waste:
    """A file that can go."""

    path: str  # below the store's root
    bytes: int
    why: str


def vacuum(config: VacuumConfig) -> list[Waste]:
    """Remove what nothing names, or only name it.

    Raises:
        InputError: there is no such table.
        LeaseHeldError: a run writes the table or its index.
    """
    store = Store(config.store)
    table = find_table(store, config.table)
    if config.dry_run:
        return list(_waste(store, table, config))
    store.check_writable(single_writer=config.single_writer)
    with Lease(store, table_folder(table)) as lease, Lease(store, publish.index_folder(table)) as index_lease:
        waste = list(_waste(store, table, config))
        remove(store, waste, lease, index_lease)
    return waste


def remove(store: Store, waste: Iterable[Waste], *leases: Lease) -> None:
    """Remove files as long as the leases are held: receipts, cards and records before what they name.

    Raises:
        IncompleteError: a lease was lost.
    """

    def confirm() -> None:
        for lease in leases:
            lease.confirm()

    gone = list(waste)
    store.remove_many([file.path for file in gone if file.path.endswith(".json")], confirm)
    store.remove_many([file.path for file in gone if not file.path.endswith(".json")], confirm)
    for file in gone:
        logger.info("removed=%s bytes=%d why=%s", file.path, file.bytes, file.why)


def old_versions(store: Store, table: str, keep: int) -> Iterator[Waste]:
    """Name the files of index versions but the published one and the newest, their cards first.

    Files that a version that stays goes on from are not among them.
    """
    folder = publish.index_folder(table)
    current = publish.read_current(store, table)
    found = store.files(folder)
    versions = sorted({path.split("/")[0] for path in found if path.endswith(publish.CARD)}, reverse=True)
    kept = {*[version for version in versions if version != current][: keep - 1], current}
    cards = {version: publish.read_card(store, table, version) for version in versions}
    named = publish.named_files(card for version, card in cards.items() if version in kept)
    no_more = publish.named_files(cards.values()) - named
    for path in sorted(found, key=lambda path: not path.endswith(publish.CARD)):
        version = path.split("/")[0]
        if path in no_more or (version in cards and version not in kept and path not in named):
            yield Waste(f"{folder}/{path}", found[path], "index version that is neither published nor among the newest")


def old_runs(store: Store, table: str, keep: int) -> Iterator[Waste]:
    """Name the files of a table's runs but the newest."""
    found: dict[str, dict[str, int]] = {}
    for path, size in store.files(RUNS).items():
        found.setdefault(path.split("/")[0], {})[path] = size
    records = ((name, read_run(store, name)) for name in sorted(found, reverse=True))
    ours = [(name, run) for name, run in records if run is not None and run.table == table]
    named = {run.source.get("snapshot") for _, run in ours[:keep]}  # may lie with an older run
    for name, _ in ours[keep:]:
        for path, size in found[name].items():
            if f"{RUNS}/{path}" not in named:
                yield Waste(f"{RUNS}/{path}", size, "record of an old run")


def _waste(store: Store, table: str, config: VacuumConfig) -> Iterator[Waste]:
    folder, receipts = table_folder(table), read_receipts(store, table_folder(table))
    live = live_receipts(receipts.values())
    # Where rows gave way to others of their key, a run must see whose state has changed (again_units in changes.py).
    waits = any(Reason.DUPLICATE_KEY in receipt.reasons for receipt in live.values())
    if waits:
        live = receipts
    for receipt in receipts.values():
        if receipt.unit not in live:
            yield Waste(receipt_path(folder, receipt.unit), 0, "receipt of an earlier state of its shard")
    for path, size in unnamed(table_files(store, folder), live.values()).items():
        yield Waste(f"{folder}/{path}", size, "named by no receipt")
    for path, size in publish.unfinished(store, table).items():
        yield Waste(f"{publish.index_folder(table)}/{path}", size, "of an index build that did not end")
    yield from old_versions(store, table, config.keep_versions)
    yield from old_runs(store, table, config.keep_runs)
    for name, size in store.files_in("").items():
        if name.startswith(PROBE):
            yield Waste(name, size, "left by a test whether the store can be written")
