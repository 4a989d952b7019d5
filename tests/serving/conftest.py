"""The endpoint's application behind a real HTTP server on loopback, without Ray: what most tests ask."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn

from pipeline.config import ServeConfig
from pipeline.serving.api import build_api
from pipeline.serving.app import gate_spec, open_services
from pipeline.serving.desk import Desk
from pipeline.serving.gate import Key
from pipeline.serving.telemetry import Telemetry
from pipeline.store import Store
from pipeline.table import find_table, read_record


class Served:
    """An application that answers, and the desk behind it."""

    def __init__(self, desk: Desk, client: httpx.Client) -> None:
        self.desk, self.client = desk, client
        self.url = str(client.base_url).rstrip("/")


def desk_of(config: ServeConfig) -> Desk:
    store = Store(config.store)
    tables = config.tables or (find_table(store, config.table),)
    models = [config.model or read_record(store, table).model for table in tables]
    desk = Desk(open_services(config, tables, models), config, Telemetry())
    desk.refresh()
    return desk


@contextmanager
def served(config: ServeConfig, keys: tuple[Key, ...] = (), desk: Desk | None = None) -> Iterator[Served]:
    """Serve a config for as long as the block lasts."""
    desk = desk or desk_of(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_api(desk, gate_spec(config, keys)), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
        yield Served(desk, client)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def demo_desk(demo_store: str) -> Desk:
    """The demo's table, loaded once for all servers of it."""
    return desk_of(ServeConfig(store=demo_store))


@pytest.fixture(scope="module")
def endpoint(demo_store: str, demo_desk: Desk) -> Iterator[Served]:
    """The demo, as it is served without any option."""
    with served(ServeConfig(store=demo_store), desk=demo_desk) as answering:
        yield answering


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Serve other configs within one test."""
    with ExitStack() as stack:
        yield lambda config, keys=(), desk=None: stack.enter_context(served(config, keys, desk))
