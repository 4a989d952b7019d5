"""Every column at every boundary, its Arrow type, and the closed list of reasons for a reject.

Columns that travel between steps and columns that rest in Parquet are spelled here and nowhere else. Names of ours
begin with an underscore (``vector`` apart), so that a user's kept columns rarely meet them; `RESERVED` says which
are refused.
"""

from collections.abc import Mapping
from enum import StrEnum

import pyarrow as pa

# At rest, in data/ and rejects/.
ROW_ID = "_row_id"
SOURCE_ID = "_source_id"
MODEL_ID = "_model_id"
VECTOR = "vector"
CONTENT_HASH = "_content_hash"  # SHA-256 of the encoded image, in hexadecimal; also in flight
THUMBNAIL = "_thumbnail"  # the picture in WebP, small, where the table keeps them; also in flight
STATUS = "_status"
ERROR = "_error"  # also in flight; null where the row is good
STATUS_ERROR = "error"
REJECT_SHARD, REJECT_ROW, REJECT_REASON = "shard", "row", "reason"

# In flight only.
UNIT = "_unit"
SHARD = "_shard"  # the URL of the file a row is read from
ROW = "_row"  # its number within that file
REASON = "_reason"  # null where the row is good
IMAGE = "_image"  # encoded bytes, null where there are none
REFERENCE = "_reference"  # a path or URL to fetch the bytes from
KNOWN = "_known"  # the vector, float32 as bytes, that an earlier state of the shard had for these contents, or null
PIXELS = "_pixels"  # uint8, (3, height, width) flattened
ENCODER = "_encoder"  # device, precision and versions that a vector was computed with

# In results of a search, before the source's own columns.
SIMILARITY = "similarity"  # inner product of unit vectors: 1 is the same direction
QUERY = "_query"  # the number of the query, where there are several
RECIPROCAL_RANK = "reciprocal_rank"  # of lists that were fused
RESULTS = (ROW_ID, SOURCE_ID, SIMILARITY, QUERY, RECIPROCAL_RANK, VECTOR)

UNREADABLE = "unreadable"  # in place of a reason, in a row that stands for all others of a unit: it cannot be read

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
UNIT_FOLDER = "unit"  # the hive key of data/ and rejects/
RESERVED = frozenset(
    {
        ROW_ID,
        SOURCE_ID,
        MODEL_ID,
        VECTOR,
        SHARD,
        ROW,
        STATUS,
        ERROR,
        REASON,
        UNIT,
        IMAGE,
        REFERENCE,
        CONTENT_HASH,
        THUMBNAIL,
        KNOWN,
        PIXELS,
        ENCODER,
        UNIT_FOLDER,
    }
)


class Reason(StrEnum):
    """Why a row could not be embedded."""

    NULL = "null"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    DECODE_FAILED = "decode_failed"
    TRUNCATED = "truncated"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SLOW = "too_slow"
    FETCH_NOT_FOUND = "fetch_not_found"
    FETCH_DENIED = "fetch_denied"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_TOO_LARGE = "fetch_too_large"
    FETCH_FAILED = "fetch_failed"
    BLOCKED_ADDRESS = "blocked_address"
    ZERO_VECTOR = "zero_vector"
    DUPLICATE_KEY = "duplicate_key"


def counted_as_bad(reasons: Mapping[str, int]) -> int:
    """Count the rejects that a limit on rejects is for: not those that the source asked to leave out."""
    return sum(rows for reason, rows in reasons.items() if reason != Reason.DUPLICATE_KEY)


class RejectedRowError(Exception):
    """One row that cannot be embedded: its reason, and the detail that a person needs."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def error_text(reason: Reason, row: int, detail: str) -> str:
    """Word a reject for people; the first two forms are a contract with readers of rejects/."""
    if reason is Reason.NULL:
        return "Null or missing image input"
    if reason is Reason.ZERO_VECTOR:
        return f"Failed to encode image at row {row}: {detail}"
    if reason is Reason.DUPLICATE_KEY:
        return f"Left out image at row {row}: {detail}"
    return f"Failed to decode image at row {row}: {detail}"


def vector_type(d: int) -> pa.DataType:
    """A vector of d float32, as every Parquet reader knows it."""
    return pa.list_(pa.float32(), d)


def embeddings_schema(d: int, kept: pa.Schema, *, content_hashes: bool = True, thumbnails: bool = False) -> pa.Schema:
    """The columns of data/: ours, then the kept ones. The first format had no content hashes."""
    ours = [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(SOURCE_ID, pa.string(), nullable=False),
        pa.field(MODEL_ID, pa.string(), nullable=False),
        pa.field(VECTOR, vector_type(d), nullable=False),
        *([pa.field(CONTENT_HASH, pa.string(), nullable=False)] if content_hashes else []),
        *([pa.field(THUMBNAIL, pa.binary())] if thumbnails else []),
    ]
    return pa.schema(ours + list(kept))


REJECTS_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(REJECT_SHARD, pa.string(), nullable=False),
        pa.field(REJECT_ROW, pa.int64(), nullable=False),
        pa.field(STATUS, pa.string(), nullable=False),
        pa.field(ERROR, pa.string(), nullable=False),
        pa.field(REJECT_REASON, pa.string(), nullable=False),
    ]
)

# What is found of duplicates: pairs of rows, by the stage that found them, and the rows of groups.
DUPLICATE_EDGES_SCHEMA = pa.schema(
    [
        pa.field("row_id_a", pa.string(), nullable=False),
        pa.field("row_id_b", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of vectors; of small pictures where it is perceptual
        pa.field("hamming", pa.int16()),  # bits in which hashes differ; null where they were not compared
        pa.field("joins", pa.bool_(), nullable=False),  # no: only kept to be looked at
    ]
)
DUPLICATE_GROUPS_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64(), nullable=False),
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field("is_keeper", pa.bool_(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of its vector and the keeper's
        pa.field("stages", pa.list_(pa.string()), nullable=False),  # that join it to another of its group
    ]
)

FILE_TYPE = pa.struct([("path", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())])

# What the write step reports to the driver: a run of consecutive rows of one unit, and the files they lie in.
PART_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("embedded", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("reused", pa.int64()),
        pa.field("reasons", pa.list_(pa.struct([("reason", pa.string()), ("rows", pa.int64())]))),
        pa.field("encoders", pa.list_(pa.string())),
        pa.field("data", pa.list_(FILE_TYPE)),
        pa.field("rejects", pa.list_(FILE_TYPE)),
        pa.field("unreadable", pa.string()),  # why the unit cannot be read; null where it can
        pa.field("failed", pa.string()),  # why the rows cannot be written; null where they are
    ]
)


def replace_columns(batch: pa.Table, drop: list[str], new: dict[str, pa.Array]) -> pa.Table:
    """Drop columns and append others; a new one takes the place of an old one of the same name."""
    batch = batch.drop_columns(drop)
    for name, column in new.items():
        place = batch.schema.get_field_index(name)
        batch = batch.append_column(name, column) if place < 0 else batch.set_column(place, name, column)
    return batch


def outcome_columns(reasons: list[str | None], errors: list[str | None]) -> dict[str, pa.Array]:
    """Make the two columns that say what became of each row."""
    return {REASON: pa.array(reasons, pa.string()), ERROR: pa.array(errors, pa.string())}
