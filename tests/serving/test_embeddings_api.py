"""The embeddings endpoint as OpenAI's own client, Jina's documents and people's scripts use it."""

import base64
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import openai
import pytest

from pipeline.config import ServeConfig
from pipeline.serving.desk import Desk
from pipeline.serving.gate import Key
from pipeline.serving.telemetry import Telemetry
from tests.conftest import encoded
from tests.serving.conftest import Served

TEXT = "a red star"


def client_of(served: Served, key: str = "x") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def model(endpoint: Served) -> str:
    return endpoint.desk.first.record.model_id


@pytest.fixture
def client(endpoint: Served) -> Iterator[openai.OpenAI]:
    with client_of(endpoint) as asking:
        yield asking


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def in_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def of_text(served: Served, text: str = TEXT, **options: bool) -> np.ndarray:
    return served.desk.first.embed_texts([text], **options)[0]


def of_image(served: Served, image: bytes, **options: bool) -> np.ndarray:
    return served.desk.first.embed_images([image], **options)[0]


def post(served: Served, **body: object) -> httpx.Response:
    return served.client.post("/v1/embeddings", json={"model": served.desk.first.record.model_id, **body})


def vectors(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    assert [each["index"] for each in reply.json()["data"]] == list(range(len(reply.json()["data"])))
    return np.array([each["embedding"] for each in reply.json()["data"]])


def from_base64(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """The same but for rounding: in bf16 batches of other sizes differ in the third digit; other texts in the first."""
    one, other = np.asarray(one), np.asarray(other)
    norms = np.linalg.norm(one, axis=-1), np.linalg.norm(other, axis=-1)
    return np.allclose(*norms, rtol=1e-2) and bool(((one * other).sum(axis=-1) / (norms[0] * norms[1]) > 0.9995).all())


def test_openais_client_gets_the_services_own_vector(endpoint: Served, client: openai.OpenAI, model: str):
    """It asks for base64 unless told otherwise, and reads it."""
    reply = client.embeddings.create(model=model, input=TEXT)
    assert close(reply.data[0].embedding, of_text(endpoint))
    assert (reply.model, reply.object, reply.data[0].object, reply.data[0].index) == (model, "list", "embedding", 0)
    in_numbers = client.embeddings.create(model=model, input=TEXT, encoding_format="float")
    assert in_numbers.data[0].embedding == pytest.approx(reply.data[0].embedding, abs=1e-6)


def test_openais_client_gets_a_list_in_its_order(endpoint: Served, client: openai.OpenAI, model: str):
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("star", "ring")]
    reply = client.embeddings.create(model=model, input=texts, dimensions=32, user="somebody")
    assert [each.index for each in reply.data] == list(range(6))
    for text, each in zip(texts, reply.data, strict=True):
        assert close(each.embedding, unit(of_text(endpoint, text)[:32]))


def test_openais_client_carries_images_that_its_types_do_not_know(
    endpoint: Served, client: openai.OpenAI, model: str, demo_rows: list[dict]
):
    images = [row["image"] for row in demo_rows[1:4]]
    inputs = [{"image": in_base64(images[0])}, TEXT, {"image": f"data:image/png;base64,{in_base64(images[1])}"}]
    reply = client.embeddings.create(model=model, input=inputs)
    wanted = [of_image(endpoint, images[0]), of_text(endpoint), of_image(endpoint, images[1])]
    for vector, each in zip(wanted, reply.data, strict=True):
        assert close(each.embedding, vector)


def test_an_embedding_finds_the_row_whose_image_it_is_of(
    endpoint: Served, client: openai.OpenAI, model: str, demo_rows: list[dict]
):
    row = demo_rows[8]
    reply = client.embeddings.create(model=model, input=[{"image": in_base64(row["image"])}])
    query = {"query": [{"vector": reply.data[0].embedding}], "space": endpoint.desk.first.record.space, "k": 1}
    assert endpoint.client.post("/v1/search", json=query).json()["hits"][0]["id"] == row["key"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": [1, 2, 3]},
        {"input": [[1, 2], [3]]},
        {"input": ["a"] * 2049},
        {"input": "a" * 2001},
        {"input": TEXT, "dimensions": 0},
        {"input": TEXT, "dimensions": 65},
        {"input": [{"image": "§"}]},
        {"input": [{"image": in_base64(b"no image")}]},
        {"input": [{"pdf": "x"}]},
        {"input": [{"text": "a", "image": "b"}]},
        {"input": [{"text": ""}]},
        {"input": TEXT, "encoding_format": "float16"},
    ],
)
def test_openais_client_raises_what_it_raises_for_bad_input(client: openai.OpenAI, model: str, wrong: dict):
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as raised:
        client.embeddings.create(model=model, **wrong)
    body = raised.value.response.json()
    assert body["error"] == {
        "message": body["detail"],
        "type": "invalid_request_error",
        "param": None,
        "code": body["code"],
    }
    assert raised.value.code == body["code"]


