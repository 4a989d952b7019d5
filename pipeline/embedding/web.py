"""A URL in, the bytes behind it out: http and https, for URLs that strangers wrote.

A name is resolved once, every address it has is checked, and the connection goes to an address that was checked; so
does every redirect. Only public addresses, on ports 80 and 443, and networks that the user declared. No proxies,
cookies, credentials or compression. Bytes, time, redirects, tries and connections per host are bounded.
"""

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urljoin, urlsplit
from weakref import WeakValueDictionary

import httpcore

from pipeline.schema import Reason, RejectedRowError

PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 5
FIRST_PAUSE_S = 0.5  # before the second try; doubled before each further one
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)
NOT_FOUND, DENIED = (404, 410), (401, 402, 403, 407, 451)
LOOKUP_THREADS = 4  # for each thread that fetches: names that hang are given up, but hold theirs for a while
# EAI_NODATA is glibc's, and gone from POSIX
NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291: all that has been given out
# In IANA's registries of special addresses, but not in every Python's: protocol assignments with Teredo, 6to4 and its
# relays, documentation.
SPECIAL: tuple[IPv4Network | IPv6Network, ...] = (
    *(IPv4Network(block) for block in ("192.0.0.0/24", "192.88.99.0/24")),
    *(IPv6Network(block) for block in ("2001::/23", "2002::/16", "3fff::/20")),
)

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class WebSpec:
    """What may be fetched by http, and what one fetch may cost."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    max_bytes: int
    threads: int
    threads_per_host: int
    connect_timeout_s: float
    timeout_s: float
    retries: int


@dataclass(frozen=True)
class Redirect:
    """An answer that the bytes are elsewhere."""

    location: str  # as it was sent


class PassingError(Exception):
    """A failure that another try may not meet; ``after_s`` is how long the server asked to wait."""

    def __init__(self, detail: str, reason: Reason = Reason.FETCH_FAILED, after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.after_s = after_s


def resolve(host: str, port: int) -> list[str]:
    """Ask the system for all addresses of a name.

    Raises:
        socket.gaierror: it has none, or cannot be asked now.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Web:
    """Connections that are kept open, and the limits that hold over all of them. Safe to use from many threads."""

    def __init__(self, spec: WebSpec, resolve: Resolve = resolve) -> None:
        self.spec = spec
        self._clock = threading.local()  # .deadline of this thread's fetch
        self._slots: WeakValueDictionary[str, threading.BoundedSemaphore] = WeakValueDictionary()
        self._slots_lock = threading.Lock()
        self._pool = httpcore.ConnectionPool(
            max_connections=spec.threads,
            keepalive_expiry=30.0,
            network_backend=_CheckedNetwork(spec, resolve, self._clock),
        )

    def get(self, url: str) -> bytes:
        """Fetch what a URL names, within the limits.

        Raises:
            RejectedRowError: it may not be fetched, is not there, is too long, takes too long, or fails each time.
        """
        self._clock.deadline = time.monotonic() + self.spec.timeout_s
        for number in range(1, self.spec.retries + 2):
            try:
                return self._follow(url)
            except PassingError as error:
                pause_s = max(error.after_s, FIRST_PAUSE_S * 2 ** (number - 1) * random.uniform(0.5, 1.0))
                if number == self.spec.retries + 1 or time.monotonic() + pause_s > self._clock.deadline:
                    raise RejectedRowError(error.reason, f"{url}: {error}, {number} tries") from error
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = self._request(url)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found.location)
            except ValueError as error:
                raise RejectedRowError(Reason.FETCH_DENIED, f"{url}: redirects to {found.location!r}") from error
        raise RejectedRowError(Reason.FETCH_FAILED, f"{url}: more than {MAX_REDIRECTS} redirects")

    def _request(self, url: str) -> "bytes | Redirect":
        target = checked_url(url)
        with self._slot(target.host.decode()), _named_errors(url):
            timeouts = {
                "connect": self.spec.connect_timeout_s,
                "read": self.spec.timeout_s,
                "pool": self.spec.timeout_s,
            }
            headers = [("User-Agent", f"rayclip/{version('rayclip')}"), ("Accept", "image/*, */*;q=0.5")]
            with self._pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
                fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in REDIRECTS and b"location" in fields:
                    return Redirect(fields[b"location"])
                _check_status(url, response.status, fields)
                return self._body(url, response.iter_stream(), fields.get(b"content-length", ""))

    def _body(self, url: str, chunks: Iterable[bytes], announced: str) -> bytes:
        limit, body = self.spec.max_bytes, bytearray()
        too_large = RejectedRowError(Reason.FETCH_TOO_LARGE, f"{url}: more than {limit} bytes")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        for chunk in chunks:
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    @contextmanager
    def _slot(self, host: str) -> Iterator[None]:
        """Wait for one of the host's connections; waiting is not counted as fetching."""
        with self._slots_lock:
            slots = self._slots.setdefault(host, threading.BoundedSemaphore(self.spec.threads_per_host))
        waiting = time.monotonic()
        with slots:
            self._clock.deadline += time.monotonic() - waiting
            yield


