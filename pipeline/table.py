"""What rests in a table's folder and how it is read: its record, its units' receipts, its name.

Here the rooms meet: embedding writes these files, indexing and searching read them. Knows neither how rows are made
nor what they are for.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline.config import Precision
from pipeline.errors import IncompleteError, InputError
from pipeline.model import PreprocessSpec
from pipeline.store import Store

ImageKind = Literal["bytes", "reference", "struct"]  # encoded bytes; paths and URLs; Hugging Face's pair of both


@dataclass(frozen=True)
class Unit:
    """Whole row groups of one shard, planned, written and committed together."""

    id: str
    shard: str  # its URL
    first_row: int  # within the shard
    rows: int
    first_group: int
    groups: int


@dataclass(frozen=True)
class File:
    """A file of a table, as it was when it was written."""

    path: str  # below the table's folder
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """A finished unit. Its files are in the order of its rows, so a row's rank never depends on scheduling.

    With partition_by the order is by run of rows, then by partition.
    """

    unit: str
    shard: str  # its URL
    first_row: int
    first_group: int
    groups: int
    rows_in: int
    embedded: int
    rejected: int
    reasons: dict[str, int]
    encoders: tuple[str, ...]  # device, precision and versions that the vectors were computed with
    data: tuple[File, ...]
    rejects: tuple[File, ...]
    seconds: float  # since the receipt before it in the same run: the sum is the run's time


@dataclass(frozen=True)
class TableRecord:
    """table.json: what every row of the table has in common. Two runs that differ in it never mix."""

    source: str
    image_column: str
    image_kind: ImageKind
    key_column: str | None
    kept: dict[str, str]  # column name -> Arrow type
    partition_by: tuple[str, ...]
    unit_rows: int
    space: str
    model: str  # resolves to the same files again
    model_id: str
    model_sha256: dict[str, str]
    preprocess: PreprocessSpec
    precision: Precision | None  # as asked for first; what each unit was computed in, its receipt says
    d: int


def table_folder(table: str) -> str:
    """Give a table's folder below the store's root."""
    return f"embeddings/{table}"


def receipt_path(folder: str, unit: str) -> str:
    """Give the path of a unit's receipt below the store's root."""
    return f"{folder}/receipts/{unit}.json"


def find_table(store: Store, table: str | None) -> str:
    """Name the table that is meant: the one asked for, or the store's only one.

    Raises:
        InputError: there is no such table, none at all, or more than one to choose from.
    """
    known = [name for name in store.folders("embeddings") if store.exists(f"{table_folder(name)}/table.json")]
    if table is None and len(known) == 1:
        return known[0]
    if table in known and table is not None:
        return table
    wanted = "--table" if table is None else f"table {table!r}"
    raise InputError(f"store {store.url}: wanted {wanted}; it has {', '.join(known) or 'no tables'}")


def read_record(store: Store, table: str) -> TableRecord | None:
    """Read table.json; None if the table has none yet.

    Raises:
        InputError: the file is not a table's record.
    """
    path = f"{table_folder(table)}/table.json"
    try:
        fields = store.read_json(path)
        fields.pop("versions")
        return TypeAdapter(TableRecord).validate_python(fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def write_record(store: Store, table: str, record: TableRecord, versions: dict[str, str]) -> None:
    """Write table.json with the software versions beside it."""
    content = json.dumps({**asdict(record), "versions": versions}, indent=1)
    store.replace(f"{table_folder(table)}/table.json", content.encode())


def read_receipts(store: Store, folder: str) -> dict[str, Receipt]:
    """Read all receipts of a table's folder, by unit.

    Raises:
        InputError: a receipt that is not one.
    """
    contents = store.read_many(f"{folder}/receipts", ".json")
    receipts = (parse_receipt(f"{folder}/receipts/{name}", content) for name, content in contents.items())
    return {receipt.unit: receipt for receipt in receipts}


def parse_receipt(path: str, content: bytes) -> Receipt:
    """Turn a receipt's JSON into a Receipt.

    Raises:
        InputError: it is not one.
    """
    try:
        fields: dict[str, Any] = json.loads(content)  # text, numbers and lists of files
        for kind in ("data", "rejects"):
            fields[kind] = tuple(File(**file) for file in fields[kind])
        fields["encoders"] = tuple(fields["encoders"])
        return Receipt(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"receipt {path} is damaged ({error}); remove it to embed its unit again") from error


def read_checked(store: Store, folder: str, file: File) -> pa.Table:
    """Read one Parquet file of a table, all of it, after checking that it is the file that was written.

    Raises:
        IncompleteError: it is missing or damaged.
    """
    path = f"{folder}/{file.path}"
    try:
        content = store.read(path)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path} is missing; remove its unit's receipt to embed the unit again") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise IncompleteError(
            f"{path} is damaged: {len(content)} bytes of {file.bytes}, and not those written; remove it and its unit's "
            "receipt to embed the unit again"
        )
    return pq.read_table(io.BytesIO(content))
