"""The native API over HTTP, each answer compared with a full sort of the table's own vectors."""

import base64
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import EmbedConfig, IndexConfig, PreprocessConfig, ServeConfig, SourceConfig
from pipeline.embedding.run import embed
from pipeline.indexing.run import build
from pipeline.serving.desk import Desk
from pipeline.store import Store
from tests.conftest import DEMO_MODEL
from tests.serving.conftest import Served


class Truth:
    """All rows of the demo's table, as any Parquet reader has them."""

    def __init__(self, store: str) -> None:
        (folder,) = Path(store).glob("embeddings/*/data")
        rows = pq.read_table(folder, columns=["_row_id", "vector", "_content_hash", "caption", "colour"])
        self.rows = rows.to_pylist()
        self.ids = [row["_row_id"] for row in self.rows]
        self.vectors = np.array([row["vector"] for row in self.rows], np.float32)
        self.of = dict(zip(self.ids, self.rows, strict=True))

    def best(self, vector: np.ndarray, k: int, keep: Callable[[dict], bool] = lambda row: True) -> list[str]:
        scores = self.vectors @ vector
        order = [i for i in np.argsort(-scores, kind="stable") if keep(self.rows[i])]
        return [self.ids[i] for i in order[:k]]


@pytest.fixture(scope="module")
def truth(demo_store: str) -> Truth:
    return Truth(demo_store)


@pytest.fixture(scope="module")
def client(endpoint: Served) -> httpx.Client:
    return endpoint.client


@pytest.fixture(scope="module")
def space(client: httpx.Client) -> str:
    return client.get("/v1/info").json()["tables"][0]["space"]


def search(client: httpx.Client, *terms: dict, **options: object) -> dict:
    reply = client.post("/v1/search", json={"query": list(terms), **options})
    assert reply.status_code == 200, reply.text
    return reply.json()


