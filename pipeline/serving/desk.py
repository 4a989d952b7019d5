"""Requests taken from an event loop, and answered by threads: terms encoded and queries searched in batches.

In: what is asked, in whatever API's words. Out: vectors, and rows found with the snapshot they were found in. Every
face of the endpoint calls this, and nothing behind it. Knows nothing of HTTP or of Ray.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FetchConfig, ServeConfig
from pipeline.embedding.fetch import fetch, fetch_spec
from pipeline.embedding.web import Web
from pipeline.indexing.exact import NO_ID
from pipeline.indexing.index import MOST_FOUND
from pipeline.machine import available_cpus
from pipeline.schema import Reason, RejectedRowError
from pipeline.searching.index import use_threads
from pipeline.serving.batching import Batcher
from pipeline.serving.cursor import identity, read_offset, write_cursor
from pipeline.serving.picking import picked
from pipeline.serving.problems import QueryError
from pipeline.serving.requests import Options, SearchRequest, Term, image_bytes
from pipeline.serving.service import Service, Vector, directed
from pipeline.serving.snapshot import Asked, Hit, Snapshot
from pipeline.serving.telemetry import Telemetry
from pipeline.serving.thumbnails import Thumbnails

TEXTS_AT_ONCE, IMAGES_AT_ONCE, QUERIES_AT_ONCE = 64, 16, 64
FETCHES_AT_ONCE = 8
FETCH_S = 5.0  # for one image by URL, redirects and tries again included
# Rows asked for are rounded up to these times a power of two, so that requests of about as many are searched together.
ROUNDED_FROM, ROUNDED_TO = 10, 160  # more rows cost more than searching together wins
SPARE_FACTOR, SPARE_ROWS = 3, 50  # candidates for each row wanted where some will be left out, and beside them
FEW_ROWS = 200  # whose columns are looked up in less time than handing over to a thread takes
NOTHING = np.empty(0, np.int64)


@dataclass
class Timings:
    """Milliseconds by step, of one request."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; several of one name add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + (time.perf_counter() - began) * 1e3


@dataclass(frozen=True)
class Answered:
    """Rows found, best first, and where the next ones are."""

    service: Service
    snapshot: Snapshot
    hits: tuple[Hit, ...]
    vectors: NDArray[np.float32] | None  # of the hits, where they were asked for
    next_cursor: str | None
    timings: Timings


Query = tuple[Snapshot, Vector, Asked]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # D and I of one query (k,)


