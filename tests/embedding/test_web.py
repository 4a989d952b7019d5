"""Hostile URLs against real servers on loopback, with a resolver that answers as an attacker's would."""

import contextlib
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar
from urllib.parse import unquote

import pytest
import trustme

from pipeline.embedding import web
from pipeline.embedding.web import Web, WebSpec, checked_url, is_public
from pipeline.schema import RejectedRowError

PUBLIC = WebSpec(
    networks=(), max_bytes=1000, threads=4, threads_per_host=2, connect_timeout_s=1.0, timeout_s=2.0, retries=0
)
LOOPBACK = replace(PUBLIC, networks=(ipaddress.ip_network("127.0.0.0/8"),))


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by path; counts what it was asked for, and how many at once."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()
    at_once = 0
    most_at_once = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            Server.asked[self.path] += 1
            Server.at_once += 1
            Server.most_at_once = max(Server.most_at_once, Server.at_once)
        try:
            what, _, argument = self.path.strip("/").partition("/")
            getattr(self, f"_{what}", self._status)(argument or what)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                Server.at_once -= 1

    def _status(self, status: str, body: bytes = b"", **headers: str) -> None:
        self.send_response(int(status) if status.isdecimal() else 404)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _image(self, argument: str) -> None:
        self._status("200", b"image bytes")

    def _flaky(self, argument: str) -> None:
        if Server.asked[self.path] < 3:
            return self._status("503")
        return self._status("200", b"at last")

    def _to(self, argument: str) -> None:
        self._status("302", Location=unquote(argument).replace("|", "/"))

    def _loop(self, argument: str) -> None:
        self._status("302", Location=self.path)

    def _large(self, argument: str) -> None:
        self._status("200", b"x" * int(argument))

    def _endless(self, argument: str) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(10_000):
            self.wfile.write(b"x" * 100)
        self.close_connection = True

    def _drip(self, argument: str) -> None:
        self.send_response(200)
        if argument == "body":
            self.send_header("Content-Length", "500")
            self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x" if argument == "body" else b"X-A: b\r\n")
            self.wfile.flush()
            time.sleep(0.1)

    def _wait(self, argument: str) -> None:
        time.sleep(float(argument))
        self._status("200", b"late")

    def _garbage(self, argument: str) -> None:
        self.wfile.write(b"\x00\x01 not http at all\r\n\r\n")
        self.close_connection = True

    def _cut(self, argument: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(b"half")
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _headers(self, argument: str) -> None:
        self._status("200", "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    Server.asked.clear()
    Server.most_at_once = 0


def attackers(host: str, port: int) -> list[str]:
    """The system's own answers, and names that strangers point wherever they like."""
    names = {
        "public.example": ["93.184.215.14"],
        "inside.example": ["127.0.0.1"],
        "metadata.example": ["169.254.169.254"],
        "both.example": ["93.184.215.14", "10.0.0.7"],
        "six.example": ["::1"],
        "mapped.example": ["::ffff:127.0.0.1"],
        "scoped.example": ["fe80::1%eth0"],
        "nobody.example": [],
    }
    if host in names:
        return names[host]
    if host.endswith(".example"):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return web.resolve(host, port)


def refusal(url: str, spec: WebSpec = PUBLIC, resolve: web.Resolve = attackers) -> RejectedRowError:
    with pytest.raises(RejectedRowError) as reject:
        Web(spec, resolve).get(url)
    return reject.value


HOSTILE = [
    "http://127.0.0.1:{port}/image",
    "http://localhost:{port}/image",
    "http://localhost.:{port}/image",
    "http://LOCALHOST:{port}/image",
    "http://127.1:{port}/image",
    "http://127.0.1:{port}/image",
    "http://2130706433:{port}/image",  # decimal
    "http://0x7f000001:{port}/image",  # hexadecimal
    "http://0x7f.0.0.1:{port}/image",
    "http://0177.0.0.1:{port}/image",  # octal
    "http://017700000001:{port}/image",
    "http://127.000.000.001:{port}/image",
    "http://①②⑦.⓪.⓪.①:{port}/image",  # digits that IDNA makes plain
    "http://127。0。0。1:{port}/image",  # and full stops
    "http://0.0.0.0:{port}/image",
    "http://0:{port}/image",
    "http://[::]:{port}/image",
    "http://[::1]:{port}/image",
    "http://[0:0:0:0:0:0:0:1]:{port}/image",
    "http://[::ffff:127.0.0.1]:{port}/image",  # IPv6-mapped
    "http://[::ffff:7f00:1]:{port}/image",
    "http://[::127.0.0.1]:{port}/image",  # IPv4-compatible
    "http://[64:ff9b::7f00:1]:{port}/image",  # NAT64 of loopback
    "http://[2002:7f00:1::]:{port}/image",  # 6to4 of loopback
    "http://[2001:0:7f00:1::1]/image",  # Teredo
    "http://[fe80::1%25lo]:{port}/image",
    "http://[fc00::1]/image",
    "http://[fec0::1]/image",
    "http://[ff02::1]/image",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/image",
    "http://172.16.0.1/image",
    "http://192.168.1.1/image",
    "http://100.64.0.1/image",  # carriers' shared space
    "http://192.0.2.1/image",  # documentation
    "http://198.18.0.1/image",  # benchmarks
    "http://224.0.0.1/image",
    "http://240.0.0.1/image",
    "http://255.255.255.255/image",
    "http://inside.example:{port}/image",
    "http://metadata.example/latest/meta-data/",
    "http://both.example/image",  # one good address does not make up for a bad one
    "http://six.example:{port}/image",
    "http://mapped.example:{port}/image",
    "http://scoped.example/image",
    "http://public.example:22/image",
    "http://public.example:6379/image",
]
MALFORMED = [
    "http://public.example@127.0.0.1:{port}/image",
    "http://user:password@127.0.0.1:{port}/image",
    "http://127.0.0.1:{port}@public.example/image",
    "http://public.example\\@127.0.0.1:{port}/image",
    "http://127.0.0.1:{port}\\.public.example/image",
    "http://127.0.0.1:{port} /image",
    "http://public.example\r\nHost: 127.0.0.1/image",
    "http://public.example\t/image",
    "http:///image",
    "http://:{port}/image",
    "http://127.0.0.1:port/image",
    "http://127.0.0.1:99999/image",
    "http://[::1/image",
    "http://a..b/image",
    "ftp://127.0.0.1/image",
    "gopher://127.0.0.1:{port}/_GET",
    "file:///etc/passwd",
    "//127.0.0.1:{port}/image",
    "127.0.0.1:{port}/image",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_no_address_inside_is_reached_however_it_is_written(port: int, url: str):
    reject = refusal(url.format(port=port))
    assert reject.reason in ("blocked_address", "fetch_not_found", "fetch_denied")
    if not any(
        mark in url for mark in ("%25", "。", "①", "000.000", "0177", "localhost.:")
    ):  # which some resolvers do not know at all
        assert reject.reason == "blocked_address"
    assert not Server.asked


@pytest.mark.parametrize("url", MALFORMED)
def test_what_could_be_read_as_two_hosts_is_read_as_none(port: int, url: str):
    assert refusal(url.format(port=port)).reason == "fetch_denied"
    assert not Server.asked


@pytest.mark.parametrize(
    "target",
    [
        "http:||169.254.169.254|latest|",
        "http:||[::1]:{port}|image",
        "http:||2130706434:{port}|image",
        "http:||10.0.0.1",
    ],
)
def test_a_redirect_is_checked_as_the_first_url_was(port: int, target: str):
    """The first server is in a network that was declared; where it sends us is not."""
    only_first = replace(LOOPBACK, networks=(ipaddress.ip_network("127.0.0.1/32"),))
    reject = refusal(f"http://127.0.0.1:{port}/to/{target.format(port=port)}", only_first)
    assert reject.reason == "blocked_address"
    assert sum(Server.asked.values()) == 1


@pytest.mark.parametrize("target", ["file:||etc|passwd", "ftp:||127.0.0.1|x", "http:||user@127.0.0.1:{port}|image"])
def test_a_redirect_to_another_kind_of_url_is_denied(port: int, target: str):
    assert refusal(f"http://127.0.0.1:{port}/to/{target.format(port=port)}", LOOPBACK).reason == "fetch_denied"
    assert Server.asked["/image"] == 0


@pytest.mark.parametrize("target", ["http:||[bad", "||[::1", "http:||a..b|", "http:||x:99999|"])
def test_a_redirect_to_no_url_is_one_reject(port: int, target: str):
    assert refusal(f"http://127.0.0.1:{port}/to/{target}", LOOPBACK).reason == "fetch_denied"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "try again"), "fetch_failed"),
        (socket.gaierror(socket.EAI_FAIL, "server failure"), "fetch_failed"),
        (OSError(24, "too many open files"), "fetch_failed"),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), "fetch_not_found"),
    ],
)
def test_what_a_resolver_says_today_is_asked_again_unless_there_is_no_such_name(
    error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web, "FIRST_PAUSE_S", 0.01)
    asked = []

    def failing(host: str, port: int) -> list[str]:
        asked.append(host)
        raise error

    assert refusal("http://name.example/", replace(PUBLIC, retries=2), failing).reason == reason
    assert len(asked) == (1 if reason == "fetch_not_found" else 3)


