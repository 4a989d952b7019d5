"""Asking a table: once, over HTTP, or to measure what it finds."""

from typing import Literal, Self

from pydantic import AliasChoices, ByteSize, Field, PositiveInt, model_validator

from pipeline.config.base import TableConfig


class SearchConfig(TableConfig):
    """What every search needs."""

    model: str | None = None
    """Where the table's model is now, if it has moved; of any other space it is refused."""
    allow_pickle_weights: bool = False
    """As in the embed job."""


class QueryConfig(SearchConfig):
    """Search a published index from a shell: python -m jobs.query."""

    text: str | None = None
    """What to look for, in words."""
    image: str | None = None
    """What to look for, as a picture: a path or URL."""
    id: str | None = None
    """What to look for, as a row of the table: its _row_id."""
    k: int = Field(default=10, ge=1, le=10_000, validation_alias=AliasChoices("k"))
    """How many rows."""
    sheet: str | None = None
    """Write the pictures found to this PNG."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = [name for name in ("text", "image", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wanted exactly one of --text, --image, --id; got {given or 'none'}")
        return self


class ServeConfig(SearchConfig):
    """Answer queries over HTTP: python -m jobs.serve."""

    tables: tuple[str, ...] = ()
    """Several tables of the store, of one space or more; the first answers where a request names none."""
    host: str = "127.0.0.1"
    """The address to bind; any other than loopback needs api_key_file."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to bind."""
    api_key_file: str | None = None
    """A file of keys, one a line, 'admin' before those that may also read /metrics and have CURRENT looked at; all are
    valid, so that an old and a new one overlap. With it every route but /livez wants 'Authorization: Bearer <key>', or
    the key as the password that a browser asks for."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may be for; on loopback, loopback's own are always among them, and others are refused,
    since any page's script could have its own name lead here. (): elsewhere, any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API, as https://example.org."""
    replicas: PositiveInt = 1
    """Processes that answer; each holds the model, and maps the index."""
    max_replicas: PositiveInt | None = None
    """More of them while requests wait; None: no more."""
    max_waiting: PositiveInt = 64
    """Requests in one replica, past which others get 429 at once."""
    timeout_s: float = Field(default=10.0, gt=0.0, le=60.0)
    """What a request may take that names no time itself; then it gets 504."""
    searchers: PositiveInt = 1
    """Batches of queries that one replica searches at a time."""
    search_threads: PositiveInt | None = None
    """Threads of one search of a batch; None: all CPUs, shared among the searchers."""
    max_body_bytes: ByteSize = ByteSize(32 << 20)
    """Longer requests get 413, counted as they arrive."""
    max_image_bytes: ByteSize = ByteSize(20 << 20)
    """Of one image of a query, at most what the embed job took."""
    max_image_pixels: PositiveInt = 40_000_000
    """Likewise."""
    image_urls: bool = False
    """Fetch images that queries name by URL, from public addresses only, as the embed job does."""
    model_aliases: tuple[str, ...] = ()
    """Names under which POST /v1/embeddings also takes the first table's model, for clients that name another."""
    thumbnail_px: PositiveInt = 256
    """The longer edge of thumbnails made from the source."""
    poll_s: float = Field(default=5.0, gt=0.0)
    """Seconds between looks at which version is published."""
    allow_ha_proxy: bool = False
    """Start although RAY_SERVE_ENABLE_HA_PROXY makes Serve bind every address of the machine."""

    @model_validator(mode="after")
    def _tables_are_named_once(self) -> Self:
        if len(set(self.tables)) < len(self.tables) or (self.tables and self.table is not None):
            raise ValueError("tables: wanted each once, and no table beside them")
        if self.model is not None and len(self.tables) > 1:
            raise ValueError("model: of which of the tables? their models are where table.json says")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: wanted {self.replicas} at least")
        return self


class EvaluateConfig(SearchConfig):
    """Measure what a table finds, and hold it to floors: python -m jobs.evaluate."""

    golden: str | None = None
    """Parquet of golden queries: query_id, one of query_text, query_image and query_vector, relevant_id, and perhaps
    relevance_grade."""
    captions: str | None = None
    """A column of captions: pictures are found by them, and they by pictures."""
    k: int = Field(default=10, ge=1, le=10_000, validation_alias=AliasChoices("k"))
    """How many rows a query finds."""
    cohorts: tuple[str, ...] = ()
    """Columns of the golden queries to state results by."""
    floor: tuple[str, ...] = ()
    """What must be reached, as recall@10=0.9, or of captions text_to_image@5=0.7; else the status is 3."""
    floor_of: Literal["indexed", "exact"] = "indexed"
    """Whether floors hold for what the index finds, or for an exact search."""
    seed: int = 0
    """Of the intervals."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""

    @property
    def floors(self) -> dict[str, float]:
        """The floors by metric."""
        return {metric: float(value) for metric, _, value in (floor.partition("=") for floor in self.floor)}

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.golden is None and self.captions is None:
            raise ValueError("wanted --golden, --captions, or both")
        for floor in self.floor:
            metric, _, value = floor.partition("=")
            try:
                is_share = 0.0 <= float(value) <= 1.0
            except ValueError:
                is_share = False
            if "@" not in metric or not is_share:
                raise ValueError(f"floor: wanted metric@k=0.9 or the like, got {floor!r}")
        if len(self.floors) < len(self.floor):
            raise ValueError(f"floor: wanted each metric once, got {list(self.floor)}")
        return self
