"""What was found, as JSON: every value that a column can hold in a form that every parser takes."""

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from starlette.responses import Response

from pipeline.serving.desk import Answered, Timings
from pipeline.serving.service import Service
from pipeline.serving.snapshot import Snapshot

PLAIN = (str, bool, int)
SCORE_DIGITS = 6  # float32 has seven


class Json(Response):
    """JSON without the spaces; values are `jsonable` already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:  # whatever JSON has
        """Write it."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def jsonable(value: Any) -> Any:  # whatever Arrow has, to whatever JSON has
    """Turn a value of a column into one of JSON: bytes into base64, what is not finite into null, the rest to text."""
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value.isoformat() if isinstance(value, date | time) else str(value)


def search_reply(answered: Answered) -> dict[str, Any]:
    """Shape what was found as requests.SearchReply."""
    hits: list[dict[str, Any]] = [
        {"id": hit.id, "score": round(hit.score, SCORE_DIGITS), "columns": jsonable(hit.columns)}
        for hit in answered.hits
    ]
    if answered.vectors is not None:
        for hit, vector in zip(hits, answered.vectors, strict=True):
            hit["vector"] = [float(value) for value in vector]
    return {
        "table": answered.service.table,
        "index_version": answered.snapshot.version,
        "space": answered.service.record.space,
        "hits": hits,
        "next_cursor": answered.next_cursor,
        "timings_ms": {name: round(value, 3) for name, value in answered.timings.steps.items()},
    }


def named(service: Service, snapshot: Snapshot | None, timings: Timings | None = None) -> dict[str, str]:
    """Give the headers that say what answered, and how long each step took."""
    headers = {"x-rayclip-space": service.record.space}
    if snapshot is not None:
        headers["x-rayclip-index-version"] = snapshot.version
    if timings is not None and timings.steps:
        headers["server-timing"] = ", ".join(f"{name};dur={value:.3f}" for name, value in timings.steps.items())
    return headers