def test_names_that_hang_do_not_starve_the_others(port: int):
    def some_hang(host: str, port: int) -> list[str]:
        if host.startswith("slow"):
            time.sleep(3)
        return ["127.0.0.1"]

    fetcher, got = Web(replace(LOOPBACK, threads=8, threads_per_host=8, timeout_s=1.0), some_hang), list[object]()

    def ask(host: str) -> None:
        try:
            got.append(fetcher.get(f"http://{host}.example:{port}/image"))
        except RejectedRowError as reject:
            got.append(reject.reason)

    for hosts in ([f"slow{i}" for i in range(8)], [f"fast{i}" for i in range(8)]):
        threads = [threading.Thread(target=ask, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == ["fetch_timeout"] * 8 + [b"image bytes"] * 8


def test_redirects_end(port: int):
    assert refusal(f"http://127.0.0.1:{port}/loop", LOOPBACK).reason == "fetch_failed"
    assert sum(Server.asked.values()) == web.MAX_REDIRECTS + 1


def test_a_name_that_changes_its_address_between_check_and_use_is_used_as_checked(port: int):
    """Rebinding: the first answer is good, all later ones are inside. There is no later one for one connection."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
    spec = replace(PUBLIC, networks=(ipaddress.ip_network("127.0.0.1/32"),))
    reached: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        reached.append(host)
        return next(answers)

    assert Web(spec, rebinding).get(f"http://rebind.example:{port}/image") == b"image bytes"
    assert reached == ["rebind.example"]
    assert refusal(f"http://rebind.example:{port}/image", spec, rebinding).reason == "blocked_address"
    assert Server.asked["/image"] == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::1", False),
        ("::8.8.8.8", False),
        ("2002:808:808::1", False),
        ("2001:db8::1", False),
        ("0.0.0.0", False),
        ("192.0.0.8", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("233.252.0.1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool):
    assert is_public(ipaddress.ip_address(address)) == public


def test_a_declared_network_is_reached_on_any_port_and_no_other(port: int):
    assert Web(LOOPBACK).get(f"http://127.0.0.1:{port}/image") == b"image bytes"
    elsewhere = replace(PUBLIC, networks=(ipaddress.ip_network("10.0.0.0/8"),))
    assert refusal(f"http://127.0.0.1:{port}/image", elsewhere).reason == "blocked_address"


def test_nothing_but_the_host_and_who_we_are_is_told(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    told = dict(
        line.split(": ", 1) for line in Web(LOOPBACK).get(f"http://127.0.0.1:{port}/headers").decode().split("\n")
    )
    assert told.keys() == {"Host", "User-Agent", "Accept"}
    assert told["Host"] == f"127.0.0.1:{port}"
    assert told["User-Agent"].startswith("rayclip/")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("404", "fetch_not_found"),
        ("410", "fetch_not_found"),
        ("401", "fetch_denied"),
        ("403", "fetch_denied"),
        ("451", "fetch_denied"),
        ("400", "fetch_failed"),
        ("204", "fetch_failed"),
        ("500", "fetch_failed"),
        ("garbage", "fetch_failed"),
        ("cut", "fetch_failed"),
        ("large/1001", "fetch_too_large"),
        ("endless", "fetch_too_large"),
        ("wait/3", "fetch_timeout"),
        ("drip/body", "fetch_timeout"),
        ("drip/headers", "fetch_timeout"),
    ],
)
def test_each_failure_has_its_name_and_its_time(port: int, path: str, reason: str):
    started = time.monotonic()
    reject = refusal(f"http://127.0.0.1:{port}/{path}", LOOPBACK)
    assert reject.reason == reason
    assert f"/{path}" in str(reject)
    assert time.monotonic() - started < LOOPBACK.timeout_s + 1


def test_a_body_of_just_the_limit_is_taken(port: int):
    assert len(Web(LOOPBACK).get(f"http://127.0.0.1:{port}/large/1000")) == 1000


def test_a_name_without_addresses_is_not_found(port: int):
    assert refusal("http://missing.example/image").reason == "fetch_not_found"
    assert refusal("http://nobody.example/image").reason == "fetch_not_found"


def test_a_resolver_that_hangs_is_waited_for_no_longer_than_the_limit():
    def hangs(host: str, port: int) -> list[str]:
        time.sleep(2)
        return ["127.0.0.1"]

    started = time.monotonic()
    assert refusal("http://slow.example/image", replace(PUBLIC, timeout_s=0.3), hangs).reason == "fetch_timeout"
    assert time.monotonic() - started < 1.5


def test_a_server_that_takes_no_connection_is_left_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # the queue is full; further ones are not answered
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            started = time.monotonic()
            reject = refusal(f"http://127.0.0.1:{port}/", replace(LOOPBACK, connect_timeout_s=0.3))
            assert reject.reason == "fetch_timeout"
            assert time.monotonic() - started < 1.5


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "FIRST_PAUSE_S", 0.01)
    spec = replace(LOOPBACK, retries=2)
    assert Web(spec).get(f"http://127.0.0.1:{port}/flaky") == b"at last"
    assert Server.asked["/flaky"] == 3
    reject = refusal(f"http://127.0.0.1:{port}/503", spec)
    assert reject.reason == "fetch_failed"
    assert "status 503, 3 tries" in str(reject)
    assert Server.asked["/503"] == 3
    refusal(f"http://127.0.0.1:{port}/404", spec)
    assert Server.asked["/404"] == 1


def test_one_host_is_asked_for_no_more_at_once_than_its_share(port: int):
    fetcher, got = Web(replace(LOOPBACK, threads=8)), list[bytes]()
    threads = [
        threading.Thread(target=lambda: got.append(fetcher.get(f"http://127.0.0.1:{port}/wait/0.15"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"late"] * 8
    assert Server.most_at_once == LOOPBACK.threads_per_host


def test_waiting_for_ones_turn_is_not_counted_as_fetching(port: int):
    spec, got = replace(LOOPBACK, threads=8, threads_per_host=1, timeout_s=0.6), list[bytes]()
    fetcher = Web(spec)
    threads = [
        threading.Thread(target=lambda: got.append(fetcher.get(f"http://127.0.0.1:{port}/wait/0.2"))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 5


def test_a_certificate_of_nobody_is_not_trusted():
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/image"
    assert refusal(url, LOOPBACK).reason == "fetch_failed"
    assert not Server.asked
    server.shutdown()


def test_the_target_is_sent_as_it_was_meant():
    url = checked_url("http://Example.COM/a b?q=ä".replace(" ", "%20"))
    assert (url.host, url.target) == (b"example.com", b"/a%20b?q=%C3%A4")
