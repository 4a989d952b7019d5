"""Every file of a table and of its indexes held against what names it: digests, sizes, counts, kinds.

In: a store and a table. Out: a `Fault` for each file that is damaged, missing, extra or mixed up with another. Reads
everything once; writes nothing. A run that is writing meanwhile shows as extra files.
"""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import VerifyConfig
from pipeline.embedding.receipts import table_files, unnamed
from pipeline.errors import InputError, RunError
from pipeline.filesystem import STORE_ERRORS
from pipeline.indexing import publish
from pipeline.runs import RUNS
from pipeline.seal import unseal
from pipeline.store import Store
from pipeline.table import (
    File,
    Receipt,
    TableRecord,
    find_table,
    live_receipts,
    parse_receipt,
    read_record,
    table_folder,
)

READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Fault:
    """A file that is not what it should be."""

    path: str  # below the store's root
    kind: Literal["damaged", "missing", "extra", "mixed"]
    detail: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    table: str
    files: int
    bytes: int
    faults: tuple[Fault, ...]


def verify(config: VerifyConfig) -> Verified:
    """Read every file of a table, of its index versions and of its runs, and say what is wrong.

    Raises:
        InputError: there is no such table.
    """
    store = Store(config.store)
    table = _find(store, config.table)
    folder = table_folder(table)
    faults: list[Fault] = []
    receipts = []
    for name, content in store.read_many(f"{folder}/receipts", ".json").items():
        try:
            receipts.append(parse_receipt(f"{folder}/receipts/{name}", content))
        except InputError as error:
            faults.append(Fault(f"{folder}/receipts/{name}", "damaged", str(error)))
        else:
            faults += _misplaced(f"{folder}/receipts/{name}", name, receipts[-1])
    damaged = {fault.path.rpartition("/")[2].removesuffix(".json") for fault in faults if fault.kind == "damaged"}
    faults += [
        Fault(f"{folder}/{path}", "extra", "no receipt names it")
        for path in unnamed(table_files(store, folder), receipts)
        if not _is_of(damaged, path)  # then the receipt is what is wrong, not the file
    ]
    faults += _superseded(folder, receipts)
    record = _record(store, table, faults)
    faults += _sealed_faults(store, table)
    with ThreadPoolExecutor(config.threads) as pool:
        named = [(receipt, file, kind) for receipt in receipts for kind, file in _files(receipt)]
        for fault in pool.map(lambda one: _file_fault(store, folder, record, *one), named):
            faults += [fault] if fault is not None else []
        versions = list(_index_files(store, table, faults))
        for fault in pool.map(lambda one: _digest_fault(store, *one), versions):
            faults += [fault] if fault is not None else []
    sizes = [file.bytes for _, file, _ in named] + [size for _, size, _ in versions]
    return Verified(table, len(receipts) + len(sizes), sum(sizes), tuple(sorted(faults, key=lambda one: one.path)))


def _find(store: Store, table: str | None) -> str:
    """Find the table; one whose table.json is gone can be named all the same."""
    if table is not None and table in store.folders("embeddings"):
        return table
    return find_table(store, table)


def _files(receipt: Receipt) -> Iterator[tuple[str, File]]:
    yield from (("data", file) for file in receipt.data)
    yield from (("rejects", file) for file in receipt.rejects)


def _misplaced(path: str, name: str, receipt: Receipt) -> Iterator[Fault]:
    """Find a receipt under another's name, or whose counts do not close."""
    if name != f"{receipt.unit}.json":
        yield Fault(path, "mixed", f"it is the receipt of unit {receipt.unit}")
    counts = (sum(file.rows for file in receipt.data), sum(file.rows for file in receipt.rejects))
    if counts != (receipt.embedded, receipt.rejected) or sum(counts) != receipt.rows_in:
        yield Fault(path, "damaged", f"its counts do not close: {receipt.rows_in} rows in, {counts} in files")


def _superseded(folder: str, receipts: list[Receipt]) -> Iterator[Fault]:
    live = live_receipts(receipts)
    for receipt in receipts:
        if receipt.unit not in live:
            path = f"{folder}/receipts/{receipt.unit}.json"
            yield Fault(path, "extra", f"{receipt.shard} has another state; the next run or vacuum removes this one")


def _is_of(units: set[str], path: str) -> bool:
    """Tell whether a file lies in the folder of one of these units."""
    return any(part.removeprefix(f"{schema.UNIT_FOLDER}=") in units for part in path.split("/"))


def _record(store: Store, table: str, faults: list[Fault]) -> TableRecord | None:
    path = f"{table_folder(table)}/table.json"
    try:
        record = read_record(store, table)
    except InputError as error:
        faults.append(Fault(path, "damaged", str(error)))
        return None
    if record is None:
        faults.append(Fault(path, "missing", "nothing says what the table's rows have in common"))
    return record