class Desk:
    """All tables that are served."""

    def __init__(self, services: Sequence[Service], config: ServeConfig, telemetry: Telemetry) -> None:
        self.services = {service.table: service for service in services}
        self.config = config
        self.telemetry = telemetry
        self.first = services[0]
        each = config.search_threads or max(1, available_cpus() // config.searchers)
        self.texts: dict[int, Batcher[str, Vector]] = {}
        self.images: dict[str, Batcher[bytes, Vector]] = {}
        for service in services:  # tables of one encoder have their texts encoded together
            texts, images = (partial(call, normalised=False) for call in (service.embed_texts, service.embed_images))
            self.texts.setdefault(id(service.encoder), Batcher("texts", texts, most=TEXTS_AT_ONCE))
            self.images[service.table] = Batcher("images", images, most=IMAGES_AT_ONCE)
        self.queries: Batcher[Query, Found] = Batcher(
            "search",
            _searched,
            most=QUERIES_AT_ONCE,
            key=lambda query: (id(query[0]), query[2]),
            threads=config.searchers,
            prepare=lambda: use_threads(each),
        )
        self.spec = fetch_spec(
            FetchConfig(schemes=("http", "https"), timeout_s=FETCH_S, retries=0), config.max_image_bytes
        )
        self.web = Web(self.spec.web)
        self.fetches: Batcher[str, bytes] = Batcher("fetch", self._fetched, most=1, threads=FETCHES_AT_ONCE)
        self.thumbnails = Thumbnails(config.thumbnail_px)

    def service(self, table: str | None) -> Service:
        """Find a table; the first where none is named.

        Raises:
            QueryError: it is not served.
        """
        if table is None:
            return self.first
        found = self.services.get(table)
        if found is None:
            raise QueryError("unknown_table", f"table {table!r}: served are {', '.join(self.services)}", 404)
        return found

    @asynccontextmanager
    async def within(self, timeout_ms: int | None = None) -> AsyncIterator[None]:
        """Give up what takes longer than a request may.

        Raises:
            QueryError: it did.
        """
        seconds = self.config.timeout_s if timeout_ms is None else timeout_ms / 1e3
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise QueryError("timeout", f"not answered within {seconds * 1e3:.0f} ms", 504) from error

    async def search(self, request: SearchRequest) -> Answered:
        """Answer a query.

        Raises:
            QueryError: it cannot be answered.
        """
        timings = Timings()
        async with self.within(request.timeout_ms):
            service = self.service(request.table)
            snapshot = service.snapshot
            vector = await self._vector(service, snapshot, request, timings)
            return await self._answer(service, snapshot, vector, request, identity(request), timings)

    async def search_by_image(self, encoded: bytes, options: Options) -> Answered:
        """Answer a query by an image that came as it is.

        Raises:
            QueryError: it cannot be answered.
        """
        timings = Timings()
        async with self.within(options.timeout_ms):
            service = self.service(options.table)
            snapshot = service.snapshot
            vector = await self.image_vector(service, encoded, timings)
            return await self._answer(service, snapshot, vector, options, identity(options, encoded), timings)

    async def _answer(
        self, service: Service, snapshot: Snapshot, vector: Vector, request: Options, query: str, timings: Timings
    ) -> Answered:
        offset = read_offset(request.cursor, snapshot.version, query)
        if offset + request.k > MOST_FOUND:
            raise QueryError("too_deep", f"k: wanted at most {MOST_FOUND} rows in all, got {offset} + {request.k}")
        with timings.step("search"):
            scores, numbers = await self._ranked(snapshot, vector, request, offset + request.k)
        is_more = len(numbers) == offset + request.k < min(MOST_FOUND, snapshot.index.card.ntotal)
        is_more &= not request.diversity  # of which rows the choice is made depends on how many: pages would overlap
        scores, numbers = scores[offset:], numbers[offset:]
        with timings.step("columns"):
            hits = await self._hits(snapshot, scores, numbers, request.columns)
            vectors = snapshot.index.index.exact.take(numbers) if request.with_vectors else None
        self.telemetry.steps(timings.steps)
        cursor = write_cursor(snapshot.version, query, offset + request.k) if is_more else None
        return Answered(service, snapshot, hits, vectors, cursor, timings)

    def refresh(self) -> None:
        """Take over whatever versions are published now, and note what answers."""
        for service in self.services.values():
            if service.refresh():
                self.telemetry.swaps.labels(service.table).inc()
            self.telemetry.serves(service.table, service.snapshot.version, is_refusing=service.refused is not None)

    async def text_vector(self, service: Service, text: str, timings: Timings, *, normalised: bool = True) -> Vector:
        """Encode a text: (d,), of norm 1 unless the model's own is wanted.

        Raises:
            QueryError: it cannot be.
        """
        with timings.step("text"):
            vector = await self.texts[id(service.encoder)](text)
        return directed(vector, "text") if normalised else vector

    async def image_vector(
        self, service: Service, encoded: bytes, timings: Timings, *, normalised: bool = True
    ) -> Vector:
        """Decode and encode an image: (d,) likewise.

        Raises:
            QueryError: it cannot be.
        """
        with timings.step("image"):
            vector = await self.images[service.table](encoded)
        return directed(vector, "image") if normalised else vector

    async def fetch_image(self, url: str, timings: Timings) -> bytes:
        """Fetch an image that a URL names, if that is allowed at all.

        Raises:
            QueryError: it is not, or the URL leads to what may not be fetched or is not there.
        """
        if not self.config.image_urls:
            raise QueryError("image_urls_off", "image_url: this server fetches none; send the image itself")
        with timings.step("fetch"):
            return await self.fetches(url)

    async def found(self, snapshot: Snapshot, vector: Vector, asked: Asked) -> Found:
        """Search for one query, together with others that are waiting: D and I (k,), NO_ID left out."""
        rounded = ROUNDED_FROM
        while rounded < asked.k:
            rounded = 2 * rounded if asked.k <= ROUNDED_TO else asked.k
        k = max(1, min(rounded, snapshot.index.card.ntotal, MOST_FOUND))
        scores, numbers = await self.queries((snapshot, vector, replace(asked, k=k)))
        there = int((numbers[: asked.k] != NO_ID).sum())
        return scores[:there], numbers[:there]

    async def _vector(self, service: Service, snapshot: Snapshot, request: SearchRequest, timings: Timings) -> Vector:
        """Put the terms of a query together: each of norm 1, weighted, added, of norm 1 again."""

        async def of(term: Term) -> Vector:
            if term.text is not None:
                return await self.text_vector(service, term.text, timings)
            if term.vector is not None:
                return service.check_vector(term.vector, request.space)
            if term.id is not None:
                return snapshot.index.vector(snapshot.number_of(term.id))
            if term.image is not None:
                encoded = image_bytes(term.image)
            else:
                encoded = await self.fetch_image(term.image_url or "", timings)
            return await self.image_vector(service, encoded, timings)

        if len(request.query) == 1 and request.query[0].weight > 0:
            return await of(request.query[0])
        vectors = await asyncio.gather(*(of(term) for term in request.query))
        together = sum(
            (term.weight * vector.astype(np.float64) for term, vector in zip(request.query, vectors, strict=True)),
            np.zeros(service.record.d),
        )
        # What is left of terms that cancel each other out is noise, and finds anything.
        if float(np.linalg.norm(together)) < 1e-6 * sum(abs(term.weight) for term in request.query):
            raise QueryError("no_direction", "query: its terms cancel each other out")
        return directed(together, "query")

    async def _ranked(self, snapshot: Snapshot, vector: Vector, request: Options, wanted: int) -> Found:
        """Give the rows that are wanted, best first, without those that shall not come up."""
        terms = request.query if isinstance(request, SearchRequest) and request.exclude_query_ids else []
        ids = [term.id for term in terms if term.id is not None]
        own = np.array([snapshot.number_of(row_id) for row_id in ids], np.int64)
        picks = request.dedup != "none" or request.diversity > 0
        k = SPARE_FACTOR * wanted + SPARE_ROWS if picks else wanted
        asked = Asked(min(k + len(own), MOST_FOUND), request.nprobe, request.exact, request.filter)
        scores, numbers = await self.found(snapshot, vector, asked)
        kept = ~np.isin(numbers, own)
        if request.min_score is not None:
            kept &= scores >= request.min_score
        scores, numbers = scores[kept], numbers[kept]
        if picks:
            places = await asyncio.to_thread(picked, snapshot, scores, numbers, request, wanted)
            scores, numbers = scores[places], numbers[places]
        return scores[:wanted], numbers[:wanted]

    async def _hits(
        self, snapshot: Snapshot, scores: NDArray[np.float32], numbers: NDArray[np.int64], names: Sequence[str] | None
    ) -> tuple[Hit, ...]:
        if len(numbers) <= FEW_ROWS:
            return snapshot.hits(scores, numbers, names)
        return await asyncio.to_thread(snapshot.hits, scores, numbers, names)

    def _fetched(self, urls: list[str]) -> list[bytes | Exception]:
        try:
            return [fetch(urls[0], self.spec, self.web)]
        except RejectedRowError as error:
            # Where a name leads inside is nobody's business out there.
            said = "image_url: leads to no public address" if error.reason is Reason.BLOCKED_ADDRESS else str(error)
            return [QueryError(f"image_{error.reason}", said)]


def _searched(queries: list[Query]) -> list[Found | Exception]:
    """Search for queries that agree in all but their vectors."""
    snapshot, _, asked = queries[0]
    scores, numbers = snapshot.search(np.stack([vector for _, vector, _ in queries]), asked)
    return list(zip(scores, numbers, strict=True))
