"""The application: every face of the endpoint behind one gate, and errors in one form. Knows nothing of Ray.

In: a desk. Out: ASGI. The page is three files of this package, read once; no route but these gives out files.
"""

import hashlib
import json
import logging
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from pipeline.serving import clip_retrieval_api, embeddings_api, native_api
from pipeline.serving.desk import Desk
from pipeline.serving.gate import Gate, GateSpec, problem_body, problem_headers
from pipeline.serving.problems import PROBLEM_JSON, Problem, QueryError

logger = logging.getLogger(__name__)

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_stalled",
    413: "body_too_large",
}
MAX_SAID = 1000  # characters of an error, which may quote what was sent


def build_api(desk: Desk, spec: GateSpec) -> ASGIApp:
    """Put the application together."""
    api = FastAPI(title="rayclip", version=version("rayclip"), docs_url=None, redoc_url=None)
    api.state.desk = desk
    for part in (native_api, embeddings_api, clip_retrieval_api):
        api.include_router(part.router)
    for path in PAGE:
        _add_page(api, path)
    _name_problems(api.openapi())
    api.add_exception_handler(QueryError, _query_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _internal)
    gate = Gate(api, spec, desk.telemetry)
    if not spec.cors_origins:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=spec.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("authorization", "content-type"),
        expose_headers=("server-timing", "retry-after", "retry-after-ms"),
    )


def _add_page(api: FastAPI, path: str) -> None:
    name, kind = PAGE[path]
    content = (files("pipeline.serving") / "page" / name).read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    async def page(request: Request) -> Response:
        headers = {"etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    api.add_api_route(path, page, include_in_schema=False)


def _name_problems(document: dict[str, Any]) -> None:
    """Say in the document, which FastAPI makes once and keeps, of what type errors are: it takes all for plain JSON."""
    for path in document["paths"].values():
        for operation in path.values():
            for status, reply in operation["responses"].items():
                if status >= "400":
                    reply["content"] = {PROBLEM_JSON: reply["content"]["application/json"]}


async def _query_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, QueryError):
        raise error
    return _reply(request, Problem(error.status, error.code, str(error)), error)


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    problems = error.errors()
    said = (f"{'.'.join(str(part) for part in e['loc'][1:]) or e['loc'][0]}: {e['msg']}" for e in problems[:5])
    if any(each["type"] == "json_invalid" for each in problems):
        return _reply(request, Problem(400, "bad_request", "body: not JSON"))
    return _reply(request, Problem(422, "invalid_request", "; ".join(said)))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = CODES.get(error.status_code, "http_error")
    return _reply(request, Problem(error.status_code, code, str(error.detail)), headers=dict(error.headers or {}))


async def _internal(request: Request, error: Exception) -> Response:
    logger.exception("path=%s failed", request.url.path, exc_info=error)
    return _reply(request, Problem(500, "internal", "something unexpected happened; the server's log has it"))


def _reply(
    request: Request, problem: Problem, error: QueryError | None = None, headers: dict[str, str] | None = None
) -> Response:
    body = problem_body(request.url.path, replace(problem, detail=problem.detail[:MAX_SAID]))
    headers = {**(headers or {}), **(problem_headers(error) if error is not None else {})}
    # Escaped: what is quoted may hold halves of surrogate pairs, which UTF-8 does not.
    return Response(json.dumps(body), problem.status, headers, media_type=PROBLEM_JSON)
