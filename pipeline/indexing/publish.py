"""A verified, measured index in, a published version out: its files, its card last, then CURRENT.

CURRENT is one small file, swapped whole: a reader sees the old version or the new one. Rolling back is another swap.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import IncompleteError, InputError
from pipeline.filesystem import sha256_of
from pipeline.lease import Lease
from pipeline.store import Store

INDEX, ROW_IDS, VECTORS, UNITS = "index.faiss", "ids.parquet", "vectors.npy", "units.parquet"
CARD, CURRENT = "card.json", "CURRENT"


@dataclass(frozen=True)
class Card:
    """card.json: what an index is, and what was measured of it."""

    version: str
    table: str
    space: str
    inputs: str  # digest of what it was built from; a build from the same has nothing to do
    factory: str
    metric: str
    ntotal: int
    d: int
    nprobe: int | None
    rerank: int | None
    recall_target: float
    recall_at_10: dict[str, float]  # by kind of query
    recall: dict[str, dict[str, float]]  # by kind of query and number of neighbours
    recall_curve: list[dict[str, Any]]  # tune.Measurement of every nprobe tried, ascending
    queries: dict[str, int]  # by kind
    latency_ms: float  # mean of single queries on one thread
    qps: float  # one batch of all queries, on `threads`
    threads: int
    seed: int
    training_rows: int
    training: str  # SHA-256 of the trained, empty index
    partials: int
    build_seconds: float
    bytes: dict[str, int]  # per file
    sha256: dict[str, str]  # per file


def index_folder(table: str) -> str:
    """Give the folder of a table's indexes below the store's root."""
    return f"indexes/{table}"


def build_folder(table: str, inputs: str) -> str:
    """Give the folder where an index is built, below the store's root: the same for the same inputs."""
    return f"{index_folder(table)}/.build-{inputs[:16]}"


def read_current(store: Store, table: str) -> str | None:
    """Name the published version; None if there is none."""
    try:
        return store.read(f"{index_folder(table)}/{CURRENT}").decode(errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return None


def read_card(store: Store, table: str, version: str) -> Card:
    """Read a version's card.

    Raises:
        InputError: there is no such version, or its card is damaged.
    """
    path = f"{index_folder(table)}/{version}/{CARD}"
    try:
        return Card(**_as_of_today(store.read_json(path)))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such index version") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _as_of_today(fields: dict[str, Any]) -> dict[str, Any]:
    """Put the fields of a card of formats 1 and 2, which knew queries by image only, as they are now."""
    if isinstance(fields["queries"], dict):
        return fields
    curve = [{**point, "recall_at_10": {"image": point["recall_at_10"]}} for point in fields["recall_curve"]]
    recall = {kind: {"10": value} for kind, value in fields["recall_at_10"].items()}
    return {**fields, "queries": {"image": fields["queries"]}, "recall_curve": curve, "recall": recall}


def digests(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Measure the files of a folder: bytes and SHA-256 by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sizes = {path.name: path.stat().st_size for path in files}
    return sizes, {path.name: sha256_of(path) for path in files}


def versions(store: Store, table: str) -> list[str]:
    """Name the versions that are whole, the newest first."""
    folders = store.folders(index_folder(table))
    return sorted((name for name in folders if store.exists(f"{index_folder(table)}/{name}/{CARD}")), reverse=True)


def unfinished(store: Store, table: str) -> dict[str, int]:
    """List what builds that died left behind, versions without a card and their scratch: bytes by path."""
    found = store.files(index_folder(table))
    return {
        path: size
        for path, size in found.items()
        if path.split("/")[0] not in (CURRENT, "lease") and f"{path.split('/')[0]}/{CARD}" not in found
    }


def remove_unfinished(store: Store, table: str, lease: Lease, keep: str = "") -> None:
    """Remove what builds that died left behind, but for what lies in the folder ``keep``."""
    folder = index_folder(table)
    waste = [path for path in unfinished(store, table) if not f"{folder}/{path}".startswith(f"{keep}/")]
    store.remove_many([f"{folder}/{path}" for path in waste], lease.check)


def write_version(store: Store, card: Card, folder: Path) -> None:
    """Put a version's files, then its card: a version without a card is no version."""
    place = f"{index_folder(card.table)}/{card.version}"
    for name in card.sha256:
        store.put_file(f"{place}/{name}", folder / name)
    store.replace_json(f"{place}/{CARD}", asdict(card))


def publish(store: Store, card: Card) -> None:
    """Point CURRENT at a version that holds what was asked of it.

    Raises:
        IncompleteError: its recall is below the target; the version stays, unpublished.
    """
    worst = min(card.recall_at_10.values())
    if worst < card.recall_target:
        raise IncompleteError(
            f"index {card.table}/{card.version}: recall@10 {card.recall_at_10} is below recall_target "
            f"{card.recall_target} though every list was searched; name a --factory with more exact codes, such "
            "as SQ8, SQfp16 or Flat, or ask for less"
        )
    store.replace(f"{index_folder(card.table)}/{CURRENT}", f"{card.version}\n".encode())
