"""What a table and its source look like, measured on few of their rows: what a report shows beyond its run's record.

In: a store, a table, what the run counted. Out: `Findings`, the same for the same seed. Receipts are listed once;
beyond them a few dozen files and row groups are read, however large the table is. All of it is best effort: the source
may have changed or be gone, and what could not be read is named. Knows nothing of how it is shown.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from pipeline import schema
from pipeline.analysis.headers import read_headers
from pipeline.analysis.source import FAILURES, GoneError, Source, draw_images, image_of, open_source, texts
from pipeline.embedding.sandbox import Sandbox
from pipeline.indexing.vectors import matrix
from pipeline.model import Limits, PreprocessSpec
from pipeline.schema import Reason
from pipeline.store import Store
from pipeline.table import File, Receipt, live_receipts, read_checked, read_receipts, read_record, table_folder

UNITS = 16  # that images and vectors are drawn from
IMAGES, VECTORS, REJECTS = 256, 1024, 4  # drawn in all; rejects of each reason
REJECT_FILES = 8  # of one unit, that are searched for a reason
FILE_BYTES = 256 << 20  # larger files of the table are left alone
IMAGE_BYTES, GROUP_BYTES = 256 << 20, 32 << 20  # of encoded images: read in all, and in memory at a time
SOURCE_S = 30.0  # after which no more images are read, and then no more thumbnails
THUMBNAIL_PX = 112
GREY = (225, 225, 225)
FIRST_BYTES = 40  # of what is no picture, shown as text

NOT_READ_AGAIN: dict[str, str] = {
    Reason.NULL: "there are no bytes",
    Reason.EMPTY: "there are no bytes",
    Reason.TOO_MANY_BYTES: "it has more bytes than are read",
    Reason.BLOCKED_ADDRESS: "it could not be fetched",
    **{reason: "it could not be fetched" for reason in Reason if reason.startswith("fetch_")},
}

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Reject:
    """A row that was rejected, as the table has it, and its picture as the source has it now."""

    row_id: str
    shard: str
    row: int
    error: str
    thumbnail: bytes | None = None  # JPEG
    why_none: str | None = None


@dataclass(frozen=True)
class Picture:
    """An image of the source: its length, and what its header says; None where there is nothing to be read."""

    bytes: int | None
    format: str | None
    width: int
    height: int


@dataclass(frozen=True)
class Findings:
    """What was measured; empty where there was nothing to measure."""

    rejects: dict[str, tuple[Reject, ...]] = field(default_factory=dict)  # by reason
    pictures: tuple[Picture, ...] = ()
    picture_units: int = 0  # that they were drawn from
    norms: tuple[float, ...] = ()
    random_scores: tuple[float, ...] = ()  # of each vector drawn, with another of them
    best_scores: tuple[float, ...] = ()  # of each vector drawn, with the best of all others
    vector_files: int = 0
    problems: tuple[str, ...] = ()


def find(store: Store, table: str, run: dict[str, Any], seed: int = 0) -> Findings:  # run.json has every JSON type
    """Measure what there is to measure of a table; one without rows or record gives empty findings."""
    problems: list[str] = []
    folder = table_folder(table)
    try:
        record = read_record(store, table)
        if record is None:
            return Findings()
        live = live_receipts(read_receipts(store, folder).values())
        receipts = sorted(live.values(), key=lambda receipt: receipt.unit)
        source = open_source(store, folder, record, run["source"].get("unreadable") or ())
    except FAILURES as error:
        return Findings(problems=(_said(error),))
    pictures, picture_units = _pictures(receipts, source, np.random.default_rng([seed, 1]), problems)
    vectors, vector_files = _vectors(store, folder, receipts, np.random.default_rng([seed, 2]), problems)
    random_scores, best_scores = _scores(vectors, np.random.default_rng([seed, 3]))
    reasons = run["counts"].get("reasons") or {reason for receipt in receipts for reason in receipt.reasons}
    rng = np.random.default_rng([seed, 4])
    found = {reason: _rejects(store, folder, receipts, reason, rng, problems) for reason in sorted(reasons)}
    return Findings(
        rejects=_with_thumbnails(found, source, record.preprocess) if any(found.values()) else {},
        pictures=pictures,
        picture_units=picture_units,
        norms=tuple(np.linalg.norm(vectors.astype(np.float64), axis=1).tolist()),
        random_scores=random_scores,
        best_scores=best_scores,
        vector_files=vector_files,
        problems=tuple(dict.fromkeys(problems)),
    )


def _pictures(
    receipts: list[Receipt], source: Source, rng: np.random.Generator, problems: list[str]
) -> tuple[tuple[Picture, ...], int]:
    """Describe images of some units; with the number of units that could be read."""
    readable = [receipt for receipt in receipts if receipt.shard not in source.unreadable]
    drawn = _draw(readable, [receipt.rows_in for receipt in readable], UNITS, rng)
    until = time.monotonic() + SOURCE_S
    pictures: list[Picture] = []
    waiting: list[bytes | None] = []
    units = total = held = 0
    for receipt in drawn:
        if total > IMAGE_BYTES or time.monotonic() > until:
            problems.append(f"images: only {units} of {len(drawn)} units drawn were read, for time or size")
            break
        try:
            for encoded in draw_images(source, receipt, -(-IMAGES // len(drawn)), rng):
                waiting.append(encoded)
                total, held = total + len(encoded or b""), held + len(encoded or b"")
                if held > GROUP_BYTES:
                    pictures += _described(waiting, source.limits)
                    waiting, held = [], 0
                if total > IMAGE_BYTES:
                    break
            units += 1
        except FAILURES as error:
            source.unreadable.add(receipt.shard)
            problems.append(f"images of {receipt.shard}: {_said(error)}")
    return (*pictures, *_described(waiting, source.limits)), units


def _described(images: list[bytes | None], limits: Limits) -> list[Picture]:
    lengths = [None if image is None else len(image) for image in images]
    headers = read_headers([image or b"" for image in images], limits)
    return [
        Picture(length, header.format, header.width, header.height) if header else Picture(length, None, 0, 0)
        for length, header in zip(lengths, headers, strict=True)
    ]


def _vectors(
    store: Store, folder: str, receipts: list[Receipt], rng: np.random.Generator, problems: list[str]
) -> tuple[NDArray[np.float32], int]:
    """Read vectors (n, d) of some files; with the number of files that could be read."""
    files = [file for receipt in receipts for file in receipt.data if file.bytes <= FILE_BYTES]
    drawn = _draw(files, [file.rows for file in files], UNITS, rng)
    found = []
    for file in drawn:
        try:
            vectors = matrix(read_checked(store, folder, file)[schema.VECTOR])
        except FAILURES as error:
            problems.append(_said(error))
            continue
        wanted = min(-(-VECTORS // len(drawn)), len(vectors))
        found.append(vectors[np.sort(rng.choice(len(vectors), wanted, replace=False))])
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32), len(found)


def _scores(vectors: NDArray[np.float32], rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Score each vector with another at random, and with the best of all others: inner products, larger is better."""
    n = len(vectors)
    if n < 2:
        return (), ()
    products = vectors @ vectors.T
    random_scores = products[np.arange(n), (np.arange(n) + rng.integers(1, n, n)) % n]
    np.fill_diagonal(products, -np.inf)
    return tuple(random_scores.tolist()), tuple(products.max(axis=1).tolist())


