"""The requests and replies of the native API, as its OpenAPI document has them."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.indexing.index import MOST_FOUND
from pipeline.searching.filter import Filter
from pipeline.searching.ranking import NEAR
from pipeline.serving.problems import QueryError

MAX_TERMS = 16
MAX_BATCH = 64
# Characters. Text towers read a few hundred at most, and OpenCLIP's tokenizer takes time by the square of a word's
# length: 4.1 s for one of 10,000 letters, 0.2 s for one of 2000 (2026-11-25).
MAX_TEXT = 2000
MAX_ROW_ID = 10_000
MAX_WIDTH = 65_536  # of a vector
DEFAULT_K = 20
MAX_TIMEOUT_MS = 60_000
# JSON knows no NaN, but Python's parser does.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=1000)]


class Model(BaseModel):
    """Unknown fields are refused: a misspelt one would be ignored without a word."""

    model_config = ConfigDict(extra="forbid")


def exactly_one(*names: str) -> dict[str, Any]:
    """Say in a schema what a validator checks: that one of these fields is given, and no other."""
    return {"oneOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]}


class Term(Model):
    """One part of a query: exactly one of text, image, image_url, id and vector, and how much it counts."""

    model_config = ConfigDict(json_schema_extra=exactly_one("text", "image", "image_url", "id", "vector"))

    text: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT)
    image: str | None = Field(default=None, min_length=1, description="an encoded image in base64, or a data URI")
    image_url: str | None = Field(
        default=None, min_length=1, max_length=4096, description="http or https; only where the server allows it"
    )
    id: str | None = Field(default=None, max_length=MAX_ROW_ID, description="of a row")
    vector: list[Finite] | None = Field(default=None, min_length=1, max_length=MAX_WIDTH)
    weight: float = Field(
        default=1.0, ge=-100.0, le=100.0, allow_inf_nan=False, description="negative: away from it; zero: not at all"
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("text", "image", "image_url", "id", "vector") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wanted exactly one of text, image, image_url, id, vector; got {given or 'none'}")
        return self


class Options(Model):
    """What is asked for, whatever the query."""

    table: Name | None = Field(default=None, description="null: the only one, or the first")
    space: Name | None = Field(default=None, description="that vectors of the query are of; another one is refused")
    k: int = Field(default=DEFAULT_K, ge=1, le=MOST_FOUND)
    cursor: str | None = Field(
        default=None, max_length=1000, description="next_cursor of a reply: the rows after it, of the same version"
    )
    min_score: Finite | None = Field(default=None, ge=-1.0, le=1.0)
    filter: Filter | None = Field(default=None, description="which rows may come up")
    columns: tuple[Name, ...] | None = Field(default=None, max_length=1000, description="null: all that were kept")
    exclude_query_ids: bool = Field(default=True, description="rows that the query names do not come up")
    dedup: Literal["none", "exact", "near"] = Field(
        default="none", description=f"exact: one row for each content; near: none with a cosine of {NEAR} to a better"
    )
    diversity: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="of maximal marginal relevance; then there is one page",
    )
    exact: bool = Field(default=False, description="compare with every vector")
    nprobe: int | None = Field(default=None, ge=1, le=1 << 20, description="lists to search; null: as tuned")
    with_vectors: bool = False
    timeout_ms: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_MS, description="null: the server's")


class SearchRequest(Options):
    """A search: terms that are put together, each made to norm 1, then weighted and added."""

    query: list[Term] = Field(min_length=1, max_length=MAX_TERMS)

    @model_validator(mode="after")
    def _vectors_have_a_space(self) -> Self:
        if self.space is None and any(term.vector is not None for term in self.query):
            raise ValueError("vector: wanted the space it is of, as GET /v1/info names it")
        return self


class BatchRequest(Model):
    """Several searches."""

    searches: list[SearchRequest] = Field(min_length=1, max_length=MAX_BATCH)


class HitReply(BaseModel):
    """One row found; score is the inner product of unit vectors."""

    id: str
    score: float
    columns: dict[str, Any]
    vector: list[float] | None = None


class SearchReply(BaseModel):
    """Rows found, best first; next_cursor where there may be more."""

    table: str
    index_version: str
    space: str
    hits: list[HitReply]
    next_cursor: str | None
    timings_ms: dict[str, float]


class BatchReply(BaseModel):
    """A reply to each search, in their order."""

    replies: list[SearchReply]


class RowReply(BaseModel):
    """One row of the table."""

    table: str
    index_version: str
    space: str
    id: str
    columns: dict[str, Any]
    source: str
    shard: str
    thumbnail: str


class TableInfo(BaseModel):
    """A table that is served."""

    table: str
    index_version: str
    space: str
    model_id: str
    d: int
    ntotal: int
    factory: str
    nprobe: int | None
    recall_at_10: dict[str, float]
    columns: dict[str, str]


class Limits(BaseModel):
    """What requests may have."""

    max_k: int
    max_batch: int
    max_terms: int
    max_body_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    image_urls: bool
    timeout_ms: int


class Info(BaseModel):
    """What is being served."""

    version: str
    tables: list[TableInfo]
    limits: Limits


class TableReadiness(BaseModel):
    """Which version of a table answers, and which published one does not, and why."""

    table: str
    index_version: str
    space: str
    refused: dict[str, str | None] | None


class Readiness(BaseModel):
    """Answered only when model and index are loaded and a row has found itself."""

    status: Literal["ready"] = "ready"
    tables: list[TableReadiness]


class ProblemReply(BaseModel):
    """An error (RFC 9457)."""

    type: str
    status: int
    code: str
    detail: str


def image_bytes(text: str) -> bytes:
    """Read base64, or a data URI of it.

    Raises:
        QueryError: it is neither.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise QueryError("image_not_base64", "image: a data URI that is not base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise QueryError("image_not_base64", f"image: not base64: {error}") from error
