"""The native API: a route validates, calls the desk, and shapes the reply; nothing more.

Routes are documented by their models (pipeline/serving/requests.py); errors are RFC 9457's, with stable codes.
"""

import asyncio
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Path, Query, Request, UploadFile
from pydantic import ValidationError
from starlette.responses import Response

from pipeline.indexing.index import MOST_FOUND
from pipeline.searching.filter import Filter
from pipeline.serving.desk import Answered, Desk
from pipeline.serving.problems import QueryError
from pipeline.serving.replies import Json, jsonable, named, search_reply
from pipeline.serving.requests import (
    DEFAULT_K,
    MAX_BATCH,
    MAX_TERMS,
    MAX_TEXT,
    BatchReply,
    BatchRequest,
    Info,
    Limits,
    Options,
    ProblemReply,
    Readiness,
    RowReply,
    SearchReply,
    SearchRequest,
    TableInfo,
    TableReadiness,
    Term,
)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemReply, "description": what}
    for status, what in {
        400: "Not a request that can be read",
        401: "No valid key",
        403: "The key of an admin is wanted, or the page is of another site",
        404: "No such row or table",
        410: "The cursor's version does not answer any more",
        408: "The body did not arrive",
        413: "Too long",
        421: "Another host was asked for",
        422: "A request that cannot be answered as it was put",
        429: "Too many requests: see retry-after-ms",
        503: "Not ready, or overloaded",
        504: "Not answered in time",
    }.items()
}
MAX_IN_URL = 4000  # characters, of up to 12 bytes each there; a server reads 64 KiB of a URL
FOREVER = "private, max-age=86400"

router = APIRouter(responses=PROBLEMS)


async def desk_of(request: Request) -> Desk:
    """Give the desk of the application."""
    desk: Desk = request.app.state.desk
    return desk


TheDesk = Annotated[Desk, Depends(desk_of)]
RowId = Annotated[str, Path(min_length=1, max_length=MAX_IN_URL)]
Table = Annotated[str | None, Query(max_length=1000)]
K = Annotated[int, Query(ge=1, le=MOST_FOUND)]


@router.post("/v1/search", response_model=SearchReply)
async def search(query: SearchRequest, desk: TheDesk) -> Response:
    """Find the rows nearest to weighted texts, images, vectors and rows."""
    return _reply(await desk.search(query))


@router.get("/v1/search", response_model=SearchReply)
async def search_by_text(
    desk: TheDesk,
    q: Annotated[str, Query(min_length=1, max_length=MAX_TEXT)],
    table: Table = None,
    k: K = DEFAULT_K,
    min_score: Annotated[float | None, Query(ge=-1.0, le=1.0, allow_inf_nan=False)] = None,
    filter: Annotated[str | None, Query(max_length=MAX_IN_URL, description="JSON, as in POST")] = None,  # noqa: A002
) -> Response:
    """Find the rows nearest to a text: for links."""
    wanted = None if filter is None else _read_filter(filter)
    request = SearchRequest(query=[Term(text=q)], table=table, k=k, min_score=min_score, filter=wanted)
    return _reply(await desk.search(request))


@router.post("/v1/search/upload", response_model=SearchReply)
async def search_by_upload(
    desk: TheDesk,
    image: UploadFile,
    options: Annotated[str, Form(max_length=100_000, description="JSON: what POST /v1/search takes but query")] = "{}",
) -> Response:
    """Find the rows nearest to a file."""
    try:
        chosen = Options.model_validate_json(options)
    except ValidationError as error:
        raise QueryError("invalid_request", f"options: {_first(error)}") from error
    encoded = await image.read()
    return _reply(await desk.search_by_image(encoded, chosen))


@router.post("/v1/search/batch", response_model=BatchReply)
async def search_batch(batch: BatchRequest, desk: TheDesk) -> Response:
    """Answer several searches at once, or none of them."""
    answers = await asyncio.gather(*(desk.search(each) for each in batch.searches))
    return Json({"replies": [search_reply(answer) for answer in answers]})


