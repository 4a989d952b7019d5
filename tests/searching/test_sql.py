"""SQL over a store: what it finds, and that it can do nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.session import Session
from tests.conftest import DEMO_MODEL


@pytest.fixture(scope="module")
def db(demo_store: str) -> Iterator[Session]:
    with pipeline.connect(demo_store) as session:
        yield session


@pytest.fixture(scope="module")
def table(db: Session) -> str:
    return db.tables()[0].table


def rows(db: Session, statement: str, **parameters: object) -> list[dict]:
    return db.sql(statement, **parameters).read_all().to_pylist()


def test_sources_tables_and_rejects_are_relations(db: Session, table: str, demo_rows: list[dict]):
    by_colour = rows(db, "SELECT colour, count(*) AS n FROM figures GROUP BY ALL ORDER BY ALL")
    colours = [row["colour"] for row in demo_rows]
    assert by_colour == [{"colour": colour, "n": colours.count(colour)} for colour in sorted(set(colours))]
    (counts,) = rows(
        db,
        f'SELECT (SELECT count(*) FROM sources.figures) AS all, (SELECT count(*) FROM embeddings."{table}") AS good, '
        f'(SELECT count(*) FROM rejects."{table}") AS bad',
    )
    assert counts["all"] == len(demo_rows) == counts["good"] + counts["bad"]
    assert counts["bad"] == db.rejects("figures").num_rows > 0
    reasons = rows(db, f'SELECT DISTINCT reason FROM rejects."{table}" ORDER BY 1')
    assert {row["reason"] for row in reasons} == set(db.describe(table)["reasons"])


def test_vectors_are_compared_summed_and_made_of_texts(db: Session, table: str):
    star = db.encode_text_query(str(DEMO_MODEL), "a red star").astype(np.float64)
    found = rows(
        db,
        f'SELECT _row_id, vector, cosine(vector, embed_text($model, $text)) AS score FROM "{table}" ORDER BY 3 DESC',
        model=str(DEMO_MODEL),
        text="a red star",
    )
    vectors = np.stack([row["vector"] for row in found]).astype(np.float64)
    assert np.allclose([row["score"] for row in found], vectors @ star, atol=1e-5)
    (sums,) = rows(db, f'SELECT vector_mean(vector) AS mean, vector_sum(vector) AS sum FROM "{table}"')
    assert np.allclose(sums["mean"], vectors.mean(axis=0), atol=1e-6)
    assert np.allclose(sums["sum"], vectors.sum(axis=0), atol=1e-4)
    by_table = rows(db, "SELECT embed_text('figures', 'a red star') AS v, embed_text('figures', NULL) AS nothing")
    assert np.allclose(by_table[0]["v"], star, atol=1e-6)
    assert by_table[0]["nothing"] is None
    assert rows(db, f'SELECT vector_mean(vector) AS mean FROM "{table}" WHERE false') == [{"mean": None}]


def test_a_search_is_a_relation(db: Session):
    wanted = db.search("figures", text="a red star", k=5).to_list()
    found = rows(
        db,
        "SELECT hit._row_id, hit.similarity, f.caption FROM search('figures', 'a red star', 5) AS hit "
        "JOIN figures AS f ON f.key = hit._row_id ORDER BY hit.similarity DESC, hit._row_id",
    )
    names = ("_row_id", "similarity", "caption")
    assert found == [{name: row[name] for name in names} for row in wanted]
    by_vector = "SELECT _row_id FROM search('figures', embed_text('figures', $text), k => $k)"
    assert rows(db, by_vector, text="a red star", k=5) == [{"_row_id": row["_row_id"]} for row in wanted]
    row_id = wanted[0]["_row_id"]
    like = rows(db, "SELECT _row_id FROM search('figures', row_id => $id, k => 3, filter => 'width > 100')", id=row_id)
    ours = db.search("figures", row_id=row_id, k=3).filter("width > 100").to_list()
    assert like == [{"_row_id": row["_row_id"]} for row in ours]
    of_mean = (
        "SELECT count(*) AS n FROM search('figures', (SELECT vector_mean(vector) FROM embeddings.figures_table), 4)"
    )
    table = db.tables()[0].table
    assert rows(db, of_mean.replace("figures_table", f'"{table}"')) == [{"n": 4}]


def test_rows_come_as_a_stream(db: Session, table: str):
    reader = db.sql(f'SELECT a._row_id FROM "{table}" AS a, "{table}" AS b, range(4) AS c')
    assert isinstance(reader, pa.RecordBatchReader)
    first = reader.read_next_batch()
    count = db.tables()[0].rows ** 2 * 4
    assert 0 < first.num_rows < count
    assert first.num_rows + sum(batch.num_rows for batch in reader) == count


FORBIDDEN = [
    "COPY (SELECT 1) TO '{file}'",
    "COPY figures TO '{file}' (FORMAT parquet)",
    "EXPORT DATABASE '{folder}'",
    "ATTACH '{file}' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TABLE mine AS SELECT 1",
    "CREATE TABLE figures (a INT)",
    "INSERT INTO figures VALUES (1)",
    "DELETE FROM figures",
    "DROP VIEW figures",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_parquet('{parquet}')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('figures')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM python_variable",
    "SELECT (SELECT * FROM read_text('{secret}'))",
    "WITH a AS (SELECT * FROM read_blob('{secret}')) SELECT * FROM a",
    "SELECT * FROM search('figures', (SELECT content FROM read_text('{secret}')), 1)",
    "FROM sniff_csv('{secret}')",
    "SELECT * FROM nothing",
    "SELECT nothing FROM figures",
    "SELECT",
    "",
    "not SQL",
    "SELECT $missing",
    "SELECT * FROM search('figures')",
    "SELECT * FROM search('figures', 'a', 5, 'colour = 1')",
    "SELECT * FROM search('nothing', 'a', 5)",
    "SELECT * FROM figures AS f, search('figures', f.caption, 1)",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_nothing_is_written_attached_installed_or_read_beyond_the_store(
    db: Session, statement: str, tmp_path: Path, demo_store: str, monkeypatch: pytest.MonkeyPatch
):
    python_variable = pa.table({"secret": [1]})  # noqa: F841 - DuckDB would find it by its name
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    parquet = next(str(path) for path in Path(demo_store).rglob("*.parquet"))
    filled = statement.format(
        file=tmp_path / "out.csv", folder=tmp_path / "out", secret=tmp_path / "secret.txt", parquet=parquet
    )
    with pytest.raises(InputError):
        db.sql(filled).read_all()
    assert os.listdir(tmp_path) == ["secret.txt"]


def test_a_large_sort_spills_nothing_to_a_disk(db: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = db.sql("SELECT i FROM range(300000) AS r(i) ORDER BY hash(i)").read_all()
    assert found.num_rows == 300_000
    assert os.listdir(tmp_path) == []
