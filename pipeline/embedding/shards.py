"""A source's shards as the last run saw them: `shards.json` in the table's folder.

In: a survey. Out, at the next run: the shards that need not be opened again unless their fingerprint has changed. It
is a note, not a truth: without it everything is surveyed anew, to the same units. A copy stays with the run that found
a change, so that every run can say what its input was.
"""

import logging
from dataclasses import fields

from pipeline.config import SourceConfig
from pipeline.embedding.plan import Shard, Survey
from pipeline.seal import seal
from pipeline.store import Store

logger = logging.getLogger(__name__)

FILE = "shards.json"


def read_shards(store: Store, folder: str, source: SourceConfig) -> dict[str, Shard]:
    """Read the shards known, by URL; none where their columns were checked for another config, or nothing is known."""
    path = _path(folder)
    try:
        noted = store.read_json(path)
        if noted["columns"] != _columns(source):
            return {}
        return {shard.url: shard for shard in _shards(noted["shards"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); all shards are opened again", path, error)
        return {}


def write_shards(
    store: Store, folder: str, source: SourceConfig, found: Survey, known: dict[str, Shard], run_folder: str
) -> str:
    """Note the shards of a survey, and as they were known those that cannot be read now; give the run's copy's path.

    That is a copy of an earlier run where nothing has changed since.
    """
    shards = [*found.shards, *(known[url] for url in found.unreadable if url in known)]
    if known == {shard.url: shard for shard in shards}:
        return str(store.read_json(_path(folder))["copy"])
    copy = f"{run_folder}/{FILE}"
    columns = {field.name: [getattr(shard, field.name) for shard in shards] for field in fields(Shard)}
    noted = seal({"columns": _columns(source), "copy": copy, "shards": columns})
    store.replace(copy, noted)
    store.replace(_path(folder), noted)
    return copy


def _shards(columns: dict[str, list[object]]) -> list[Shard]:
    names = [field.name for field in fields(Shard)]
    rows = zip(*(columns[name] for name in names), strict=True)
    shards = (dict(zip(names, row, strict=True)) for row in rows)
    return [Shard(**{**shard, "group_rows": tuple(shard["group_rows"])}) for shard in shards]


def _columns(source: SourceConfig) -> list[object]:
    return [source.image_column, source.key_column, *source.keep_columns]


def _path(folder: str) -> str:
    return f"{folder}/{FILE}"