def _sealed_faults(store: Store, table: str) -> Iterator[Fault]:
    """Read the other JSON files of a table and the records of its runs."""
    folder = table_folder(table)
    if not store.exists(f"{folder}/config.json"):
        yield Fault(f"{folder}/config.json", "missing", "a server needs it to read pictures as they were read")
    paths = [f"{folder}/{name}" for name in ("config.json", "shards.json") if store.exists(f"{folder}/{name}")]
    paths += [f"{top}/{path}" for top in (RUNS, "sources") for path in store.files(top) if path.endswith(".json")]
    for path in paths:
        try:
            unseal(store.read(path))
        except ValueError as error:
            yield Fault(path, "damaged", str(error))


def _file_fault(
    store: Store, folder: str, record: TableRecord | None, receipt: Receipt, file: File, kind: str
) -> Fault | None:
    """Hold a Parquet file against its receipt: first its digest, then what it says of itself."""
    path = f"{folder}/{file.path}"
    try:
        content = store.read(path)
    except FileNotFoundError:
        return Fault(path, "missing", f"the receipt of unit {receipt.unit} names it")
    except STORE_ERRORS as error:
        return Fault(path, "damaged", f"it cannot be read: {error}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return Fault(path, "damaged", f"{len(content)} bytes of {file.bytes}, and not those that were written")
    try:
        footer = pq.ParquetFile(io.BytesIO(content))
    except pa.ArrowException as error:
        return Fault(path, "damaged", f"it is no Parquet file: {error}")
    if footer.metadata.num_rows != file.rows:
        return Fault(path, "mixed", f"{footer.metadata.num_rows} rows; its receipt says {file.rows}")
    columns = footer.schema_arrow
    if kind == "data" and record is not None and _vector_type(columns) != schema.vector_type(record.d):
        return Fault(path, "mixed", f"vector is {_vector_type(columns)}; the table has d {record.d}")
    if kind == "data" and record is not None:
        models = set(pq.read_table(io.BytesIO(content), columns=[schema.MODEL_ID])[schema.MODEL_ID].to_pylist())
        if models != {record.model_id}:
            return Fault(path, "mixed", f"model {', '.join(sorted(models))}; the table has {record.model_id}")
    return None


def _vector_type(columns: pa.Schema) -> pa.DataType | None:
    return columns.field(schema.VECTOR).type if schema.VECTOR in columns.names else None


def _index_files(store: Store, table: str, faults: list[Fault]) -> Iterator[tuple[str, int, str]]:
    """Yield (path, bytes, SHA-256) of every file that a card names; note what is wrong with cards and CURRENT."""
    folder = publish.index_folder(table)
    found = store.files(folder)
    named = set()
    for path in sorted(found):
        if not path.endswith(f"/{publish.CARD}"):
            continue
        version = path.split("/")[0]
        named |= {path, f"{version}/{publish.WITHDRAWN}"}
        try:
            card = publish.read_card(store, table, version)
        except RunError as error:
            faults.append(Fault(f"{folder}/{path}", "damaged", str(error)))
            named |= {other for other in found if other.startswith(f"{version}/")}
            continue
        if card.version != version:
            faults.append(Fault(f"{folder}/{path}", "mixed", f"it is the card of version {card.version}"))
        for name, digest in card.sha256.items():
            if name not in named:  # versions share files
                named.add(name)
                yield f"{folder}/{name}", card.bytes[name], digest
    faults += [
        Fault(f"{folder}/{path}", "extra", "no card names it")
        for path in found
        if path not in named and path != publish.CURRENT and not path.startswith("lease/")
    ]
    faults += _current_fault(store, table, found)


def _current_fault(store: Store, table: str, found: dict[str, int]) -> Iterator[Fault]:
    path = f"{publish.index_folder(table)}/{publish.CURRENT}"
    if publish.CURRENT not in found:
        return
    content = store.read(path)
    version = publish.read_current(store, table)
    if f"{version}/{publish.CARD}" not in found or content != f"{version}\n".encode():
        yield Fault(path, "damaged", f"{content[:80]!r} names no version of this index")


def _digest_fault(store: Store, path: str, size: int, digest: str) -> Fault | None:
    found, length = hashlib.sha256(), 0
    try:
        with store.filesystem.open(store.path(path), "rb") as file:
            while content := file.read(READ_BYTES):
                found.update(content)
                length += len(content)
    except FileNotFoundError:
        return Fault(path, "missing", "its card names it")
    except STORE_ERRORS as error:
        return Fault(path, "damaged", f"it cannot be read: {error}")
    if found.hexdigest() != digest:
        return Fault(path, "damaged", f"{length} bytes of {size}, and not those that were written")
    return None
