"""The HTTP face of a service: a Ray Serve deployment with a FastAPI ingress.

A route validates, calls and shapes the reply, nothing more. Errors are problem+json (RFC 9457) with a stable code.
Keys, where there are any, are compared in constant time.
"""

import base64
import binascii
import hmac
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

import pipeline
from pipeline.config import ServeConfig
from pipeline.errors import InputError
from pipeline.indexing.publish import read_card, read_current
from pipeline.model import resolve
from pipeline.serving.service import Answer, QueryError, Service
from pipeline.store import Store
from pipeline.table import find_table, read_record

MAX_K = 1000
MAX_IMAGE_BYTES = 20 << 20  # of a query; the batch job takes larger ones
POLL_S = 5.0  # between looks at which version is published
LOOPBACK = ("127.0.0.1", "localhost", "::1")

logger = logging.getLogger(__name__)

api = FastAPI(title="rayclip", version=pipeline.__version__)


class SearchRequest(BaseModel):
    """A query: exactly one of text, image, vector and id."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, min_length=1, max_length=10_000)
    image: str | None = Field(default=None, max_length=MAX_IMAGE_BYTES * 4 // 3 + 4, description="base64")
    vector: list[float] | None = Field(default=None, max_length=65_536)
    id: str | None = None
    space: str | None = Field(default=None, description="of vector; refused if it is not the table's")
    k: int = Field(default=10, ge=1, le=MAX_K)

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = [name for name in ("text", "image", "vector", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wanted exactly one of text, image, vector, id; got {given or 'none'}")
        if self.vector is not None and self.space is None:
            raise ValueError("vector: wanted the space it is of, as GET /v1/info names it")
        return self


class Hit(BaseModel):
    """One row found; score is the inner product of unit vectors."""

    id: str
    score: float
    columns: dict[str, Any]


class SearchReply(BaseModel):
    """Rows found, best first."""

    index_version: str
    space: str
    hits: list[Hit]


class Info(BaseModel):
    """What is being served."""

    table: str
    index_version: str
    space: str
    model_id: str
    d: int
    ntotal: int
    factory: str
    recall_at_10: dict[str, float]
    columns: dict[str, str]


class Readiness(BaseModel):
    """Answered only when model and index are loaded and a row has found itself."""

    status: Literal["ready"] = "ready"
    index_version: str


class UnauthorizedError(Exception):
    """A request without a valid key where one is needed."""


# What the routes use stands before them: serve.ingress freezes the application, and all it refers to, at that line.


@api.exception_handler(QueryError)
async def _query_error(request: Request, error: QueryError) -> JSONResponse:
    return _problem(404 if error.code == "unknown_id" else 422, error.code, str(error))


@api.exception_handler(UnauthorizedError)
async def _unauthorized(request: Request, error: UnauthorizedError) -> JSONResponse:
    return _problem(401, "unauthorized", "wanted 'Authorization: Bearer <key>' with a valid key")


@api.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    problems = (f"{'.'.join(str(part) for part in e['loc'][1:])}: {e['msg']}" for e in error.errors())
    return _problem(422, "invalid_request", "; ".join(problems))


def _vector(service: Service, query: SearchRequest) -> Any:  # float32 (d,)
    if query.text is not None:
        return service.embed_text(query.text)
    if query.image is not None:
        return service.embed_image(_from_base64(query.image))
    if query.id is not None:
        return service.vector_of_row(query.id)
    return service.check_vector(query.vector or [], query.space)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise QueryError("image_not_base64", f"image: not base64: {error}") from error


def _reply(answer: Answer) -> SearchReply:
    hits = [
        Hit(id=hit.id, score=hit.score, columns={name: _for_json(value) for name, value in hit.columns.items()})
        for hit in answer.hits
    ]
    return SearchReply(index_version=answer.index_version, space=answer.space, hits=hits)


def _for_json(value: object) -> object:
    """Leave values to pydantic but for bytes, which it would take for UTF-8: those become base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _problem(status: int, code: str, detail: str) -> JSONResponse:
    content = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    return JSONResponse(content, status, media_type="application/problem+json")


