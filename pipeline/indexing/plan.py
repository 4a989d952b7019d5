"""What an index is to be built from, and as what: the choice before any work.

In: an `IndexConfig` and a table. Out: a `Plan`, with a digest of all that the result depends on; a build that was
planned from the same has nothing to do.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IndexConfig
from pipeline.errors import InputError
from pipeline.indexing import publish
from pipeline.indexing.choose import check_mergeable, choose_factory
from pipeline.indexing.queries import Texts, read_texts
from pipeline.indexing.train import check_trainable
from pipeline.store import Store
from pipeline.table import Receipt, TableRecord, live_receipts, read_receipts, read_record, table_folder

TextEncoder = Callable[[TableRecord, Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """What is to be built, and from what."""

    config: IndexConfig
    store: Store
    record: TableRecord
    table: str
    receipts: tuple[Receipt, ...]  # that make up the table
    factory: str
    texts: Texts | None  # to measure recall with, beside rows
    encode_texts: TextEncoder | None
    asked: str  # digest of the queries that recall is measured with
    inputs: str  # digest of all that the result depends on
    started: float  # by time.monotonic

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return sum(receipt.embedded for receipt in self.receipts)

    @property
    def table_folder(self) -> str:
        """Where the table lies."""
        return table_folder(self.table)


def plan(config: IndexConfig, store: Store, table: str, encode_texts: TextEncoder | None) -> Plan:
    """Choose the key, and digest what the index depends on.

    Raises:
        InputError: no such table, no vectors in it, or a key that cannot be used.
    """
    started = time.monotonic()
    record = read_record(store, table)
    receipts = tuple(live_receipts(read_receipts(store, table_folder(table)).values()).values())
    n = sum(receipt.embedded for receipt in receipts)
    if record is None or not n:
        raise InputError(f"table {table}: no embedded rows to index")
    chosen = config.factory or choose_factory(n, record.d, config.memory_budget, config.latency_budget_ms)
    factory = check_mergeable(chosen)
    check_trainable(factory, n, record.d)
    texts = read_texts(config.text_queries, record.d)
    if texts is not None and texts.vectors is None and encode_texts is None:
        texts = None
    asked = digest([config.queries, texts and texts.digest, config.seed])
    files = sorted((file.path, file.sha256) for receipt in receipts for file in receipt.data)
    inputs = digest([files, record.space, factory, config.recall_target, asked])
    return Plan(config, store, record, table, receipts, factory, texts, encode_texts, asked, inputs, started)


def new_version(inputs: str) -> str:
    """Name a version: versions sort by when they were made."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{inputs[:8]}"


def same_inputs(planned: Plan) -> publish.Card | None:
    """Find the newest version that was built from the same."""
    names = publish.versions(planned.store, planned.table)
    cards = (publish.read_card(planned.store, planned.table, name) for name in names)
    return next((card for card in cards if card.inputs == planned.inputs), None)


def digest(parts: list[object]) -> str:
    """Digest what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
