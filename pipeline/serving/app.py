"""The Ray Serve deployment: replicas that answer, and how many requests each of them takes.

In: a `ServeConfig`. Out: an application that `jobs.serve` starts, or that `serve deploy` does. What a replica answers
with is loaded in it; keys travel as digests.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.metrics import Gauge
from starlette.types import ASGIApp

from pipeline.compute import HA_PROXY
from pipeline.config import ServeConfig
from pipeline.embedding.encode import Encode
from pipeline.errors import InputError
from pipeline.indexing.publish import read_card, read_current
from pipeline.model import resolve
from pipeline.serving.api import build_api
from pipeline.serving.desk import Desk
from pipeline.serving.gate import LOOPBACK, GateSpec, Key, hosts_for, read_keys
from pipeline.serving.service import Service
from pipeline.serving.telemetry import Telemetry
from pipeline.serving.watch import Watch
from pipeline.store import Store
from pipeline.table import find_table, read_record

logger = logging.getLogger(__name__)

# A replica refuses what is past max_waiting itself, and says when to come back; that costs it half of an answer. So
# Serve hands it a few more than that, keeps as few waiting, and has the proxy refuse the rest, to come back later: with
# twice max_waiting and a second's wait, 640 clients kept two cores so busy with refusals that 12 a second were answered
# (jobs/BENCHMARKS.md).
SPARE = 16
PROXY_RETRY_S = 5.0
SCALE_UP_AT = 0.5  # of max_waiting: requests under way in each replica, from which on there are more replicas
REQUEST_TIMEOUT_S = 120.0  # for all of a request, upload included: what holds a connection longer is cut off
MIRROR_S = 5.0  # of the 10 s after which Ray passes on what it was given
WATCH_S = 60.0  # a look takes some ten requests to the store, and nobody is called out within less than minutes


def open_services(config: ServeConfig, tables: Sequence[str], models: Sequence[str]) -> list[Service]:
    """Load tables; those of one space share their encoder.

    Raises:
        InputError: nothing published, or a model of another space than the index.
        IncompleteError: a file of an index is missing or damaged.
    """
    services: list[Service] = []
    encoders: dict[str, Encode] = {}
    for table, model in zip(tables, models, strict=True):
        space = _record_space(config.store, table)
        service = Service(
            config.store,
            table,
            model,
            allow_pickle_weights=config.allow_pickle_weights,
            encoder=encoders.get(space),
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
        )
        service.embed_texts(["a photo"])  # so that the first to ask does not wait for the tokenizer
        encoders[space] = service.encoder
        services.append(service)
    return services


@serve.ingress()
class Endpoint:
    """One replica: its tables, and the application that answers from them."""

    def __init__(
        self, config: ServeConfig, tables: tuple[str, ...], models: tuple[str, ...], keys: tuple[Key, ...]
    ) -> None:
        self.config, self.keys = config, keys
        self.desk = Desk(open_services(config, tables, models), config, Telemetry())
        self.desk.refresh()
        self.look = threading.Event()
        self.mirror = Mirror(self.desk.telemetry)
        self.watch = Watch(Store(config.store), tuple(self.desk.services), self.desk.telemetry)
        # Three threads: a store that hangs must not keep the mirror from saying so, nor slow looks a swap.
        for name, call in (("follow", self._follow), ("watch", self._watch), ("mirror", self._mirror)):
            threading.Thread(target=call, name=name, daemon=True).start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Give what answers, once everything is loaded."""
        return build_api(self.desk, gate_spec(self.config, self.keys))

    def reconfigure(self, user_config: Any) -> None:  # whatever somebody deploys
        """Look at once which versions are published. Never raises and never waits: Serve would end the application."""
        self.look.set()

    def _follow(self) -> None:
        """Take over whatever versions are published, for as long as the process lives."""
        while True:
            self.look.wait(self.config.poll_s)
            self.look.clear()
            _attempt(self.desk.refresh, "a published version cannot be taken over")

    def _watch(self) -> None:
        while True:
            _attempt(self.watch.look, "how the tables stand cannot be read")
            time.sleep(WATCH_S)

    def _mirror(self) -> None:
        while True:
            _attempt(self.mirror.send, "metrics cannot be handed to Ray")
            time.sleep(MIRROR_S)