def test_token_ids_are_refused_in_words_that_help(client: openai.OpenAI, model: str):
    for tokens in ([1, 2, 3], [[1, 2], [3]]):
        with pytest.raises(openai.UnprocessableEntityError, match="token ids are not taken, send the text itself"):
            client.embeddings.create(model=model, input=tokens)


def test_what_is_wrong_with_one_of_many_names_its_place(endpoint: Served):
    broken = {"image": in_base64(encoded(1)[:-200])}
    reply = post(endpoint, input=["a", {"image": in_base64(encoded(1))}, broken, "b"])
    assert (reply.status_code, reply.json()["code"]) == (422, "image_truncated")
    assert reply.json()["detail"].startswith("input.2: image")


def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="text-embedding-3-small", input=TEXT)
    assert raised.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error(demo_desk: Desk, demo_store: str, serving: Callable[..., Served]):
    known = Key("read", "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683")  # of "key"
    answering = serving(ServeConfig(store=demo_store), keys=(known,), desk=demo_desk)
    name = demo_desk.first.record.model_id
    assert client_of(answering, "key").embeddings.create(model=name, input=TEXT).data
    with pytest.raises(openai.AuthenticationError) as raised:
        client_of(answering, "yek").embeddings.create(model=name, input=TEXT)
    assert raised.value.code == "unauthorized"


def test_past_what_can_wait_openais_client_is_told_when_to_come_back(
    demo_desk: Desk, demo_store: str, serving: Callable[..., Served]
):
    answering = serving(ServeConfig(store=demo_store, max_waiting=1), desk=demo_desk)
    host, port = answering.url.removeprefix("http://").split(":")
    asking, name = client_of(answering), demo_desk.first.record.model_id
    with socket.create_connection((host, int(port))) as slow:  # holds the only place: its body never comes
        slow.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                asking.embeddings.create(model=name, input=TEXT)
            except openai.RateLimitError as error:
                refused = error
                break
    assert refused.code == "overloaded"
    assert int(refused.response.headers["retry-after-ms"]) >= 50
    patient = asking.with_options(max_retries=8)
    assert patient.embeddings.create(model=name, input=TEXT).data  # it waits as long as it was told, and asks again


def test_the_code_of_a_blog_runs_with_another_url(
    demo_desk: Desk, demo_store: str, serving: Callable[..., Served], demo_rows: list[dict]
):
    config = ServeConfig(store=demo_store, model_aliases=("jina-clip-v1",))
    url = serving(config, desk=Desk([demo_desk.first], config, Telemetry())).url + "/v1/embeddings"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer jina_0123456789"}

    def embed(image: bytes) -> list[float]:
        payload = {
            "input": [{"bytes": base64.b64encode(image).decode("utf-8")}],
            "model": "jina-clip-v1",
            "encoding_type": "float",
        }
        response = httpx.post(url, headers=headers, json=payload)
        return response.json()["data"][0]["embedding"]

    image = demo_rows[3]["image"]
    assert close(embed(image), demo_desk.first.embed_image(image))


@pytest.mark.parametrize("shape", ["{image}", "[{image}]", "[data]", "[{text}]", "{text}", "text"])
def test_jinas_shapes_of_one_input_give_the_services_vector(endpoint: Served, demo_rows: list[dict], shape: str):
    image = demo_rows[5]["image"]
    given = {
        "{image}": {"image": in_base64(image)},
        "[{image}]": [{"image": in_base64(image)}],
        "[data]": [{"image": f"data:image/png;base64,{in_base64(image)}"}],
        "[{text}]": [{"text": TEXT}],
        "{text}": {"text": TEXT},
        "text": TEXT,
    }[shape]
    (vector,) = vectors(post(endpoint, input=given, embedding_type="float", task="retrieval.query", truncate=True))
    assert close(vector, of_text(endpoint) if "text" in shape else of_image(endpoint, image))


def test_mixed_lists_keep_their_order(endpoint: Served, demo_rows: list[dict]):
    image, other = demo_rows[1]["image"], demo_rows[2]["image"]
    mixed = [{"image": in_base64(image)}, {"text": TEXT}, "a blue ring", {"image": in_base64(other)}, TEXT]
    found = vectors(post(endpoint, input=mixed))
    wanted = [
        of_image(endpoint, image),
        of_text(endpoint),
        of_text(endpoint, "a blue ring"),
        of_image(endpoint, other),
        of_text(endpoint),
    ]
    assert close(found, np.stack(wanted))


