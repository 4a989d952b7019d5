"""clip-retrieval's contract, asked byte for byte as its ClipClient and its front-end ask."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import httpx
import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import ServeConfig
from pipeline.searching.columns import Columns
from pipeline.serving.desk import Desk
from pipeline.serving.service import Service
from pipeline.serving.snapshot import Asked
from pipeline.serving.telemetry import Telemetry
from tests.serving.conftest import Served

# As ClipClient fills them in, whatever it is asked.
OF_CLIENT = {
    "text": None,
    "image": None,
    "image_url": None,
    "embedding_input": None,
    "deduplicate": True,
    "use_safety_model": True,
    "use_violence_detector": True,
    "indice_name": None,
    "use_mclip": False,
    "aesthetic_score": 9,
    "aesthetic_weight": 0.5,
    "modality": "image",
    "num_images": 40,
    "num_result_ids": 40,
}
OF_FRONT = {
    "text": None,
    "image": None,
    "image_url": None,
    "embedding_input": None,
    "modality": "image",
    "num_images": 40,
    "indice_name": None,
    "num_result_ids": 3000,
    "use_mclip": False,
    "deduplicate": False,
    "use_safety_model": False,
    "use_violence_detector": False,
    "aesthetic_score": "",
    "aesthetic_weight": "0.5",
}


def strict(text: str) -> object:
    """Read JSON as JavaScript does: without NaN."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} in a reply")

    return json.loads(text, parse_constant=refuse)


def by_client(served: Served, path: str = "/knn-service", **fields: object) -> list[dict]:
    """Post as requests.post(url, data=json.dumps(…)) does: without any Content-Type."""
    reply = served.client.post(path, content=json.dumps({**OF_CLIENT, **fields}))
    assert "content-type" not in reply.request.headers
    assert reply.status_code == 200, reply.text
    return strict(reply.text)


def by_front(served: Served, **fields: object) -> list[dict]:
    """Post as the front-end's fetch does: to its backend with a doubled slash, as plain text."""
    headers = {"Content-Type": "text/plain;charset=UTF-8", "Origin": served.url, "Sec-Fetch-Site": "same-origin"}
    reply = httpx.post(f"{served.url}//knn-service", content=json.dumps({**OF_FRONT, **fields}), headers=headers)
    assert reply.status_code == 200, reply.text
    return strict(reply.text)


def refused(served: Served, path: str = "/knn-service", **fields: object) -> tuple[int, str]:
    body = {name: value for name, value in {**OF_CLIENT, **fields}.items() if value is not ...}
    reply = served.client.post(path, content=json.dumps(body))
    assert reply.headers["content-type"] == "application/problem+json"
    return reply.status_code, strict(reply.text)["code"]


def in_base64(row: dict) -> str:
    return base64.b64encode(row["image"]).decode()


def ids(found: list[dict]) -> list[int]:
    return [each["id"] for each in found]


@pytest.fixture
def service(endpoint: Served) -> Service:
    return endpoint.desk.first


@contextmanager
def with_columns(service: Service, **more: list) -> Iterator[None]:
    """Let a table have further columns, of these values over and over."""
    snapshot = service.snapshot
    (batch,) = snapshot.columns.batches
    wanted = {name: pa.array([values[row % len(values)] for row in range(len(batch))]) for name, values in more.items()}
    wider = pa.RecordBatch.from_arrays([*batch.columns, *wanted.values()], names=[*batch.schema.names, *wanted])
    service.snapshot = replace(snapshot, columns=Columns((wider,), snapshot.columns.hashes, snapshot.columns.numbers))
    yield
    service.snapshot = snapshot


