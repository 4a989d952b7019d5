"""What strangers may send, to every face of the endpoint: refused with a stable code, and the next one is answered."""

import base64
import contextlib
import http.server
import ipaddress
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.config import ServeConfig
from pipeline.embedding.web import Web
from pipeline.serving.desk import Desk
from pipeline.serving.service import Service
from pipeline.serving.telemetry import Telemetry
from tests.conftest import encoded, png_header, saved
from tests.embedding.test_web import HOSTILE, MALFORMED, Server, attackers
from tests.serving.conftest import Served, served

JSON = {"Content-Type": "application/json"}
KNN = {"modality": "image", "num_images": 1, "indice_name": None}
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 50_000, 100_000


def in_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def by_search(served: Served, image: str) -> httpx.Response:
    return served.client.post("/v1/search", json={"query": [{"image": image}], "k": 1})


def by_terms(served: Served, image: str) -> httpx.Response:
    query = [{"text": "a"}, {"image": image, "weight": -1.0}]
    return served.client.post("/v1/search/batch", json={"searches": [{"query": query}]})


def by_embeddings(served: Served, image: str) -> httpx.Response:
    return served.client.post(
        "/v1/embeddings", json={"model": served.desk.first.table, "input": ["a", {"image": image}]}
    )


def by_knn(served: Served, image: str) -> httpx.Response:
    return served.client.post("/knn-service", content=json.dumps({**KNN, "image": image}))


def by_upload(served: Served, image: bytes) -> httpx.Response:
    return served.client.post("/v1/search/upload", files={"image": ("../../etc/passwd", image)})


FACES = (by_search, by_terms, by_embeddings, by_knn)


def problem_of(reply: httpx.Response) -> str:
    """Check that a reply is a refusal in the form that is promised, and give its code."""
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:500])
    assert reply.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in reply.text
    assert 'File "' not in reply.text
    assert len(reply.content) < 10_000
    assert reply.json()["status"] == reply.status_code
    return reply.json()["code"]


def is_well(served: Served) -> bool:
    fine = in_base64(encoded(1))
    return by_search(served, fine).status_code == by_embeddings(served, fine).status_code == 200


@pytest.fixture(scope="module")
def guarded(demo_store: str, demo_desk: Desk) -> Iterator[Served]:
    """The demo under limits that a test can pass."""
    limits = {"max_image_bytes": MAX_IMAGE_BYTES, "max_image_pixels": MAX_IMAGE_PIXELS}
    config = ServeConfig(store=demo_store, **limits)
    service = Service(demo_store, None, encoder=demo_desk.first.encoder, **limits)
    with served(config, desk=Desk([service], config, Telemetry())) as answering:
        yield answering


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