@router.get("/v1/rows/{id:path}/similar", response_model=SearchReply)
async def similar(desk: TheDesk, id: RowId, table: Table = None, k: K = DEFAULT_K) -> Response:  # noqa: A002
    """Find rows like a row."""
    return _reply(await desk.search(SearchRequest(table=table, k=k, query=[Term(id=id)])))


@router.get(
    "/v1/rows/{id:path}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}}, 304: {"description": "As it was"}},
)
async def thumbnail(desk: TheDesk, request: Request, id: RowId, table: Table = None) -> Response:  # noqa: A002
    """Show a row's picture, small."""
    service = desk.service(table)
    snapshot = service.snapshot
    number = snapshot.number_of(id)
    headers = {**named(service, snapshot), "etag": f'"{snapshot.version}-{number}"', "cache-control": FOREVER}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    async with desk.within():
        content = await desk.thumbnails.of(service, snapshot, number)
    return Response(content, media_type="image/webp", headers=headers)


@router.get("/v1/rows/{id:path}", response_model=RowReply)
async def row(desk: TheDesk, request: Request, id: RowId, table: Table = None) -> Response:  # noqa: A002
    """Say what is known of a row."""
    service = desk.service(table)
    snapshot = service.snapshot
    number = snapshot.number_of(id)
    (columns,) = snapshot.columns.rows([number], snapshot.names(None))
    receipt, _ = snapshot.index.place_of(number)
    found = {
        "table": service.table,
        "index_version": snapshot.version,
        "space": service.record.space,
        "id": id,
        "columns": jsonable(columns),
        "source": service.record.source,
        "shard": receipt.shard.rpartition("/")[2],  # where it lies is nobody's business out there
        "thumbnail": str(request.app.url_path_for("thumbnail", id=id)) + ("" if table is None else f"?table={table}"),
    }
    return Json(found, headers=named(service, snapshot))


@router.get("/v1/info")
async def info(desk: TheDesk) -> Info:
    """Say which tables, models and indexes answer, and what a request may have."""
    tables = []
    for service in desk.services.values():
        card, record = service.snapshot.index.card, service.record
        columns = {name: str(kind) for name, kind in service.snapshot.columns.types.items()}
        tables.append(
            TableInfo(
                table=service.table,
                index_version=card.version,
                space=card.space,
                model_id=record.model_id,
                d=card.d,
                ntotal=card.ntotal,
                factory=card.factory,
                nprobe=card.nprobe,
                recall_at_10=card.recall_at_10,
                columns=columns,
            )
        )
    limits = Limits(
        max_k=MOST_FOUND,
        max_batch=MAX_BATCH,
        max_terms=MAX_TERMS,
        max_body_bytes=desk.config.max_body_bytes,
        max_image_bytes=desk.first.limits.max_image_bytes,
        max_image_pixels=desk.first.limits.max_image_pixels,
        image_urls=desk.config.image_urls,
        timeout_ms=round(desk.config.timeout_s * 1e3),
    )
    return Info(version=version("rayclip"), tables=tables, limits=limits)


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(desk: TheDesk) -> Readiness:
    """Say that queries can be answered, after asking one of each table."""
    tables = []
    for service in desk.services.values():
        snapshot = service.snapshot
        await asyncio.to_thread(snapshot.check)
        why = service.refused
        refused = None if why is None else {"version": why.version, "why": why.why}
        tables.append(
            TableReadiness(
                table=service.table, index_version=snapshot.version, space=service.record.space, refused=refused
            )
        )
    return Readiness(tables=tables)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(desk: TheDesk) -> Response:
    """Give the counters of this replica to Prometheus."""
    return Response(desk.telemetry.text(), media_type="text/plain; version=0.0.4")


@router.post("/v1/admin/refresh")
async def refresh(desk: TheDesk) -> Readiness:
    """Look now at which versions are published."""
    await asyncio.to_thread(desk.refresh)
    return await readyz(desk)


def _reply(answered: Answered) -> Response:
    return Json(search_reply(answered), headers=named(answered.service, answered.snapshot, answered.timings))


def _read_filter(text: str) -> Filter:
    try:
        return Filter.model_validate_json(text)
    except ValidationError as error:
        raise QueryError("invalid_request", f"filter: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