def _rejects(
    store: Store, folder: str, receipts: list[Receipt], reason: str, rng: np.random.Generator, problems: list[str]
) -> list[tuple[Receipt, Reject]]:
    """Draw rejects of one reason, of different units where there are some."""
    concerned = [receipt for receipt in receipts if receipt.reasons.get(reason)]
    drawn = _draw(concerned, [1] * len(concerned), REJECTS, rng)
    found: list[tuple[Receipt, Reject]] = []
    for receipt in drawn:
        files = [file for file in receipt.rejects if file.bytes <= FILE_BYTES]
        try:
            rows = _rows_of(store, folder, _draw(files, [file.rows for file in files], REJECT_FILES, rng), reason)
        except FAILURES as error:
            problems.append(_said(error))
            continue
        rows = rows.take(rng.permutation(rows.num_rows)[: -(-REJECTS // len(drawn))])
        found += [(receipt, reject) for reject in _as_rejects(rows)]
    return found[:REJECTS]


def _rows_of(store: Store, folder: str, files: list[File], reason: str) -> pa.Table:
    """Read the rejects of one reason from the first file that has some."""
    for file in files:
        rows = read_checked(store, folder, file)
        rows = rows.filter(pc.equal(rows[schema.REJECT_REASON], reason))
        if rows.num_rows:
            return rows
    return schema.REJECTS_SCHEMA.empty_table()


def _as_rejects(rows: pa.Table) -> list[Reject]:
    words = (texts(rows[name]) for name in (schema.ROW_ID, schema.REJECT_SHARD, schema.ERROR))
    numbers = rows[schema.REJECT_ROW].to_pylist()
    return [Reject(row_id, shard, row, error) for row_id, shard, error, row in zip(*words, numbers, strict=True)]


def _with_thumbnails(
    found: dict[str, list[tuple[Receipt, Reject]]], source: Source, spec: PreprocessSpec
) -> dict[str, tuple[Reject, ...]]:
    sandbox = Sandbox(
        replace(
            spec,
            height_px=THUMBNAIL_PX,
            width_px=THUMBNAIL_PX,
            resize_mode="pad",
            fill=GREY,
            decode="scaled",
            limits=source.limits,
        )
    )
    until = time.monotonic() + SOURCE_S
    try:
        return {
            reason: tuple(
                _seen(reject, NOT_READ_AGAIN.get(reason) or _look(receipt, reject, source, sandbox, until))
                for receipt, reject in rejects
            )
            for reason, rejects in found.items()
        }
    finally:
        sandbox.close()


def _seen(reject: Reject, picture: bytes | str) -> Reject:
    return replace(reject, why_none=picture) if isinstance(picture, str) else replace(reject, thumbnail=picture)


def _look(receipt: Receipt, reject: Reject, source: Source, sandbox: Sandbox, until: float) -> bytes | str:
    """Make a thumbnail of what the source has now, or say why there is none."""
    if time.monotonic() > until:
        return "there was no time left to read it again"
    if reject.shard in source.unreadable:
        return "its shard cannot be read"
    try:
        encoded = image_of(source, receipt, reject.row, reject.row_id)
    except GoneError as error:
        return str(error)
    except FAILURES as error:
        source.unreadable.add(reject.shard)
        return f"its shard cannot be read: {_said(error)}"
    pixels, [refusal] = sandbox.pixels([encoded])
    if refusal is not None:
        first = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in encoded[:FIRST_BYTES])
        return f"it cannot be decoded; its {len(encoded)} bytes begin: {first}"
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0))).save(written, "JPEG", quality=80)
    return written.getvalue()


def _draw(things: Sequence[Thing], weights: Sequence[int], wanted: int, rng: np.random.Generator) -> list[Thing]:
    """Draw some things without repeats, by weight; those of weight 0 never."""
    possible = np.flatnonzero(weights)
    if not len(possible):
        return []
    share = np.asarray(weights, np.float64)[possible]
    drawn = rng.choice(possible, min(wanted, len(possible)), replace=False, p=share / share.sum())
    return [things[int(i)] for i in drawn]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