PNG = encoded(1, kind="PNG")
TEXT_BOMB = PNG[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (20 << 20))) + PNG[33:]
IMAGES = {
    "text": (b"no image at all", "image_not_an_image"),
    "html": (b"<!doctype html><script>alert(1)</script>", "image_not_an_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "image_not_an_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "image_not_an_image"),
    "pdf": (b"%PDF-1.7\n", "image_not_an_image"),
    "zeros": (bytes(1000), "image_not_an_image"),
    "format that is not taken": (saved(noise(8, 8), "PPM"), "image_not_an_image"),
    "icon": (saved(noise(16, 16), "ICO"), "image_not_an_image"),
    "cut JPEG": (encoded(1)[:-300], "image_truncated"),
    "cut PNG": (PNG[: len(PNG) // 2], "image_truncated"),
    "cut WebP": (encoded(1, kind="WEBP")[:-50], "image_decode_failed"),
    "header of a PNG": (png_header(80, 60), "image_truncated"),
    "bomb by header": (png_header(60_000, 60_000), "image_too_many_pixels"),
    "widest by header": (png_header(2**31 - 1, 2**31 - 1), "image_too_many_pixels"),
    "text that inflates": (TEXT_BOMB, "image_decode_failed"),
    "too many pixels": (saved(Image.new("RGB", (400, 251)), "PNG"), "image_too_many_pixels"),
    "too many bytes": (saved(noise(200, 200), "PNG"), "image_too_many_bytes"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none_is_refused_by_every_face_alike(guarded: Served, name: str):
    image, code = IMAGES[name]
    codes = {face.__name__: problem_of(face(guarded, in_base64(image))) for face in FACES}
    codes["by_upload"] = problem_of(by_upload(guarded, image))
    assert codes == dict.fromkeys(codes, code)
    assert is_well(guarded)


def test_images_of_just_the_limits_are_taken(guarded: Served):
    edge = saved(Image.new("RGB", (400, 250)), "PNG")
    edge += bytes(MAX_IMAGE_BYTES - len(edge))
    for reply in (*(face(guarded, in_base64(edge)) for face in FACES), by_upload(guarded, edge)):
        assert reply.status_code == 200, reply.text


def test_no_bytes_are_no_image(guarded: Served):
    assert problem_of(by_upload(guarded, b"")) == "image_empty"
    for face in FACES:
        assert problem_of(face(guarded, "data:image/png;base64,")) == "image_empty"
        assert problem_of(face(guarded, "")) == "invalid_request"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("§", "image_not_base64"),
        ("abc", "image_not_base64"),
        ("ab=c", "image_not_base64"),
        ("a b c d", "image_not_base64"),
        ("\x00\x00\x00\x00", "image_not_base64"),
        ("data:", "image_not_base64"),
        ("data:image/png;base64", "image_not_base64"),
        ("data:image/png,abcd", "image_not_base64"),
        ("data:image/png;base64,§", "image_not_base64"),
        ("data:text/html;base64,PGh0bWw+", "image_not_an_image"),
        ("data:application/json;base64,e30=", "image_not_an_image"),
        ("file:///etc/passwd", "image_not_base64"),
        ("/etc/passwd", "image_not_base64"),
        ("/etc/hostname+", "image_not_base64"),
    ],
)
def test_what_is_not_base64_is_refused_by_every_face_alike(guarded: Served, text: str, code: str):
    assert {problem_of(face(guarded, text)) for face in FACES} == {code}


def test_damaged_images_are_answered_or_refused_and_never_break_anything(guarded: Served):
    rng = np.random.default_rng(1)
    good = [encoded(seed, kind=kind) for seed, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"))]
    for _ in range(6):
        for image in good:
            damaged = bytearray(image)
            for place in rng.integers(0, len(image), 8):
                damaged[place] ^= int(rng.integers(1, 256))
            reply = by_upload(guarded, bytes(damaged))
            assert reply.status_code == 200 or problem_of(reply).startswith("image_")
    assert is_well(guarded)


BODIES = {
    "nothing": b"",
    "half": b'{"query": [{"text": "a"',
    "brackets": b"[" * 100_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000,
    "braces": b'{"a":' * 50_000,
    "text": b'"query"',
    "list": b"[]",
    "null": b"null",
    "latin": b'{"query": [{"text": "\xe9"}]}',
    "bytes": bytes(range(256)),
    "digits": b'{"query": [{"text": "a"}], "k": ' + b"9" * 5000 + b"}",
}
FIELDS = {
    "a lone surrogate for a text": '"query": [{"text": "\\ud800"}]',
    "a lone surrogate for a column": 'QUERY, "columns": ["\\udfff"]',
    "a lone surrogate for a table": 'QUERY, "table": "\\udfff"',
    "a lone surrogate for a key": 'QUERY, "\\ud800": 1',
    "a lone surrogate for a cursor": 'QUERY, "cursor": "\\ud800"',
    "a lone surrogate to compare with": 'QUERY, "filter": {"column": "colour", "eq": "\\ud800"}',
    "NaN": '"query": [{"text": "a", "weight": NaN}]',
    "infinity": 'QUERY, "min_score": -Infinity',
    "more than a float": '"query": [{"text": "a", "weight": 1e400}]',
    "an integer that no float holds": f'"query": [{{"text": "a", "weight": {"9" * 400}}}]',
    "an integer of no width": f'QUERY, "k": {"9" * 400}',
    "a filter with a large integer": f'QUERY, "filter": {{"column": "colour", "eq": {"9" * 40}}}',
    "a filter with large integers": f'QUERY, "filter": {{"column": "colour", "in": ["red", {"9" * 40}]}}',
    "a filter with infinity": 'QUERY, "filter": {"column": "colour", "lt": Infinity}',
    "a deep filter": 'QUERY, "filter": ' + '{"not":' * 400 + "1" + "}" * 400,
    "a wide filter": 'QUERY, "filter": {"all": [' + ",".join(['{"any": []}'] * 65) + "]}",
    "a vector of infinity": '"query": [{"vector": [Infinity]}], "space": "x"',
    "wrong types": '"query": {"text": 1}, "k": [], "exact": "perhaps"',
    "a cursor of infinity": 'QUERY, "cursor": "' + in_base64(b'{"v": "1", "q": "1", "o": Infinity}') + '"',
    "a cursor of brackets": f'QUERY, "cursor": "{in_base64(b"[" * 700)}"',
    "a text that is too long": f'"query": [{{"text": "{"a" * 2001}"}}]',
    "a name that is too long": f'QUERY, "table": "{"a" * 100_000}"',
    "a key that is too long": f'QUERY, "{"a" * 100_000}": 1',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch", "/v1/embeddings", "/knn-service", "/metadata"])
def test_a_body_that_is_no_request_is_refused(guarded: Served, path: str, name: str):
    assert problem_of(guarded.client.post(path, content=BODIES[name], headers=JSON)) in (
        "bad_request",
        "invalid_request",
    )


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_holds_what_it_may_not_is_refused(guarded: Served, name: str):
    search = "{" + FIELDS[name].replace("QUERY", '"query": [{"text": "a"}]') + "}"
    alone = problem_of(guarded.client.post("/v1/search", content=search, headers=JSON))
    together = '{"searches": [{"query": [{"text": "a"}]}, ' + search + "]}"
    assert problem_of(guarded.client.post("/v1/search/batch", content=together, headers=JSON)) == alone
    assert alone in ("invalid_request", "bad_filter", "bad_cursor")


@pytest.mark.parametrize(
    "fields",
    [
        '"model": "\\ud800", "input": "a"',
        '"model": MODEL, "input": "\\ud800"',
        '"model": MODEL, "input": {"\\ud800": "a"}',
        '"model": MODEL, "input": [NaN]',
        '"model": MODEL, "input": [[1e400]]',
        '"model": MODEL, "input": ' + "[" * 500 + '"a"' + "]" * 500,
        '"model": MODEL, "input": "a", "dimensions": -1',
        '"model": MODEL, "input": "a", "dimensions": Infinity',
        '"model": MODEL, "input": "a", "encoding_format": "\\ud800"',
        '"model": MODEL, "input": "a", "encoding_format": {}',
        '"model": ["a"], "input": "a"',
    ],
)
def test_an_embedding_of_what_it_may_not_be_is_refused(guarded: Served, fields: str):
    content = "{" + fields.replace("MODEL", json.dumps(guarded.desk.first.table)) + "}"
    assert problem_of(guarded.client.post("/v1/embeddings", content=content, headers=JSON)) == "invalid_request"


def test_the_longest_word_is_answered_and_a_longer_one_refused(guarded: Served):
    """A tokenizer takes time by the square of it."""
    for length, status in ((2000, 200), (2001, 422)):
        word = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), length))
        query = {"query": [{"text": word}], "timeout_ms": 30_000}
        assert guarded.client.post("/v1/search", json=query).status_code == status
        assert guarded.client.get("/v1/search", params={"q": word}).status_code == status
        assert guarded.client.post("/knn-service", content=json.dumps({**KNN, "text": word})).status_code == status
        embeddings = {"model": guarded.desk.first.table, "input": [word]}
        assert guarded.client.post("/v1/embeddings", json=embeddings).status_code == status


def multipart(served: Served, content: bytes, content_type: str = "multipart/form-data; boundary=x") -> httpx.Response:
    return served.client.post("/v1/search/upload", content=content, headers={"Content-Type": content_type})


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def test_uploads_that_are_none_are_refused(guarded: Served):
    file, end = part("image", PNG, '; filename="a.png"'), b"--x--\r\n"
    assert multipart(guarded, file + end).status_code == 200
    for content in (
        b"",
        end,
        file[:50],
        part("image", b"text that is no file") + end,
        part("other", PNG, '; filename="a.png"') + end,
        file + part("options", b"{") + end,
        file + part("options", b"\xff\xfe") + end,
        file + part("options", b'{"k": 0}') + end,
        file + part("options", b"[" * 100_000) + end,
        file + part("options", b"{}", '; filename="options.json"') + end,
        file + b"".join(part(f"n{number}", b"") for number in range(1001)) + end,
    ):
        assert problem_of(multipart(guarded, content)) in ("bad_request", "invalid_request")
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x; charset=unicode_escape",
        "multipart/form-data; boundary=x; charset=undefined",
        "text/plain",
    ):
        content = file + part("options", b'{"table": "\\\\ud800"}') + end
        assert problem_of(multipart(guarded, content, content_type)) in ("bad_request", "invalid_request")
    assert is_well(guarded)