def test_each_kind_of_embedding_says_the_same(endpoint: Served):
    wanted = of_text(endpoint)
    kinds = ["float", "base64", "binary", "ubinary"]
    for alias in ("embedding_type", "encoding_format", "encoding_type"):
        (several,) = (each["embedding"] for each in post(endpoint, input=TEXT, **{alias: kinds}).json()["data"])
        assert list(several) == kinds
    for kind in kinds:
        (alone,) = (each["embedding"] for each in post(endpoint, input=TEXT, embedding_type=kind).json()["data"])
        assert alone == several[kind]
    assert close(several["float"], wanted)
    assert close(from_base64(several["base64"], "<f4"), wanted)
    signs = np.packbits(np.array(several["float"]) > 0)
    assert (from_base64(several["ubinary"], np.uint8) == signs).all()
    assert (from_base64(several["binary"], np.int8) == signs.astype(int) - 128).all()


def test_a_kind_that_is_null_is_float_and_none_at_all_is_refused(endpoint: Served):
    assert close(vectors(post(endpoint, input=TEXT, encoding_format=None, dimensions=None))[0], of_text(endpoint))
    assert post(endpoint, input=TEXT, embedding_type=[]).status_code == 422


@pytest.mark.parametrize("dimensions", [1, 32, 63, 64])
def test_fewer_dimensions_are_the_first_ones_of_norm_one_again(endpoint: Served, dimensions: int):
    (vector,) = vectors(post(endpoint, input=TEXT, dimensions=dimensions))
    assert close(vector, unit(of_text(endpoint)[:dimensions]))


def test_more_dimensions_than_the_model_has_are_refused(endpoint: Served):
    reply = post(endpoint, input=TEXT, dimensions=65)
    assert (reply.status_code, reply.json()["code"]) == (422, "too_many_dimensions")


def test_without_normalising_a_vector_is_as_the_model_gives_it(endpoint: Served, demo_rows: list[dict]):
    image, encoder = demo_rows[1]["image"], endpoint.desk.first.encoder
    found = vectors(post(endpoint, input=[TEXT, {"image": in_base64(image)}], normalized=False))
    pixels, _ = endpoint.desk.first.sandbox.pixels([image])
    own = [encoder.encode_texts([TEXT], normalised=False)[0], encoder.encode_images(pixels, normalised=False)[0]]
    assert close(found, own)
    assert (np.abs(np.linalg.norm(found, axis=1) - 1) > 0.1).all()
    assert close(unit(found[0]), of_text(endpoint))
    assert close(unit(found[1]), of_image(endpoint, image))
    cut = vectors(post(endpoint, input=TEXT, normalized=False, dimensions=10))[0]
    assert close(cut, found[0][:10])


def test_a_vector_that_is_not_normalised_for_one_is_for_another(endpoint: Served):
    """Both are encoded in the same batches."""
    with httpx.Client(base_url=endpoint.url) as asking:
        for wanted in (False, True, False, True):
            body = {"model": endpoint.desk.first.table, "input": [TEXT] * 3, "normalized": wanted}
            norms = np.linalg.norm(vectors(asking.post("/v1/embeddings", json=body)), axis=1)
            assert (np.abs(norms - 1) < 1e-5).all() == wanted


def test_usage_counts_the_tokens_of_texts_and_none_of_images(endpoint: Served, demo_rows: list[dict]):
    def usage(*inputs: object) -> dict:
        return post(endpoint, input=list(inputs)).json()["usage"]

    one = usage(TEXT)
    assert one == {"prompt_tokens": one["total_tokens"], "total_tokens": one["total_tokens"], "image_tokens": None}
    assert one["total_tokens"] == endpoint.desk.first.count_tokens([TEXT])[0] > 3
    assert usage(TEXT, TEXT, "a")["total_tokens"] == 2 * one["total_tokens"] + usage("a")["total_tokens"]
    image = {"image": in_base64(demo_rows[1]["image"])}
    assert usage(image)["total_tokens"] == 0
    assert usage(image, TEXT) == one


@pytest.mark.parametrize("name", ["model_id", "model", "space", "table"])
def test_a_model_goes_by_any_of_its_names(endpoint: Served, name: str):
    known = {**vars(endpoint.desk.first.record), "table": endpoint.desk.first.table}
    assert post(endpoint, model=known[name], input=TEXT).json()["model"] == known["model_id"]


def test_a_body_that_is_no_request_is_refused_in_all_three_forms(endpoint: Served):
    for content, status, code in ((b"{", 400, "bad_request"), (b"[]", 422, "invalid_request")):
        reply = endpoint.client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (status, code)
        assert reply.json()["error"]["message"] == reply.json()["detail"]