def checked_url(url: str) -> httpcore.URL:
    """Take a URL apart once, so that nobody later reads another host out of it.

    Raises:
        RejectedRowError: it is not a plain http or https URL.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except (ValueError, UnicodeError) as error:
        raise RejectedRowError(Reason.FETCH_DENIED, f"{url!r}: not a URL: {error}") from error
    if not host or parts.scheme not in PORTS or any(character <= " " or character in "\\\x7f" for character in url):
        raise RejectedRowError(
            Reason.FETCH_DENIED, f"{url!r}: wanted http(s)://host/path without blanks or backslashes"
        )
    if "@" in parts.netloc:
        raise RejectedRowError(Reason.FETCH_DENIED, f"{url!r}: names a user; credentials are never sent")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    )
    return httpcore.URL(scheme=parts.scheme.encode(), host=host, port=port, target=target.encode())


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the internet's: not loopback, private, link-local, shared, multicast, reserved.

    Of an IPv6 address that only wraps an IPv4 one, the latter counts; tunnels (6to4, Teredo) count as private.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in block for block in SPECIAL)


def _check_status(url: str, status: int, fields: dict[bytes, str]) -> None:
    if status == 200:
        return
    if status in PASSING:
        after = fields.get(b"retry-after", "")
        raise PassingError(f"status {status}", after_s=float(after) if after.isdecimal() else 0.0)
    reason = (
        Reason.FETCH_NOT_FOUND
        if status in NOT_FOUND
        else Reason.FETCH_DENIED
        if status in DENIED
        else Reason.FETCH_FAILED
    )
    raise RejectedRowError(reason, f"{url}: status {status}")


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Say of httpcore's errors whether they are worth another try."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise PassingError(f"no answer in time ({type(error).__name__})", Reason.FETCH_TIMEOUT) from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, ssl.SSLError) as error:
        raise PassingError(f"{type(error).__name__}: {error}") from error
    except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol, httpcore.ProxyError) as error:
        raise RejectedRowError(Reason.FETCH_FAILED, f"{url}: {type(error).__name__}: {error}") from error


class _CheckedNetwork(httpcore.NetworkBackend):
    """What httpcore connects through: the one place where a name becomes an address."""

    def __init__(self, spec: WebSpec, resolve: Resolve, clock: threading.local) -> None:
        self.spec = spec
        self._resolve = resolve
        self._clock = clock
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS * spec.threads, thread_name_prefix="lookup")
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that takes the connection, after all of them were found good."""
        addresses = self._addresses(host, port)
        for address in addresses:
            self._check(host, port, address)
        for address in addresses[:-1]:
            try:
                return self._connect(address, port, timeout, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(addresses[-1], port, timeout, socket_options)

    def _addresses(self, host: str, port: int) -> list[Address]:
        lookup = self._lookups.submit(self._resolve, host, port)
        try:
            found = lookup.result(_left_s(self._clock))
            addresses = [ip_address(address.partition("%")[0]) for address in found]
        except TimeoutError as error:
            lookup.cancel()
            raise PassingError(f"{host}: its name was not resolved in time", Reason.FETCH_TIMEOUT) from error
        except socket.gaierror as error:
            if error.errno in NO_SUCH_NAME:
                raise RejectedRowError(Reason.FETCH_NOT_FOUND, f"{host}: {error}") from error
            raise PassingError(f"{host}: {error}") from error
        except OSError as error:  # of this machine: too many open files, and the like
            raise PassingError(f"{host}: {error}") from error
        except (ValueError, UnicodeError) as error:
            raise RejectedRowError(Reason.FETCH_DENIED, f"{host}: not a name that has addresses: {error}") from error
        if not addresses:
            raise RejectedRowError(Reason.FETCH_NOT_FOUND, f"{host}: has no address")
        return addresses

    def _check(self, host: str, port: int, address: Address) -> None:
        if any(address in network for network in self.spec.networks):
            return
        if not is_public(address):
            raise RejectedRowError(Reason.BLOCKED_ADDRESS, f"{host} is {address}, which is not a public address")
        if port not in PORTS.values():
            raise RejectedRowError(Reason.BLOCKED_ADDRESS, f"{host}: port {port}; public hosts are asked on 80 and 443")

    def _connect(
        self,
        address: Address,
        port: int,
        timeout: float | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.NetworkStream:
        timeout = min(timeout or self.spec.timeout_s, _left_s(self._clock))
        stream = self._sockets.connect_tcp(str(address), port, timeout, socket_options=socket_options)
        return _TimedStream(stream, self._clock)


class _TimedStream(httpcore.NetworkStream):
    """A connection on which every wait ends with the fetch's time: a server that drips cannot hold it for ever."""

    def __init__(self, stream: httpcore.NetworkStream, clock: threading.local) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(self._clock))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(self._clock))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left_s(self._clock)), self._clock)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _left_s(clock: threading.local) -> float:
    left = float(clock.deadline - time.monotonic())
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this fetch is over")
    return left