def test_the_client_gets_all_rows_best_first_with_what_was_kept(endpoint: Served, service: Service):
    found = by_client(endpoint, text="a red star", deduplicate=False)
    scores, numbers = service.snapshot.search(service.embed_text("a red star")[None, :], Asked(40))
    assert ids(found) == numbers[0].tolist()
    assert [each["similarity"] for each in found] == pytest.approx(scores[0].tolist(), abs=1e-5)
    for each, row_id in zip(found, service.snapshot.row_ids(numbers[0]), strict=True):
        assert each.keys() == {"id", "similarity", "caption", "colour", "url"}
        assert each["url"] == f"{endpoint.url}/v1/rows/{row_id}/thumbnail"
    assert endpoint.client.get(found[0]["url"]).headers["content-type"] == "image/webp"
    assert found[0]["caption"].startswith("a ")


def test_the_front_gets_3000_ids_and_describes_the_rest_forty_at_a_time(endpoint: Served, service: Service):
    found = by_front(endpoint, text="a red star")
    assert len(found) == service.snapshot.index.card.ntotal == len(set(ids(found)))
    assert [each["similarity"] for each in found] == sorted((each["similarity"] for each in found), reverse=True)
    assert all("caption" in each and "url" in each for each in found[:40])
    assert all(each.keys() == {"id", "similarity"} for each in found[40:])
    wanted = ids(found)[40:80][::-1]
    asked = json.dumps({"ids": wanted, "indice_name": service.table})
    reply = strict(httpx.post(f"{endpoint.url}//metadata", content=asked).text)
    assert ids(reply) == wanted
    assert all(each["metadata"].keys() == {"caption", "colour", "url"} for each in reply)
    assert reply[0]["metadata"] == by_one(service, wanted[0]) | {"url": reply[0]["metadata"]["url"]}


def by_one(service: Service, number: int) -> dict:
    (row,) = service.snapshot.columns.rows([number], ["caption", "colour"])
    return row


@pytest.mark.parametrize(
    "fields",
    [
        {"aesthetic_score": "9", "aesthetic_weight": "0.5"},
        {"aesthetic_score": "", "aesthetic_weight": ""},
        {"aesthetic_score": None, "aesthetic_weight": None},
        {"aesthetic_score": "", "aesthetic_weight": "0.5"},
        {"num_images": "40", "num_result_ids": "40"},
        {"deduplicate": False},
        {"deduplicate": "false"},
        {"deduplicate": None, "use_mclip": None, "use_safety_model": None},
        {"indice_name": ""},
        {"image": "", "image_url": "", "embedding_input": []},
        {"modality": "text"},
        {"fields_of": "versions to come"},
    ],
)
def test_what_clients_send_besides_changes_nothing(endpoint: Served, fields: dict):
    plain = by_client(endpoint, text="a blue ring", deduplicate=False)
    assert by_client(endpoint, text="a blue ring", **{"deduplicate": False, **fields}) == plain


def test_fields_that_are_left_out_have_the_servers_defaults(endpoint: Served):
    least = {"text": "a blue ring", "modality": "image", "num_images": 5, "indice_name": None}
    reply = strict(endpoint.client.post("/knn-service", content=json.dumps(least)).text)
    assert reply == by_client(endpoint, text="a blue ring", deduplicate=False, num_images=5, num_result_ids=5)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json", "application/x-www-form-urlencoded"])
def test_a_body_is_json_whatever_it_says_it_is(endpoint: Served, content_type: str | None):
    headers = {} if content_type is None else {"Content-Type": content_type}
    for path in ("/knn-service", "//knn-service", "///knn-service"):
        body = json.dumps({**OF_CLIENT, "text": "a"})
        assert len(httpx.post(endpoint.url + path, content=body, headers=headers).json()) > 10


def test_an_image_finds_itself(endpoint: Served, service: Service, demo_rows: list[dict]):
    row = demo_rows[8]
    first = by_client(endpoint, image=in_base64(row), num_images=1, num_result_ids=1)[0]
    assert first["id"] == service.snapshot.number_of(row["key"])
    assert first["similarity"] == pytest.approx(1, abs=0.01)


