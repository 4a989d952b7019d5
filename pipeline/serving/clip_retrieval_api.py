"""clip-retrieval's REST contract, so that its client and its front-end work against this endpoint.

Bodies are JSON whatever their Content-Type says, and some never say; numbers come as text; fields for models that are
not here (aesthetic, safety, violence, multilingual) are accepted and change nothing, as where they are not loaded.
Restated from its source: facts/clip-retrieval-api.md. An index is a table here, and ids are vector ids.
"""

import asyncio
import json
from itertools import chain, repeat
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from pipeline.indexing.index import MOST_FOUND
from pipeline.searching.ranking import one_of_each_group
from pipeline.serving.desk import FEW_ROWS, Desk, Timings
from pipeline.serving.native_api import PROBLEMS, TheDesk
from pipeline.serving.problems import QueryError
from pipeline.serving.replies import Json, jsonable, named
from pipeline.serving.requests import MAX_TEXT, MAX_WIDTH, image_bytes
from pipeline.serving.service import Service, Vector
from pipeline.serving.snapshot import Asked, Snapshot

DUPLICATES = 0.94  # clip-retrieval's threshold
MAX_IDS = 10_000  # of one /metadata
MAX_ID = (1 << 53) - 1  # up to where JavaScript's numbers are exact
URL_COLUMN = "url"


class KnnRequest(BaseModel):
    """A query; what its clients also send is ignored."""

    model_config = ConfigDict(extra="ignore")

    text: str | None = Field(default=None, max_length=MAX_TEXT)
    image: str | None = Field(default=None, description="base64")
    image_url: str | None = Field(default=None, max_length=4096)
    embedding_input: list[float] | None = Field(default=None, max_length=MAX_WIDTH)
    modality: str = Field(max_length=1000)
    num_images: int = Field(ge=0, le=MOST_FOUND, description="results that come with what was kept of them")
    num_result_ids: int | None = Field(default=None, ge=0, le=MOST_FOUND, description="results; null: num_images")
    indice_name: str | None = Field(max_length=1000)
    deduplicate: bool | None = False


class MetadataRequest(BaseModel):
    """Rows to describe."""

    model_config = ConfigDict(extra="ignore")

    ids: list[Annotated[int, Field(ge=-MAX_ID, le=MAX_ID)]] = Field(max_length=MAX_IDS)
    indice_name: str | None = Field(default=None, max_length=1000)


class KnnReply(BaseModel):
    """A row found, with what was kept of it where it is among the first."""

    model_config = ConfigDict(extra="allow")

    id: int
    similarity: float


class FrontConfig(BaseModel):
    """What the front-end asks for first."""

    defaultBackend: str  # noqa: N815 - its own spelling
    defaultIndex: str  # noqa: N815
    urlColumn: str  # noqa: N815


class Metadata(BaseModel):
    """What is known of a row."""

    id: int
    metadata: dict[str, Any]


router = APIRouter(responses=PROBLEMS)


