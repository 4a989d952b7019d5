"""A verified, measured index in, a published version out: its files, its card last, then CURRENT.

CURRENT is one small file, swapped whole: a reader sees the old version or the new one. Rolling back is another swap.
A version may name files of an earlier one, whose rows it goes on from; a file goes when no card names it any more.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import IncompleteError, InputError
from pipeline.filesystem import sha256_of
from pipeline.lease import Lease
from pipeline.store import Store

CARD, CURRENT, WITHDRAWN = "card.json", "CURRENT", "withdrawn.json"

# What files are for, in Card.files; those of which a version has one are called so too. INDEX holds the base as FAISS
# writes it, DELTA the inverted lists of rows that were added since.
INDEX, DELTA, TRAINED = "index.faiss", "delta.faiss", "trained.faiss"
UNITS, TRUTH, PLOT = "units.parquet", "truth.npz", "recall.png"
VECTORS, ROW_IDS = "vectors", "row_ids"


@dataclass(frozen=True)
class Card:
    """card.json: what an index is, and what was measured of it."""

    version: str
    table: str
    space: str
    inputs: str  # digest of what it was built from; a build from the same has nothing to do
    asked: str  # digest of the queries that recall was measured with
    factory: str
    metric: str
    ntotal: int  # rows that can be found
    end: int  # ids below it are given: to these rows and to ones that were deleted since the base
    base: str  # the version whose training and lists this one goes on from; itself, if it was built anew
    base_rows: int  # ids below it are in the base's lists, the others in the delta's
    trained_on: int  # rows that there were when it was trained
    d: int
    nprobe: int | None
    margin: float | None  # Index.margin: of these lists, those are searched that are so near; None: all
    rerank: int | None
    recall_target: float
    recall_at_10: dict[str, float]  # by kind of query
    recall: dict[str, dict[str, float]]  # by kind of query and number of neighbours
    recall_curve: list[dict[str, Any]]  # tune.Measurement of every nprobe tried, ascending
    queries: dict[str, int]  # by kind, that recall is stated for; half as many more chose nprobe
    latency_ms: float  # mean of single queries on one thread
    qps: float  # one batch of all queries, on `threads`
    qps_one_thread: float
    threads: int
    seed: int
    training_rows: int
    training: str  # SHA-256 of the trained, empty index
    # How well rows fit their lists: nearness, their mean score against the centroid of their list, and imbalance of the
    # lists' lengths (1 if all are alike), when it was trained; of rows added since, and now.
    drift: dict[str, float]
    advice: str | None  # what would help, where something does not fit any more
    partials: int
    build_seconds: float
    peak_bytes: dict[str, int]  # of the build's process, and of the largest of those that fill
    files: dict[str, list[str]]  # by what they are for, in the order of ids: below the folder of the table's indexes
    bytes: dict[str, int]  # per file
    sha256: dict[str, str]  # per file

    def only(self, role: str) -> str:
        """Give the one file of a kind."""
        (path,) = self.files[role]
        return path


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
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _as_of_today(fields: dict[str, Any]) -> dict[str, Any]:
    """Put the fields of a card of an earlier format as they are now.

    The first two knew queries by image only, and a version by files of its own only; the third, texts too; none of them
    that lists far from a query can be left out.
    """
    fields = {"margin": None, **fields}
    if "files" in fields:
        return fields
    own = {f"{fields['version']}/{name}": name for name in fields["sha256"]}
    roles = {"vectors.npy": VECTORS, "ids.parquet": ROW_IDS}
    later: dict[str, Any] = {
        "end": fields["ntotal"], "base": fields["version"], "base_rows": fields["ntotal"],
        "trained_on": fields["ntotal"], "asked": "", "drift": {}, "advice": None, "peak_bytes": {},
        "qps_one_thread": 0.0,
        "files": {roles.get(name, name): [path] for path, name in own.items()},
        "bytes": {path: fields["bytes"][name] for path, name in own.items()},
        "sha256": {path: fields["sha256"][name] for path, name in own.items()},
    }  # fmt: skip
    if not isinstance(fields["queries"], dict):
        later["queries"] = {"image": fields["queries"]}
        curve = fields["recall_curve"]
        later["recall_curve"] = [{**point, "recall_at_10": {"image": point["recall_at_10"]}} for point in curve]
        later["recall"] = {kind: {"10": value} for kind, value in fields["recall_at_10"].items()}
    return {**fields, **later}


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
    whole = [path.split("/")[0] for path in found if path.endswith(f"/{CARD}")]
    named = named_files(read_card(store, table, version) for version in whole)
    return {
        path: size
        for path, size in found.items()
        if path.split("/")[0] not in (CURRENT, "lease", *whole) and path not in named
    }


def named_files(cards: Iterable[Card]) -> set[str]:
    """Name the files that cards name, their own and those of versions that they go on from."""
    return {path for card in cards for path in card.sha256}


def remove_unfinished(store: Store, table: str, lease: Lease, keep: str = "") -> None:
    """Remove what builds that died left behind, but for what lies in the folder ``keep``."""
    folder = index_folder(table)
    waste = [path for path in unfinished(store, table) if not f"{folder}/{path}".startswith(f"{keep}/")]
    store.remove_many([f"{folder}/{path}" for path in waste], lease.check)


def write_card(store: Store, card: Card) -> None:
    """Put a version's card, after its files: a version without a card is no version."""
    store.replace_json(f"{index_folder(card.table)}/{card.version}/{CARD}", asdict(card))


def publish(store: Store, card: Card) -> None:
    """Point CURRENT at a version that holds what was asked of it.

    Raises:
        IncompleteError: its recall is below the target; the version stays, unpublished.
    """
    check_recall(card)
    store.replace(f"{index_folder(card.table)}/{CURRENT}", f"{card.version}\n".encode())


def is_fit(card: Card) -> bool:
    """Tell whether a version finds what was asked of it, by every kind of query."""
    return min(card.recall_at_10.values()) >= card.recall_target


def check_recall(card: Card) -> None:
    """Check that a version finds what was asked of it.

    Raises:
        IncompleteError: its recall is below the target; with the lever that would help.
    """
    if not is_fit(card):
        raise IncompleteError(
            f"index {card.table}/{card.version}: recall@10 {card.recall_at_10} is below recall_target "
            f"{card.recall_target} though every list was searched; name a --factory with more exact codes, such "
            "as SQ8, SQfp16 or Flat, or ask for less"
        )


def withdraw(store: Store, card: Card, why: str) -> None:
    """Mark a version as one that no build publishes again by itself."""
    store.replace_json(f"{index_folder(card.table)}/{card.version}/{WITHDRAWN}", {"why": why})


def restore(store: Store, card: Card) -> None:
    """Take such a mark away."""
    store.remove(f"{index_folder(card.table)}/{card.version}/{WITHDRAWN}")


def is_withdrawn(store: Store, card: Card) -> bool:
    """Tell whether a version was marked."""
    return store.exists(f"{index_folder(card.table)}/{card.version}/{WITHDRAWN}")