def test_an_embedding_is_used_as_given(endpoint: Served, service: Service):
    vector = service.embed_text("a red star").astype(float)
    plain = by_client(endpoint, text="a red star", deduplicate=False)
    for length in (1.0, 0.25, 30.0):
        scaled = by_client(endpoint, embedding_input=(length * vector).tolist(), deduplicate=False)
        assert ids(scaled) == ids(plain)
        for one, other in zip(scaled, plain, strict=True):
            assert one["similarity"] == pytest.approx(length * other["similarity"], rel=1e-3, abs=1e-4)


def test_text_comes_before_image_before_url_before_embedding(endpoint: Served, service: Service, demo_rows: list[dict]):
    text, row, other = "a red star", demo_rows[8], demo_rows[9]
    asked = {
        "text": text,
        "image": in_base64(row),
        "image_url": "http://example.org/a.jpg",
        "embedding_input": service.embed_image(other["image"]).tolist(),
    }
    assert by_client(endpoint, **asked) == by_client(endpoint, text=text)
    assert by_client(endpoint, **{**asked, "text": ""}) == by_client(endpoint, image=asked["image"])
    assert refused(endpoint, **{**asked, "text": None, "image": None}) == (422, "image_urls_off")
    last = by_client(endpoint, embedding_input=asked["embedding_input"], num_images=1)
    assert last[0]["id"] == service.snapshot.number_of(other["key"])


def test_duplicates_are_one_row_of_each_group_that_is_connected(endpoint: Served, service: Service):
    plain = by_client(endpoint, text="a red star", num_images=0, num_result_ids=300, deduplicate=False)
    kept = by_client(endpoint, text="a red star", num_images=0, num_result_ids=300, deduplicate=True)
    vectors = service.snapshot.index.index.exact.take(np.array(ids(plain)))
    near = vectors @ vectors.T >= 0.94
    group = list(range(len(plain)))
    for one in range(len(plain)):
        for other in np.flatnonzero(near[one]):
            old, new = sorted((group[one], group[other]))[::-1]
            group = [new if each == old else each for each in group]
    assert ids(kept) == [plain[first]["id"] for first in sorted(set(group))]
    assert 1 < len(kept) < len(plain)


def test_fewer_results_than_images_are_all_described(endpoint: Served):
    found = by_client(endpoint, text="a", num_images=40, num_result_ids=3, deduplicate=False)
    assert len(found) == 3
    assert all("caption" in each for each in found)


def test_nothing_is_an_empty_list(endpoint: Served):
    assert by_client(endpoint, text="a", num_images=0, num_result_ids=0) == []
    assert by_client(endpoint, path="/metadata", ids=[], indice_name=None) == []


def test_ids_that_are_none_have_no_metadata_and_keep_their_place(endpoint: Served, service: Service):
    wanted = [5, -1, 10**9, 3, 5, (1 << 53) - 1]
    reply = by_client(endpoint, path="/metadata", ids=wanted, indice_name=service.table)
    assert ids(reply) == wanted
    assert [each["metadata"] != {} for each in reply] == [True, False, False, True, True, False]
    assert reply[0] == reply[4]
    assert reply[3]["metadata"]["caption"] == by_one(service, 3)["caption"]


def test_indices_and_the_fronts_config(endpoint: Served, service: Service):
    assert endpoint.client.get("/indices-list").json() == [service.table]
    config = httpx.get(f"{endpoint.url}//config.json").json()
    assert config == {"defaultBackend": endpoint.url, "defaultIndex": service.table, "urlColumn": "url"}


