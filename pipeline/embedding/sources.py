"""The sources that a store knows by name: `sources/<name>.json`, where their shards are and which columns mean what."""

from pipeline.config import SourceConfig
from pipeline.errors import InputError
from pipeline.store import Store

FOLDER = "sources"


def source_names(store: Store) -> list[str]:
    """Name the sources that a store knows."""
    return sorted(name.removesuffix(".json") for name in store.files_in(FOLDER) if name.endswith(".json"))


def read_source(store: Store, name: str) -> SourceConfig | None:
    """Read where a source is; None if the store knows none of this name.

    Raises:
        InputError: what it knows is damaged.
    """
    try:
        return SourceConfig.model_validate(store.read_json(_path(name)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{_path(name)} is damaged: {error}") from error


def remember_source(store: Store, source: SourceConfig) -> None:
    """Note where a source is, unless that is known: another table of it may be of another column."""
    known = read_source(store, source.name)
    if known is None or known.path != source.path:
        write_source(store, source)


def write_source(store: Store, source: SourceConfig) -> None:
    """Note where a source is, in place of what was known."""
    store.replace_json(_path(source.name), source.model_dump(mode="json"))


def _path(name: str) -> str:
    return f"{FOLDER}/{name}.json"
