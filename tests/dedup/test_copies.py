"""A smaller version of `python -m jobs.benchmark dedup`: made copies, found by the default settings."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.alike import CHANGES, pictures
from jobs.benchmark.dedup import by_kind
from pipeline.config import DedupConfig, EmbedConfig, IndexConfig, SourceConfig
from pipeline.dedup.run import find_duplicates
from pipeline.embedding.run import embed
from pipeline.indexing.run import build
from tests.conftest import DEMO_MODEL

SCENES = 30


@pytest.mark.usefixtures("local_ray")
def test_made_copies_are_found_and_nothing_else(tmp_path: Path):
    labels = pa.Table.from_pylist([one.row for one in pictures(SCENES, 1, photos=False)])
    pq.write_table(labels, tmp_path / "copies.parquet")
    store = str(tmp_path / "store")
    source = SourceConfig(name="copies", path=str(tmp_path / "copies.parquet"), key_column="key")
    embed(EmbedConfig(store=store, model=str(DEMO_MODEL), source=source))
    build(IndexConfig(store=store, text_queries="none"))
    card = find_duplicates(DedupConfig(store=store, keep="first"))
    place = Path(store) / card.folder
    edges = pa.concat_tables([pq.read_table(path) for path in sorted(place.glob("edges/*.parquet"))])
    found = {one.kind: one for one in by_kind(pq.read_table(place / "groups.parquet"), edges, labels)}
    assert found["all"].copies == SCENES * len(CHANGES)
    assert found["all"].precision >= 0.99
    assert found["all"].recall >= 0.95
    assert min(found[kind].recall for kind in CHANGES) >= 0.8
    assert card.groups == pytest.approx(SCENES, abs=2)


def test_counts_by_kind_are_what_they_say():
    labels = pa.table(
        {
            "key": ["a", "a1", "a2", "b", "b1", "b2"],
            "scene": [0, 0, 0, 1, 1, 1],
            "kind": ["original", "cropped", "blurred"] * 2,
        }
    )
    groups = pa.table({"_row_id": ["a", "a1", "b", "b2"], "group": [0, 0, 0, 0]})
    edges = pa.table({"row_id_a": ["a", "b"], "row_id_b": ["a1", "b2"], "joins": [True, False]})
    found = {one.kind: one for one in by_kind(groups, edges, labels)}
    assert (found["cropped"].recall, found["cropped"].recall_alone) == (0.5, 0.5)  # of a1 and b1
    assert (found["blurred"].recall, found["blurred"].recall_alone) == (0.5, 0.0)
    assert found["all"].precision == pytest.approx(1 / 3, abs=1e-4)  # a1 and b2 are each with one of theirs, two others
    assert found["resized"].copies == 0
