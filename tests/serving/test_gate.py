import asyncio
import base64
from pathlib import Path

import httpx
import pytest

from pipeline.errors import InputError
from pipeline.serving.gate import Gate, GateSpec, Key, hosts_for, read_keys
from pipeline.serving.telemetry import Telemetry

HOST = {"host": "here"}


def keys(tmp_path: Path, text: str) -> tuple[Key, ...]:
    (tmp_path / "keys").write_text(text)
    return read_keys(str(tmp_path / "keys"))


class App:
    """An application that reads the body, and answers how long it was; it may be held back."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.seen = 0

    async def __call__(self, scope, receive, send) -> None:
        self.seen += 1
        await self.may.wait()
        length, more = 0, True
        while more:
            message = await receive()
            length, more = length + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"{scope['path']} {length}".encode()})


def gate(app: App, **fields: object) -> Gate:
    usual = {"keys": (), "allowed_hosts": (), "cors_origins": (), "max_body_bytes": 1000, "max_waiting": 2}
    return Gate(app, GateSpec(**{**usual, **fields}), Telemetry())


def client(asked: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=asked), base_url="http://here")


def test_every_reply_forbids_what_is_not_its_own():
    async def test() -> None:
        async with client(gate(App())) as asking:
            for reply in (await asking.get("/"), await asking.post("/x", content=b"0" * 2000)):
                assert "default-src 'none'" in reply.headers["content-security-policy"]
                assert reply.headers["x-content-type-options"] == "nosniff"
                assert reply.headers["referrer-policy"] == "no-referrer"

    asyncio.run(test())


def test_a_key_opens_every_route_and_none_opens_but_one(tmp_path: Path):
    known = keys(tmp_path, "old-key\nread new-key\nadmin an-admin\n")

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()

    async def test() -> None:
        async with client(gate(App(), keys=known)) as asking:
            for path in ("/", "/v1/info", "/openapi.json", "/readyz", "/livez/x", "/page.js"):
                reply = await asking.get(path)
                assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
                assert reply.headers["www-authenticate"].startswith("Basic ")
            assert (await asking.get("/livez")).status_code == 200
            for given in ("Bearer old-key", "bearer new-key", "Bearer an-admin", basic("old-key"), basic("an-admin")):
                assert (await asking.get("/v1/info", headers={"Authorization": given})).status_code == 200
            for given in (
                "old-key",
                "Bearer",
                "Bearer old-ke",
                "Bearer old-key2",
                "Basic old-key",
                basic(""),
                "Bearer read",
            ):
                assert (await asking.get("/v1/info", headers={"Authorization": given})).status_code == 401

    asyncio.run(test())


def test_what_only_admins_may_is_refused_to_readers(tmp_path: Path):
    known = keys(tmp_path, "reader\nadmin boss\n")

    async def test() -> None:
        async with client(gate(App(), keys=known)) as asking:
            for path in ("/metrics", "/v1/admin/refresh"):
                for given, status in (("reader", 403), ("boss", 200)):
                    reply = await asking.get(path, headers={"Authorization": f"Bearer {given}"})
                    assert reply.status_code == status

    asyncio.run(test())


def test_no_key_is_kept_in_clear(tmp_path: Path):
    assert "secret" not in repr(keys(tmp_path, "a-secret\nadmin secret-too\n"))


@pytest.mark.parametrize("text", ["", "\n\n", "one two\n", "admin\nread one two\n"])
def test_a_file_that_holds_no_keys_is_an_input_error(tmp_path: Path, text: str):
    with pytest.raises(InputError, match="wanted"):
        keys(tmp_path, text)


def test_on_loopback_only_loopbacks_own_names_are_answered():
    assert hosts_for("0.0.0.0", ()) == ()
    asked = gate(App(), allowed_hosts=hosts_for("127.0.0.1", ["Search.Example"]))

    async def test() -> None:
        async with client(asked) as asking:
            for host in ("127.0.0.1:8000", "localhost", "[::1]:8000", "search.example:80"):
                assert (await asking.get("/", headers={"Host": host})).status_code == 200
            for host in ("evil.example", "127.0.0.1.evil.example", "", "[::2]"):
                assert (await asking.get("/", headers={"Host": host})).status_code == 421

    asyncio.run(test())


def test_pages_of_other_sites_may_not_post():
    async def test() -> None:
        foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        async with client(gate(App(), cors_origins=("https://ours.example",))) as asking:
            assert (await asking.post("/v1/admin/refresh", headers=foreign)).status_code == 403
            assert (await asking.get("/", headers=foreign)).status_code == 200
            ours = {**foreign, "Origin": "https://ours.example"}
            assert (await asking.post("/v1/search", headers=ours)).status_code == 200
            assert (await asking.post("/v1/search", headers={"Sec-Fetch-Site": "same-origin"})).status_code == 200

    asyncio.run(test())


def test_a_body_is_counted_as_it_arrives():
    arrived = 0

    async def endless():
        nonlocal arrived
        for _ in range(100):
            arrived += 300
            yield b"0" * 300

    async def test() -> None:
        app = App()
        async with client(gate(app)) as asking:
            assert (await asking.post("/x", content=b"0" * 1000)).text == "/x 1000"
            told = await asking.post("/x", content=b"0" * 1001)
            assert (told.status_code, told.json()["code"], app.seen) == (413, "body_too_large", 1)
            with pytest.raises(Exception, match="1000 bytes"):  # what the application's handlers make a 413 of
                await asking.post("/x", content=endless())

    asyncio.run(test())


def test_past_so_many_at_work_others_are_refused_at_once_and_told_when_to_come_back():
    async def test() -> None:
        app = App()
        app.may.clear()
        asked = gate(app)
        async with client(asked) as asking:
            working = [asyncio.ensure_future(asking.get(f"/v1/search?q={i}")) for i in range(2)]
            while app.seen < 2:
                await asyncio.sleep(0)
            refused = await asking.get("/v1/search?q=x")
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after-ms"]) >= 50
            assert int(refused.headers["retry-after"]) >= 1
            waits = [int((await asking.get("/v1/search?q=x")).headers["retry-after-ms"]) for _ in range(20)]
            assert waits == sorted(waits)  # so that not all of them come back at once
            assert waits[-1] >= waits[0] + 100
            alive = asyncio.ensure_future(asking.get("/livez"))
            while app.seen < 3:
                await asyncio.sleep(0)
            app.may.set()
            assert [reply.status_code for reply in await asyncio.gather(*working, alive)] == [200] * 3
            assert (await asking.get("/v1/search?q=y")).status_code == 200

    asyncio.run(test())


def test_doubled_slashes_before_a_path_are_one():
    async def test() -> None:
        async with client(gate(App())) as asking:
            assert (await asking.post("http://here//knn-service", content=b"ab")).text == "/knn-service 2"
            assert (await asking.get("/v1/rows/s3%3A%2F%2Fa%2Fb")).text == "/v1/rows/s3://a/b 0"

    asyncio.run(test())
