"""Which version of an index answers, chosen by hand: one that is named, or the one before.

In: a table's versions. Out: CURRENT, swapped under the index's lease. Servers take it over by themselves.
"""

from pipeline.config import PublishConfig, RollbackConfig
from pipeline.errors import InputError
from pipeline.indexing import publish
from pipeline.indexing.publish import Card
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import find_table


def publish_version(config: PublishConfig) -> Card:
    """Publish a version that is there, also one that was withdrawn.

    Raises:
        InputError: there is no such version.
        IncompleteError: its recall is below what was asked of it.
        LeaseHeldError: a build of this table's index is running.
    """
    store, table = _opened(config)
    with Lease(store, publish.index_folder(table)) as lease:
        card = publish.read_card(store, table, config.version)
        lease.confirm()
        publish.publish(store, card)
        publish.restore(store, card)
    return card


def roll_back(config: RollbackConfig) -> Card:
    """Publish the version before the published one, which is withdrawn: no build publishes it again by itself.

    Raises:
        InputError: nothing is published, or nothing older is left that may be.
        LeaseHeldError: a build of this table's index is running.
    """
    store, table = _opened(config)
    with Lease(store, publish.index_folder(table)) as lease:
        current = publish.read_current(store, table)
        if current is None:
            raise InputError(f"table {table}: no index is published; there is nothing to roll back")
        cards = (publish.read_card(store, table, name) for name in publish.versions(store, table) if name < current)
        fit = (card for card in cards if publish.is_fit(card) and not publish.is_withdrawn(store, card))
        before = next(fit, None)
        if before is None:
            raise InputError(f"index {table}/{current}: no older version is left to roll back to")
        lease.confirm()
        publish.withdraw(store, publish.read_card(store, table, current), "rolled back")
        publish.publish(store, before)
    return before


def _opened(config: PublishConfig | RollbackConfig) -> tuple[Store, str]:
    store = Store(config.store)
    store.check_writable(single_writer=config.single_writer)
    return store, find_table(store, config.table)