def test_what_a_form_calls_json_is_not_taken_for_it(guarded: Served):
    """A page of another site may post text without asking first, but not JSON."""
    content = json.dumps({"query": [{"text": "a"}]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for path in ("/v1/search", "/v1/embeddings"):
            reply = guarded.client.post(path, content=content, headers={"Content-Type": kind})
            assert problem_of(reply) == "invalid_request"


@contextlib.contextmanager
def recording(host: str = "127.0.0.1") -> Iterator[tuple[int, list[object]]]:
    """Listen on a port, and note who connects."""
    connected: list[object] = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                connected.append(peer)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], connected
        listener.shutdown(socket.SHUT_RDWR)


def fetching(serving: Callable[..., Served], demo_desk: Desk, store: str, *networks: str, urls: bool = True) -> Served:
    """Serve with images by URL, in a world where strangers point names wherever they like."""
    config = ServeConfig(store=store, image_urls=urls, max_image_bytes=MAX_IMAGE_BYTES)
    desk = Desk([demo_desk.first], config, Telemetry())
    allowed = tuple(ipaddress.ip_network(network) for network in networks)
    desk.web = Web(replace(desk.spec.web, networks=allowed), attackers)
    return serving(config, desk=desk)


def by_url(served: Served, url: str) -> list[httpx.Response]:
    """Ask every face for an image by URL."""
    faces = [
        served.client.post("/v1/search", json={"query": [{"image_url": url}], "k": 1}),
        served.client.post("/knn-service", content=json.dumps({**KNN, "image_url": url})),
    ]
    embeddings = {"model": served.desk.first.table, "input": [{"url": url}]}
    return [*faces, served.client.post("/v1/embeddings", json=embeddings)]


def test_no_address_inside_is_reached_by_any_face(serving: Callable[..., Served], demo_desk: Desk, demo_store: str):
    asked = fetching(serving, demo_desk, demo_store)
    with recording() as (port, connected):
        for url in [*HOSTILE, *MALFORMED, "s3://bucket/a", "data::http://127.0.0.1:{port}/", "simplecache::file:///a"]:
            for reply in by_url(asked, url.format(port=port)):
                assert problem_of(reply) in (
                    "image_blocked_address",
                    "image_fetch_denied",
                    "image_fetch_not_found",
                    "image_not_base64",  # embeddings take what is no http for base64
                )
                assert "169.254.169.254," not in reply.text
        for url in ("http://inside.example/", "http://metadata.example/"):
            assert "image_url: leads to no public address" in by_url(asked, url)[0].json()["detail"]
    assert connected == []
    assert is_well(asked)


def test_a_redirect_from_a_network_that_is_allowed_leads_nowhere_inside(
    serving: Callable[..., Served], demo_desk: Desk, demo_store: str
):
    asked = fetching(serving, demo_desk, demo_store, "127.0.0.1/32")
    with recording("127.0.0.2") as (inside, connected), redirecting() as port:
        for target in (f"127.0.0.2:{inside}", f"2130706434:{inside}", f"[::1]:{inside}", "169.254.169.254", "10.0.0.1"):
            for reply in by_url(asked, f"http://127.0.0.1:{port}/to/http:||{target}|latest"):
                assert problem_of(reply) == "image_blocked_address"
        for reply in by_url(asked, f"http://127.0.0.1:{port}/to/file:||etc|passwd"):
            assert problem_of(reply) == "image_fetch_denied"
        for path, code in (
            ("404", "image_fetch_not_found"),
            ("image", "image_not_an_image"),
            ("garbage", "image_fetch_failed"),
        ):
            assert {problem_of(reply) for reply in by_url(asked, f"http://127.0.0.1:{port}/{path}")} == {code}
        large = by_url(asked, f"http://127.0.0.1:{port}/large/{MAX_IMAGE_BYTES + 1}")
        assert {problem_of(reply) for reply in large} == {"image_fetch_too_large"}
        assert sum(Server.asked.values()) > 10
    assert connected == []


@contextlib.contextmanager
def redirecting() -> Iterator[int]:
    Server.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_nothing_is_fetched_unless_the_server_was_told_to(
    serving: Callable[..., Served], demo_desk: Desk, demo_store: str
):
    asked = fetching(serving, demo_desk, demo_store, "127.0.0.0/8", urls=False)
    with recording() as (port, connected):
        for url in (f"http://127.0.0.1:{port}/", "https://example.org/a.jpg"):
            assert {problem_of(reply) for reply in by_url(asked, url)} == {"image_urls_off"}
    assert connected == []


def test_paths_that_strangers_make_up_are_refused(guarded: Served):
    for path in (
        "/v1/rows/..%2f..%2fetc%2fpasswd",
        "/v1/rows/%00/thumbnail",
        "/v1/rows/%ff%fe/similar",
        "/v1/rows/" + "a" * 5000,
        "/../../etc/passwd",
        "/page.js/../index.html",
        "/v1/search?q=a&k=%ff",
        "/v1/search?q=a&filter=%7B",
        "/v1/search?q=a&filter=" + "%5B" * 3000,
        "/v1/search?q=a&min_score=nan",
        "/v1/search?q=a&table=%ff",
        "/v1/search",
        "/static/x",
        "/docs",
    ):
        assert problem_of(guarded.client.get(path)) in ("not_found", "unknown_id", "invalid_request", "unknown_table")


def test_hosts_that_are_none_are_refused(guarded: Served, serving: Callable[..., Served], demo_store: str):
    odd = (
        "[",
        "[::1",
        "a b",
        "evil.example",
        "{x}",
        "127.0.0.1@evil.example",
        "a/b",
        "\xff",
        ":",
        "::::",
        "a" * 10_000,
    )
    for host in odd:
        reply = guarded.client.get("/config.json", headers={"Host": host.encode("latin-1")})
        assert problem_of(reply) in ("unknown_host",)
    anywhere = serving(ServeConfig(store=demo_store, host="0.0.0.0"), desk=guarded.desk)
    for host in odd:
        reply = anywhere.client.get("/config.json", headers={"Host": host.encode("latin-1")})
        assert reply.status_code < 500


def test_what_goes_wrong_inside_is_not_told_outside(guarded: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(*anything: object) -> None:
        raise RuntimeError("in /secret/place")

    monkeypatch.setattr(guarded.desk, "found", broken)
    for reply in (
        guarded.client.post("/v1/search", json={"query": [{"text": "a"}]}),
        guarded.client.post("/knn-service", content=json.dumps({**KNN, "text": "a"})),
        by_upload(guarded, PNG),
    ):
        assert (reply.status_code, reply.json()["code"]) == (500, "internal")
        assert "secret" not in reply.text
        assert "Traceback" not in reply.text
        assert reply.headers["x-content-type-options"] == "nosniff"
    monkeypatch.undo()
    assert is_well(guarded)