def test_a_second_table_goes_by_its_name_and_shows_its_own_pictures(
    endpoint: Served, service: Service, demo_store: str, serving: Callable[..., Served]
):
    other = Service(demo_store, service.table, encoder=service.encoder)
    other.table = "another table"
    config = ServeConfig(store=demo_store)
    both = serving(config, desk=Desk([service, other], config, Telemetry()))
    assert both.client.get("/indices-list").json() == [service.table, "another table"]
    first = by_client(both, text="a red star")[0]
    second = by_client(both, text="a red star", indice_name="another table")[0]
    assert second == {**first, "url": f"{first['url']}?table=another%20table"}
    assert both.client.get(second["url"]).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"indice_name": "laion5B"}, 404, "unknown_table"),
        ({"modality": ...}, 422, "invalid_request"),
        ({"modality": None}, 422, "invalid_request"),
        ({"num_images": ...}, 422, "invalid_request"),
        ({"indice_name": ...}, 422, "invalid_request"),
        ({"num_images": 10_001}, 422, "invalid_request"),
        ({"num_result_ids": 1_000_000}, 422, "invalid_request"),
        ({"num_images": -1}, 422, "invalid_request"),
        ({"num_images": "many"}, 422, "invalid_request"),
        ({"text": ""}, 422, "invalid_request"),
        ({"text": None}, 422, "invalid_request"),
        ({"text": ["a"]}, 422, "invalid_request"),
        ({"text": None, "image": "§"}, 422, "image_not_base64"),
        ({"text": None, "image": "bm90IGFuIGltYWdl"}, 422, "image_not_an_image"),
        ({"text": None, "image_url": "http://127.0.0.1/"}, 422, "image_urls_off"),
        ({"text": None, "embedding_input": [1.0] * 63}, 422, "wrong_width"),
        ({"text": None, "embedding_input": [0.0] * 64}, 422, "no_direction"),
        ({"text": None, "embedding_input": [float("nan")] * 64}, 422, "no_direction"),
        ({"text": None, "embedding_input": [float("inf")] * 64}, 422, "no_direction"),
        ({"text": None, "embedding_input": [1e300] * 64}, 422, "no_direction"),
        ({"text": None, "embedding_input": [1e150] * 64}, 422, "invalid_request"),
        ({"text": None, "embedding_input": "[1]"}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_in_json(endpoint: Served, fields: dict, status: int, code: str):
    assert refused(endpoint, **{"text": "a", **fields}) == (status, code)


@pytest.mark.parametrize("wanted", [None, {"0": 1}, ["a"], [1.5], [1 << 53], list(range(10_001))])
def test_ids_that_are_not_numbers_are_refused(endpoint: Served, wanted: object):
    assert refused(endpoint, "/metadata", ids=wanted) == (422, "invalid_request")
    assert refused(endpoint, "/metadata", ids=[1], indice_name="laion5B") == (404, "unknown_table")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"text=a", b"[" * 100_000, b"9" * 5000])
def test_a_body_that_is_not_json_is_refused(endpoint: Served, body: bytes):
    for path in ("/knn-service", "/metadata"):
        reply = endpoint.client.post(path, content=body)
        assert (reply.status_code, reply.json()["code"]) == (400, "bad_request")


def test_no_reply_holds_what_json_does_not(endpoint: Served, service: Service):
    odd = {
        "ratio": [float("nan"), float("inf"), -float("inf"), 0.5, None],
        "taken": [datetime(2026, 1, 2, 3, 4, 5), None],
        "raw": [b"\x00\xff", None],
        "parts": [[1.0, float("nan")], []],
    }
    with with_columns(service, **odd):
        found = by_client(endpoint, text="a", num_images=300, num_result_ids=300, deduplicate=False)
        reply = by_client(endpoint, path="/metadata", ids=ids(found), indice_name=None)
    assert {each["ratio"] for each in found} == {0.5, None}
    assert {each["taken"] for each in found} == {"2026-01-02T03:04:05", None}
    assert {each["raw"] for each in found} == {"AP8=", None}
    assert {str(each["parts"]) for each in found} == {"[1.0, None]", "[]"}
    for row, described in zip(found, reply, strict=True):
        assert {name: value for name, value in row.items() if name not in ("id", "similarity")} == described["metadata"]


def test_columns_cannot_pass_for_an_id_or_a_similarity(endpoint: Served, service: Service):
    plain = by_client(endpoint, text="a red star")
    with with_columns(service, id=["x"], similarity=["y"], url=["https://example.org/a.jpg"]):
        found = by_client(endpoint, text="a red star")
    assert [(each["id"], each["similarity"]) for each in found] == [(each["id"], each["similarity"]) for each in plain]
    assert {each["url"] for each in found} == {"https://example.org/a.jpg"}
