"""What rests in a table's folder and how it is read: its record, its units' receipts, its shards, its name.

Here the rooms meet: embedding writes these files, indexing and searching read them. Knows neither how rows are made
nor what they are for.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline.config import Precision
from pipeline.errors import IncompleteError, InputError
from pipeline.model import PreprocessSpec
from pipeline.seal import unseal
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
    state: str | None = None  # of the shard: rows of another state are other rows
    shard_rows: int | None = None  # in this state
    fingerprint: str | None = None  # of the shard's file when it was listed; None: not checked when it is read


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
    # What the first format did not say:
    state: str | None = None  # of the shard
    shard_rows: int | None = None  # in this state
    lease: int = 0  # number of the lease it was written under: later ones are larger, whatever clocks say
    reused: int = 0  # rows whose vector an earlier state of the shard had already


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
    content_hashes: bool = False  # whether rows have them; the first format had none

    @property
    def has_model(self) -> bool:
        """Tell whether a checkpoint is known that encodes queries; of vectors made elsewhere there may be none."""
        return bool(self.model_sha256)


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
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def write_record(store: Store, table: str, record: TableRecord, versions: dict[str, str]) -> None:
    """Write table.json with the software versions beside it."""
    store.replace_json(f"{table_folder(table)}/table.json", {**asdict(record), "versions": versions})


def live_receipts(receipts: Iterable[Receipt]) -> dict[str, Receipt]:
    """Choose the receipts that make up the table, by unit: of every shard those of one state.

    That is the newest state all of whose rows have been written: a shard that was rewritten changes over at once, with
    the last of its units. Where no state is whole, as of a new shard, the newest counts as far as it is there.
    """
    states: dict[str, dict[str | None, list[Receipt]]] = {}
    for receipt in receipts:
        states.setdefault(receipt.shard, {}).setdefault(receipt.state, []).append(receipt)
    chosen = (max(of_shard.values(), key=_standing) for of_shard in states.values())
    return {receipt.unit: receipt for one_state in chosen for receipt in one_state}


def reasons_of(receipts: Iterable[Receipt]) -> Counter[str]:
    """Count the rejects that some receipts name, by reason."""
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        reasons.update(receipt.reasons)
    return reasons


def _standing(one_state: list[Receipt]) -> tuple[bool, int]:
    """Rank the states of a shard. The first format did not say how many rows there are: it is taken as whole."""
    wanted = one_state[0].shard_rows
    is_whole = wanted is None or sum(receipt.rows_in for receipt in one_state) == wanted
    return is_whole, max(receipt.lease for receipt in one_state)


def read_receipts(store: Store, folder: str) -> dict[str, Receipt]:
    """Read all receipts of a table's folder, by unit; also those that others have taken the place of.

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
        fields: dict[str, Any] = unseal(content)  # text, numbers and lists of files
        for kind in ("data", "rejects"):
            fields[kind] = tuple(File(**file) for file in fields[kind])
        fields["encoders"] = tuple(fields["encoders"])
        return Receipt(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"receipt {path} is damaged ({error}); remove it, and the next run embeds its unit again"
        ) from error


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
