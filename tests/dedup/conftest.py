"""A table with copies in it: of equal bytes, smaller, mirrored; and tables of vectors alone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import DedupConfig, IndexConfig
from pipeline.dedup.plan import Plan, plan
from pipeline.embedding.run import embed
from pipeline.indexing.run import build
from pipeline.store import Store
from pipeline.table import table_folder
from tests.conftest import saved, write_shard
from tests.embedding.test_run import config
from tests.indexing.conftest import write_table

SCENES = 40


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((180, 140), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of forty scenes, then copies of the first: 0 to 4 twice the same, 5 to 9 larger, 10 to 14 mirrored."""
    folder = tmp_path_factory.mktemp("copies") / "corpus"
    images = [saved(scene(seed), "JPEG", quality=90) for seed in range(SCENES)]
    larger = [saved(scene(seed).resize((360, 280)), "JPEG", quality=80) for seed in range(5, 10)]
    mirrored = [saved(scene(seed).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG") for seed in range(10, 15)]
    write_shard(folder / "a.parquet", 0, images, group_rows=10)
    write_shard(
        folder / "b.parquet", SCENES, [*images[:5], *images[:5], b"no picture", *larger, *mirrored], group_rows=7
    )
    return folder


def made_table(copies: Path, store: Path | str, **others: object) -> Store:
    """Embed the copies by an encoder that knows nothing of pictures, and index them."""
    embed(config(copies, store, source={"keep_columns": ("number", "label")}, **others))
    build(IndexConfig(store=str(store)))
    return Store(str(store))


def vectors_table(folder: Path, vectors: np.ndarray, factory: str | None = None) -> Store:
    """Write vectors as a table, and index them."""
    store = write_table(str(folder), "t", vectors, 150)
    store.replace_json(f"{table_folder('t')}/config.json", {"fetch": {}})
    build(IndexConfig(store=store.url, factory=factory, text_queries="none", recall_target=0.5))
    return store


def planned(store: Store, **options: object) -> Plan:
    return plan(DedupConfig(store=store.url, **options), store, "t")


def groups_of(store: Store, folder: str) -> dict[frozenset[str], str]:
    """Read groups, each with its keeper."""
    rows = pq.read_table(store.path(f"{folder}/groups.parquet")).to_pylist()
    members: dict[int, list[dict]] = {}
    for row in rows:
        members.setdefault(row["group"], []).append(row)
    assert list(members) == list(range(len(members)))
    for each in members.values():
        assert [row["is_keeper"] for row in each] == [True] + [False] * (len(each) - 1)
    return {frozenset(row["_row_id"] for row in each): each[0]["_row_id"] for each in members.values()}