class Mirror:
    """A replica's metrics on its node's metrics port, where Prometheus finds those of all replicas, and needs no key.

    All are gauges there, counters and buckets too: what a scrape reads is a number as it stands, whatever it is called.
    Ray passes each on once and forgets it 20 s later, so all are said again, and what is no more ends by itself.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.gauges: dict[str, Gauge] = {}

    def send(self) -> None:
        """Hand over all as it is now."""
        for (name, labels), value in self.telemetry.series().items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(name, "As in the endpoint's /metrics", tuple(label for label, _ in labels))
            self.gauges[name].set(value, dict(labels))


def _attempt(call: Callable[[], object], failure: str) -> None:
    """Make a call for a thread that goes on whatever comes of it: the next may go better."""
    try:
        call()
    except Exception:
        logger.exception(failure)


def gate_spec(config: ServeConfig, keys: tuple[Key, ...]) -> GateSpec:
    """Say what may pass."""
    return GateSpec(
        keys=keys,
        allowed_hosts=hosts_for(config.host, config.allowed_hosts),
        cors_origins=config.cors_origins,
        max_body_bytes=config.max_body_bytes,
        max_waiting=config.max_waiting,
    )


def checked_app(config: ServeConfig) -> serve.Application:
    """Check all that can be checked without Ray, and bind the application.

    Raises:
        InputError: a public address without keys, an unreadable key file, an unsafe environment, a port in use, no such
            table, no published index, or no model.
    """
    app = _checked(config)
    _check_port(config.host, config.port)
    return app


def endpoint(args: ServeConfig) -> serve.Application:
    """Bind the application that `serve deploy` or a RayService names: import_path pipeline.serving.app:endpoint.

    Serve makes the config of what the file has under ``args``; host and port are its own ``http_options``, and ``host``
    among the arguments says, as there, whom to expect.

    Raises:
        InputError: as checked_app, but for the port.
    """
    return _checked(args)


def start(app: serve.Application, host: str, port: int) -> None:
    """Start the endpoint on the Ray that is connected; returns once it is ready, and serves on.

    Raises:
        InputError: Serve runs on this cluster already.
    """
    if serve.status().proxies:  # its address would be kept, and ours ignored without a word
        raise InputError(
            "Ray Serve runs on this cluster already; shut it down first, or deploy to it with `serve deploy`"
        )
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S})
    serve.run(app, name="rayclip", route_prefix="/")


def build_app(config: ServeConfig, keys: tuple[Key, ...]) -> serve.Application:
    """Bind the deployment to its store, tables, models and keys, after a look at what can be looked at unloaded.

    Raises:
        InputError: no such table, no published index, or no model.
    """
    store = Store(config.store)
    tables = config.tables or (find_table(store, config.table),)
    models = tuple(_checked_model(config, store, table) for table in tables)
    options: dict[str, Any] = {
        "max_ongoing_requests": config.max_waiting + SPARE,
        "max_queued_requests": SPARE,
        "backpressure_config": {"status_code": 429, "retry_after_s": PROXY_RETRY_S},
        # A line for every request, formatted, written and carried to the driver, took a twentieth of a replica's time.
        "logging_config": {"enable_access_log": False},
        # Batches use every processor that the replica may; Ray only counts, so that a small machine has room for it.
        "ray_actor_options": {"num_cpus": 0.5},
    }
    if config.max_replicas is None:
        options["num_replicas"] = config.replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": config.replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": SCALE_UP_AT * config.max_waiting,
        }
    bound = config.model_copy(update={"store": store.url, "api_key_file": None})
    app: serve.Application = serve.deployment(Endpoint).options(**options).bind(bound, tables, models, keys)
    return app


def _checked(config: ServeConfig) -> serve.Application:
    keys = read_keys(config.api_key_file)
    if config.host not in LOOPBACK and not keys:
        raise InputError(f"host {config.host}: others can reach it; wanted --api_key_file, or a loopback address")
    _check_environment(config)
    return build_app(config, keys)


def _checked_model(config: ServeConfig, store: Store, table: str) -> str:
    """Name a table's model so that it resolves on any node, after checking that there is something to serve."""
    find_table(store, table)
    record, version = read_record(store, table), read_current(store, table)
    if record is None or version is None:
        raise InputError(f"table {table}: no index is published; run python -m jobs.build_index")
    read_card(store, table, version)
    return resolve(config.model or record.model, allow_pickle_weights=config.allow_pickle_weights).name


def _record_space(store_url: str, table: str) -> str:
    record = read_record(Store(store_url), table)
    return "" if record is None else record.space


def _check_environment(config: ServeConfig) -> None:
    if os.environ.get(HA_PROXY, "0") not in ("", "0") and not config.allow_ha_proxy:
        raise InputError(f"{HA_PROXY}: makes Serve bind every address, whatever --host; unset it, or --allow_ha_proxy")


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error}") from error