def found(reply: dict) -> list[str]:
    return [hit["id"] for hit in reply["hits"]]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_every_kind_of_term_finds_what_a_full_sort_finds(
    client: httpx.Client, truth: Truth, demo_desk: Desk, demo_rows: list[dict], space: str
):
    service, row = demo_desk.first, demo_rows[8]
    text, image = service.embed_text("a red shape"), service.embed_image(row["image"])
    encoded = base64.b64encode(row["image"]).decode()
    vector = unit(np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    asked = {
        "text": ({"text": "a red shape"}, text),
        "image": ({"image": encoded}, image),
        "data URI": ({"image": f"data:image/png;base64,{encoded}"}, image),
        "id": ({"id": row["key"]}, truth.vectors[truth.ids.index(row["key"])]),
        "vector": ({"vector": (3 * vector).tolist()}, vector),
    }
    for term, wanted in asked.values():
        reply = search(client, term, k=12, space=space, exclude_query_ids=False)
        assert found(reply) == truth.best(wanted, 12)
        scores = [hit["score"] for hit in reply["hits"]]
        np.testing.assert_allclose(scores, np.sort(truth.vectors @ wanted)[::-1][:12], atol=1e-5)
        assert reply["hits"][0]["columns"] == {name: truth.of[found(reply)[0]][name] for name in ("caption", "colour")}


def test_terms_are_weighted_and_added(client: httpx.Client, truth: Truth, demo_desk: Desk, demo_rows: list[dict]):
    service = demo_desk.first
    terms = [{"text": "a red shape"}, {"text": "a circle", "weight": 0.5}, {"id": demo_rows[8]["key"], "weight": -0.7}]
    vectors = [
        service.embed_text("a red shape"),
        0.5 * service.embed_text("a circle"),
        -0.7 * truth.vectors[truth.ids.index(demo_rows[8]["key"])],
    ]
    wanted = truth.best(unit(np.sum(vectors, axis=0)), 10, lambda row: row["_row_id"] != demo_rows[8]["key"])
    assert found(search(client, *terms, k=10)) == wanted


def test_rows_that_a_query_names_come_up_only_if_wanted(client: httpx.Client, demo_rows: list[dict]):
    key = demo_rows[8]["key"]
    assert key not in found(search(client, {"id": key}, k=300))
    assert found(search(client, {"id": key}, k=1, exclude_query_ids=False)) == [key]
    assert len(found(search(client, {"id": key}, k=5))) == 5


def test_pages_by_cursor_are_one_list(client: httpx.Client, truth: Truth, demo_desk: Desk):
    asked: dict = {"filter": {"column": "colour", "ne": "red"}, "min_score": -0.2}
    whole = found(search(client, {"text": "a shape"}, k=300, **asked))
    pages: list[str] = []
    cursor = None
    while True:
        reply = search(client, {"text": "a shape"}, k=40, cursor=cursor, **asked)
        pages += found(reply)
        if (cursor := reply["next_cursor"]) is None:
            break
        assert len(reply["hits"]) == 40
    assert pages == whole
    assert len(set(pages)) == len(pages)


def test_a_cursor_is_good_for_its_query_and_version_only(client: httpx.Client):
    cursor = search(client, {"text": "a shape"}, k=5)["next_cursor"]
    for body, status, code in (
        ({"query": [{"text": "another"}], "k": 5, "cursor": cursor}, 422, "bad_cursor"),
        ({"query": [{"text": "a shape"}], "k": 6, "cursor": cursor}, 422, "bad_cursor"),
        ({"query": [{"text": "a shape"}], "k": 5, "cursor": "AAAA"}, 422, "bad_cursor"),
    ):
        reply = client.post("/v1/search", json=body)
        assert (reply.status_code, reply.json()["code"]) == (status, code)
    fields = json.loads(base64.urlsafe_b64decode(cursor))
    older = base64.urlsafe_b64encode(json.dumps({**fields, "v": "older"}).encode()).decode()
    reply = client.post("/v1/search", json={"query": [{"text": "a shape"}], "k": 5, "cursor": older})
    assert (reply.status_code, reply.json()["code"]) == (410, "cursor_expired")


@pytest.mark.parametrize("colours", [("red",), ("red", "blue"), ("no such",)])
def test_a_filter_keeps_its_rows_and_their_order(
    client: httpx.Client, truth: Truth, demo_desk: Desk, colours: tuple[str, ...]
):
    reply = search(client, {"text": "a star"}, k=20, filter={"column": "colour", "in": colours})
    wanted = truth.best(demo_desk.first.embed_text("a star"), 20, lambda row: row["colour"] in colours)
    assert found(reply) == wanted


def test_a_score_that_is_too_low_ends_the_list(client: httpx.Client):
    scores = [hit["score"] for hit in search(client, {"text": "a red star"}, k=100)["hits"]]
    least = scores[30]
    kept = [hit["score"] for hit in search(client, {"text": "a red star"}, k=100, min_score=least - 1e-6)["hits"]]
    assert kept == [score for score in scores if score >= least - 1e-6]
    assert search(client, {"text": "a red star"}, min_score=0.999)["hits"] == []


def test_near_duplicates_are_left_out(client: httpx.Client, truth: Truth):
    ids = found(search(client, {"text": "a star"}, k=30, dedup="near"))
    vectors = np.array([truth.vectors[truth.ids.index(row_id)] for row_id in ids])
    assert (vectors @ vectors.T - np.eye(len(ids)) < 0.9605).all()
    assert ids[0] == found(search(client, {"text": "a star"}, k=1))[0]


def test_diversity_mixes_what_is_alike(client: httpx.Client, truth: Truth):
    def likeness(ids: list[str]) -> float:
        vectors = np.array([truth.vectors[truth.ids.index(row_id)] for row_id in ids])
        return float((vectors @ vectors.T)[np.triu_indices(len(ids), 1)].mean())

    plain, mixed = (found(search(client, {"text": "a star"}, k=10, diversity=d)) for d in (0.0, 0.6))
    assert search(client, {"text": "a star"}, k=10, diversity=0.6)["next_cursor"] is None
    assert likeness(mixed) < likeness(plain) - 0.02
    assert mixed[0] == plain[0]


def test_columns_and_vectors_are_given_as_asked(client: httpx.Client, truth: Truth):
    hit = search(client, {"text": "a star"}, k=1, columns=["colour"], with_vectors=True)["hits"][0]
    assert hit["columns"] == {"colour": truth.of[hit["id"]]["colour"]}
    np.testing.assert_allclose(hit["vector"], truth.of[hit["id"]]["vector"], atol=1e-3)
    assert search(client, {"text": "a star"}, k=1, columns=[])["hits"][0]["columns"] == {}
    assert "vector" not in search(client, {"text": "a star"}, k=1)["hits"][0]


def test_exact_search_and_any_nprobe_agree_on_a_table_without_lists(client: httpx.Client):
    plain = found(search(client, {"text": "a star"}, k=30))
    assert found(search(client, {"text": "a star"}, k=30, exact=True)) == plain
    assert found(search(client, {"text": "a star"}, k=30, nprobe=3)) == plain


def test_every_answer_names_version_space_and_steps(client: httpx.Client, space: str, demo_rows: list[dict]):
    info = client.get("/v1/info").json()["tables"][0]
    reply = client.post("/v1/search", json={"query": [{"text": "a star"}]})
    assert (reply.json()["index_version"], reply.json()["space"]) == (info["index_version"], space)
    assert set(reply.json()["timings_ms"]) == {"text", "search", "columns"}
    for path in (f"/v1/rows/{demo_rows[8]['key']}", f"/v1/rows/{demo_rows[8]['key']}/thumbnail", "/v1/search?q=a"):
        answer = client.get(path)
        assert answer.headers["x-rayclip-index-version"] == info["index_version"]
        assert answer.headers["x-rayclip-space"] == space
    steps = [step.split(";")[0] for step in reply.headers["server-timing"].split(", ")]
    assert steps == ["text", "search", "columns"]


def test_searches_together_are_answered_as_one_by_one(client: httpx.Client, demo_rows: list[dict]):
    searches = [
        {"query": [{"text": "a star"}], "k": 3},
        {"query": [{"id": demo_rows[8]["key"]}], "k": 30},
        {"query": [{"text": "a star"}], "k": 3, "filter": {"column": "colour", "eq": "red"}},
    ]
    replies = client.post("/v1/search/batch", json={"searches": searches}).json()["replies"]
    assert [found(reply) for reply in replies] == [found(client.post("/v1/search", json=s).json()) for s in searches]
    assert client.post("/v1/search/batch", json={"searches": searches * 30}).status_code == 422
    broken = client.post("/v1/search/batch", json={"searches": [searches[0], {"query": [{"id": "nobody"}]}]})
    assert (broken.status_code, broken.json()["code"]) == (404, "unknown_id")


def test_an_upload_finds_what_the_same_image_in_base64_finds(client: httpx.Client, demo_rows: list[dict]):
    image = demo_rows[8]["image"]
    options = {"k": 7, "filter": {"column": "colour", "is_null": False}}
    uploaded = client.post(
        "/v1/search/upload", files={"image": ("a.png", image)}, data={"options": json.dumps(options)}
    )
    assert uploaded.status_code == 200, uploaded.text
    inline = search(client, {"image": base64.b64encode(image).decode()}, **options)
    assert found(uploaded.json()) == found(inline)
    following = {**options, "cursor": uploaded.json()["next_cursor"]}
    page = client.post("/v1/search/upload", files={"image": ("a.png", image)}, data={"options": json.dumps(following)})
    assert not set(found(page.json())) & set(found(inline))
    for bad in ("{", '{"k": 0}', '{"query": []}'):
        reply = client.post("/v1/search/upload", files={"image": ("a.png", image)}, data={"options": bad})
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")


def test_a_search_is_a_link(client: httpx.Client):
    plain = search(client, {"text": "a red star"}, k=4, filter={"column": "colour", "eq": "red"}, min_score=0.1)
    fields = {"q": "a red star", "k": 4, "filter": '{"column": "colour", "eq": "red"}', "min_score": 0.1}
    assert found(client.get("/v1/search", params=fields).json()) == found(plain)


def test_a_row_is_described_and_shown(client: httpx.Client, truth: Truth, demo_rows: list[dict]):
    key = demo_rows[8]["key"]
    row = client.get(f"/v1/rows/{key}").json()
    assert row["columns"] == {name: truth.of[key][name] for name in ("caption", "colour")}
    assert (row["source"], row["shard"]) == ("figures", "figures.parquet")
    assert found(client.get(f"/v1/rows/{key}/similar", params={"k": 5}).json()) == found(
        search(client, {"id": key}, k=5)
    )
    shown = client.get(row["thumbnail"])
    picture, original = (Image.open(io.BytesIO(each)) for each in (shown.content, demo_rows[8]["image"]))
    assert (picture.format, picture.size) == ("WEBP", original.size)  # which are smaller than thumbnails may be
    small = (np.asarray(each.convert("RGB").resize((16, 16)), np.int16) for each in (picture, original))
    assert np.abs(np.subtract(*small)).mean() < 12
    again = client.get(row["thumbnail"], headers={"If-None-Match": shown.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["", "/similar", "/thumbnail"])
def test_a_row_that_is_not_there_is_not_found(client: httpx.Client, path: str):
    reply = client.get(f"/v1/rows/figure-000000{path}")  # a reject
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_id")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_request"),
        ({"query": []}, 422, "invalid_request"),
        ({"query": [{}]}, 422, "invalid_request"),
        ({"query": [{"text": "a", "id": "b"}]}, 422, "invalid_request"),
        ({"query": [{"text": ""}]}, 422, "invalid_request"),
        ({"query": [{"text": "a"}], "k": 0}, 422, "invalid_request"),
        ({"query": [{"text": "a"}], "k": 10_001}, 422, "invalid_request"),
        ({"query": [{"text": "a"}], "limit": 3}, 422, "invalid_request"),
        ({"query": [{"text": "a"}] * 17}, 422, "invalid_request"),
        ({"query": [{"vector": [1.0] * 64}]}, 422, "invalid_request"),
        ({"query": [{"image": "§§§"}]}, 422, "image_not_base64"),
        ({"query": [{"image": "data:image/png,abc"}]}, 422, "image_not_base64"),
        ({"query": [{"image": "bm90IGFuIGltYWdl"}]}, 422, "image_not_an_image"),
        ({"query": [{"image_url": "https://example.org/a.png"}]}, 422, "image_urls_off"),
        ({"query": [{"vector": [1.0, 2.0]}], "space": "SPACE"}, 422, "wrong_width"),
        ({"query": [{"vector": [1.0] * 64}], "space": "another"}, 422, "wrong_space"),
        ({"query": [{"vector": [0.0] * 64}], "space": "SPACE"}, 422, "no_direction"),
        ({"query": [{"text": "a"}, {"text": "a", "weight": -1}]}, 422, "no_direction"),
        ({"query": [{"text": "a", "weight": 0}]}, 422, "no_direction"),
        ({"query": [{"id": "nobody"}]}, 404, "unknown_id"),
        ({"query": [{"text": "a"}], "table": "nothing"}, 404, "unknown_table"),
        ({"query": [{"text": "a"}], "columns": ["nothing"]}, 422, "unknown_column"),
        ({"query": [{"text": "a"}], "filter": {"column": "nothing", "eq": 1}}, 422, "bad_filter"),
        ({"query": [{"text": "a"}], "filter": {"column": "colour", "eq": 1}}, 422, "bad_filter"),
        ({"query": [{"text": "a"}], "timeout_ms": 60_001}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_a_code(
    client: httpx.Client, space: str, body: dict, status: int, code: str
):
    if body.get("space") == "SPACE":
        body = {**body, "space": space}
    reply = client.post("/v1/search", json=body)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/problem+json"


def test_what_takes_too_long_is_given_up(client: httpx.Client, endpoint: Served, monkeypatch: pytest.MonkeyPatch):
    batcher = endpoint.desk.queries
    monkeypatch.setattr(batcher, "call", lambda queries: time.sleep(0.5) or [TimeoutError()] * len(queries))
    reply = client.post("/v1/search", json={"query": [{"text": "a"}], "timeout_ms": 50})
    assert (reply.status_code, reply.json()["code"]) == (504, "timeout")


def test_what_the_server_did_not_expect_is_no_traceback(endpoint: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(queries: list) -> list:
        raise ZeroDivisionError("a secret of the server")

    monkeypatch.setattr(endpoint.desk.queries, "call", broken)
    reply = endpoint.client.post("/v1/search", json={"query": [{"text": "a"}]})
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text


def test_tables_of_different_spaces_answer_each_for_itself(
    demo_store: str, demo_rows: list[dict], tmp_path: Path, serving: Callable[..., Served]
):
    shutil.copytree(demo_store, tmp_path / "store")
    pq.write_table(pa.Table.from_pylist(demo_rows[:60]), tmp_path / "few.parquet")
    source = SourceConfig(name="few", path=str(tmp_path / "few.parquet"), key_column="key")
    where = {"store": str(tmp_path / "store"), "table": "few"}
    squashed = PreprocessConfig(fit="model", thumbnail_px=64)
    embed(EmbedConfig(**where, model=str(DEMO_MODEL), source=source, preprocess=squashed, max_reject_fraction=0.5))
    build(IndexConfig(**where, queries=20))
    first = next(name for name in Store(where["store"]).folders("embeddings") if name != "few")
    client = serving(ServeConfig(store=where["store"], tables=(first, "few"))).client
    spaces = {table["table"]: table["space"] for table in client.get("/v1/info").json()["tables"]}
    assert set(spaces) == {first, "few"}
    assert len(set(spaces.values())) == 2
    few = {row["key"] for row in demo_rows[:60]}
    for table in (None, first, "few"):
        reply = search(client, {"text": "a red shape"}, k=100, table=table)
        assert (reply["table"], reply["space"]) == (table or first, spaces[table or first])
        assert set(found(reply)) <= few if table == "few" else not set(found(reply)) <= few
    wrong = {"query": [{"vector": [1.0] * 64}], "space": spaces[first], "table": "few"}
    assert client.post("/v1/search", json=wrong).json()["code"] == "wrong_space"
    row = client.get(f"/v1/rows/{demo_rows[8]['key']}", params={"table": "few"}).json()
    assert row["table"] == "few"
    small = Image.open(io.BytesIO(client.get(row["thumbnail"]).content))
    assert max(small.size) == 64  # as the table keeps it
    assert [each["table"] for each in client.get("/readyz").json()["tables"]] == [first, "few"]
    assert client.get("/indices-list").json() == [first, "few"]


def test_metrics_count_what_was_answered(client: httpx.Client):
    client.get("/v1/search", params={"q": "a star"})
    text = client.get("/metrics").text
    assert 'rayclip_requests_total{route="/v1/search",status="200"}' in text
    assert "rayclip_step_seconds_count" in text
    assert "rayclip_index_serving{" in text