@serve.ingress(api)
class Endpoint:
    """One replica: a service, and the routes that call it."""

    def __init__(self, config: ServeConfig, model: str, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.service = Service(config.store, config.table, model, allow_pickle_weights=config.allow_pickle_weights)
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def _follow(self) -> None:
        """Take over whatever version is published, for as long as the process lives."""
        while True:
            time.sleep(POLL_S)
            try:
                self.service.refresh()
            except Exception:  # whatever it is, the version that answers goes on, and the next look may be better
                logger.exception("index=%s cannot be taken over", self.service.table)

    @api.post("/v1/search")
    def search(self, query: SearchRequest, authorization: Annotated[str | None, Header()] = None) -> SearchReply:
        """Find the rows nearest to a text, an image, a vector or a row."""
        self._authorize(authorization)
        return _reply(self.service.search(_vector(self.service, query), query.k))

    @api.get("/v1/info")
    def info(self, authorization: Annotated[str | None, Header()] = None) -> Info:
        """Say which table, model and index answer."""
        self._authorize(authorization)
        card, record = self.service.index.card, self.service.record
        return Info(
            table=card.table,
            index_version=card.version,
            space=card.space,
            model_id=record.model_id,
            d=card.d,
            ntotal=card.ntotal,
            factory=card.factory,
            recall_at_10=card.recall_at_10,
            columns=record.kept,
        )

    @api.get("/livez")
    def livez(self) -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "alive"}

    @api.get("/readyz")
    def readyz(self, authorization: Annotated[str | None, Header()] = None) -> Readiness:
        """Say that queries can be answered, after asking one."""
        self._authorize(authorization)
        self.service.check()
        return Readiness(index_version=self.service.index.card.version)

    def _authorize(self, authorization: str | None) -> None:
        if not self.keys:
            return
        given = (authorization or "").encode()
        matches = [hmac.compare_digest(given, f"Bearer {key}".encode()) for key in self.keys]  # all, every time
        if not any(matches):
            raise UnauthorizedError


def checked_app(config: ServeConfig) -> serve.Application:
    """Check all that can be checked without Ray, and bind the application.

    Raises:
        InputError: a public address without keys, an unreadable key file, a port in use, no such table, no published
            index, or no model.
    """
    keys = _read_keys(config.api_key_file)
    if config.host not in LOOPBACK and not keys:
        raise InputError(f"host {config.host}: others can reach it; wanted --api_key_file, or a loopback address")
    app = build_app(config, keys)
    _check_port(config.host, config.port)
    return app


def start(app: serve.Application, host: str, port: int) -> None:
    """Start the endpoint on the Ray that is connected; returns once it is ready, and serves on.

    Raises:
        InputError: Serve runs on this cluster already.
    """
    if serve.status().proxies:  # its address would be kept, and ours ignored without a word
        raise InputError(
            "Ray Serve runs on this cluster already; shut it down first, or deploy to it with `serve deploy`"
        )
    serve.start(http_options={"host": host, "port": port})
    serve.run(app, name="rayclip", route_prefix="/")


def build_app(config: ServeConfig, keys: tuple[str, ...]) -> serve.Application:
    """Bind the deployment to its store, table, model and keys, after a look at what can be looked at without loading.

    Raises:
        InputError: no such table, no published index, or no model.
    """
    store = Store(config.store)
    table = find_table(store, config.table)
    record = read_record(store, table)
    version = read_current(store, table)
    if record is None or version is None:
        raise InputError(f"table {table}: no index is published; run python -m jobs.build_index")
    read_card(store, table, version)
    checkpoint = resolve(config.model or record.model, allow_pickle_weights=config.allow_pickle_weights)
    # A replica encodes one query at a time on all CPUs; more than a few at once would only wait inside it.
    options = serve.deployment(Endpoint).options(
        num_replicas=config.replicas, max_ongoing_requests=8, ray_actor_options={"num_cpus": 0.5}
    )
    app: serve.Application = options.bind(
        config.model_copy(update={"store": store.url, "table": table}), checkpoint.name, keys
    )
    return app


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error}") from error


def _read_keys(file: str | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        keys = tuple(line.strip() for line in Path(file).read_text().splitlines() if line.strip())
    except OSError as error:
        raise InputError(f"api_key_file {file}: {error}") from error
    if not keys:
        raise InputError(f"api_key_file {file}: wanted a key a line, got none")
    return keys
