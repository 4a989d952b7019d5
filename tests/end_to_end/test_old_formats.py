"""Stores that earlier versions wrote are read, searched, verified, and appended to."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.config import BackfillConfig, SourceConfig, VerifyConfig
from pipeline.serving.service import Service
from pipeline.store import Store
from pipeline.table import read_record
from pipeline.upkeep.backfill import backfill
from pipeline.upkeep.verify import verify
from tests.conftest import DEMO_MODEL, ROOT, encoded

STORES = ROOT / "tests" / "stores"


@pytest.fixture
def source(s3: str) -> str:
    Store(s3).replace("stores/corpus.parquet", (STORES / "corpus.parquet").read_bytes())
    return f"{s3}/stores/*.parquet"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("form", sorted(path.name for path in STORES.glob("format-*")))
def test_a_store_of_a_released_format_is_searched_and_appended_to(form: str, source: str, tmp_path: Path):
    store = Path(shutil.copytree(STORES / form, tmp_path / "store"))
    corpus = pq.read_table(STORES / "corpus.parquet").to_pylist()
    assert verify(VerifyConfig(store=str(store))).faults == ()
    service = Service(str(store), None, str(DEMO_MODEL))
    for row in corpus[1:40:13]:
        (hit,) = service.search(service.embed_image(row["image"]), 1).hits
        assert (hit.id, hit.columns["caption"], hit.score > 0.99) == (row["key"], row["caption"], True)

    more = [{**corpus[1], "key": f"more-{i}", "image": encoded(i)} for i in range(5)]
    written = tmp_path / "more.parquet"
    pq.write_table(pa.Table.from_pylist(more), written)
    Store(source.rpartition("/")[0]).replace("more.parquet", written.read_bytes())
    wanted = SourceConfig(name="figures", path=source, key_column="key", keep_columns=("caption", "colour"))
    given = BackfillConfig(store=str(store), table="t", model=str(DEMO_MODEL), unit_rows=20, source=wanted)
    report, card = backfill(given)
    assert (report.units_skipped, report.rows_now, report.rows_in, card.ntotal) == (2, 5, 45, 44)
    data = ds.dataset(store / "embeddings/t/data", partitioning="hive").to_table()
    assert len(set(data["_row_id"].to_pylist())) == data.num_rows == 44
    record = read_record(Store(str(store)), "t")
    assert ("_content_hash" in data.column_names) == record.content_hashes == (form != "format-1")
    assert verify(VerifyConfig(store=str(store))).faults == ()
    assert service.refresh()
    (hit,) = service.search(service.embed_image(encoded(3)), 1).hits
    assert hit.id == "more-3"