def _documented(model: type[BaseModel]) -> dict[str, Any]:
    """Document a body that is read by hand."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.get("/indices-list")
async def indices_list(desk: TheDesk) -> list[str]:
    """Name the tables."""
    return list(desk.services)


@router.get("/config.json")
async def config(desk: TheDesk, request: Request) -> FrontConfig:
    """Tell the front-end where to ask: here."""
    return FrontConfig(
        defaultBackend=str(request.base_url).rstrip("/"), defaultIndex=desk.first.table, urlColumn=URL_COLUMN
    )


@router.post("/knn-service", response_model=list[KnnReply], openapi_extra=_documented(KnnRequest))
async def knn_service(request: Request, desk: TheDesk) -> Response:
    """Find rows: their ids and similarities, and of the first num_images what was kept of them."""
    asked = await _read(request, KnnRequest)
    service = _service(desk, asked.indice_name)
    snapshot = service.snapshot
    timings = Timings()
    async with desk.within():
        vector, norm = await _vector(desk, service, asked, timings)
        k = asked.num_images if asked.num_result_ids is None else asked.num_result_ids
        with timings.step("search"):
            scores, numbers = await desk.found(snapshot, vector, Asked(k))
        if asked.deduplicate:
            with timings.step("dedup"):
                kept = await asyncio.to_thread(_unlike, snapshot, numbers)
                scores, numbers = scores[kept], numbers[kept]
        with timings.step("columns"):
            described = await _described(desk, service, snapshot, numbers[: asked.num_images], request)
    found = [
        {**columns, "id": int(number), "similarity": float(score) * norm}  # of columns that are called so, ours count
        for score, number, columns in zip(scores, numbers, chain(described, repeat({})), strict=False)
    ]
    return Json(found, headers=named(service, snapshot, timings))


@router.post("/metadata", response_model=list[Metadata], openapi_extra=_documented(MetadataRequest))
async def metadata(request: Request, desk: TheDesk) -> Response:
    """Say what was kept of rows, in the order asked for; nothing of ids that are none."""
    asked = await _read(request, MetadataRequest)
    service = _service(desk, asked.indice_name)
    snapshot = service.snapshot
    known = [number for number in asked.ids if 0 <= number < snapshot.index.card.end]
    rows = iter(await _described(desk, service, snapshot, np.array(known, np.int64), request))
    found = [
        {"id": number, "metadata": next(rows) if 0 <= number < snapshot.index.card.end else {}} for number in asked.ids
    ]
    return Json(found, headers=named(service, snapshot))


async def _read(request: Request, model: type[Any]) -> Any:  # an instance of the model
    """Read a body as JSON, whatever it says it is."""
    try:
        return model.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise QueryError("invalid_request", f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise QueryError("bad_request", f"body: not JSON: {error}", 400) from error


def _service(desk: Desk, name: str | None) -> Service:
    return desk.service(name or None)


async def _vector(desk: Desk, service: Service, asked: KnnRequest, timings: Timings) -> tuple[Vector, float]:
    """Encode what was asked for, text before image before URL before vector; a vector keeps its norm."""
    if asked.text:
        return await desk.text_vector(service, asked.text, timings), 1.0
    if asked.image or asked.image_url:
        encoded = image_bytes(asked.image) if asked.image else await desk.fetch_image(str(asked.image_url), timings)
        return await desk.image_vector(service, encoded, timings), 1.0
    if asked.embedding_input:
        vector = service.check_vector(asked.embedding_input, None)
        norm = float(np.linalg.norm(np.asarray(asked.embedding_input, np.float64)))
        if norm > float(np.finfo(np.float32).max):  # similarities would be infinite
            raise QueryError("invalid_request", "embedding_input: longer than float32 holds")
        return vector, norm
    raise QueryError("invalid_request", "wanted one of text, image, image_url, embedding_input")


def _unlike(snapshot: Snapshot, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return one_of_each_group(snapshot.index.index.exact.take(numbers), DUPLICATES)


async def _described(
    desk: Desk, service: Service, snapshot: Snapshot, numbers: NDArray[np.int64], request: Request
) -> list[dict[str, Any]]:
    """Give the kept columns of rows; where none of them is a URL, that of the thumbnail, so that there is a picture."""
    start, end = f"{request.base_url}v1/rows/", "/thumbnail"
    if service is not desk.first:
        end += f"?table={quote(service.table, safe='')}"
    if len(numbers) <= FEW_ROWS:
        return _rows(snapshot, numbers, start, end)
    return await asyncio.to_thread(_rows, snapshot, numbers, start, end)


def _rows(snapshot: Snapshot, numbers: NDArray[np.int64], start: str, end: str) -> list[dict[str, Any]]:
    names = snapshot.names(None)
    rows = [jsonable(row) for row in snapshot.columns.rows(numbers, names)]
    if URL_COLUMN not in names:
        for row, row_id in zip(rows, snapshot.row_ids(numbers), strict=True):
            row[URL_COLUMN] = start + quote(row_id, safe="") + end
    return rows
