"""Where a next page starts: an offset into what one query finds in one version, as text that clients hand back."""

import base64
import binascii
import hashlib
import json

from pydantic import BaseModel

from pipeline.serving.problems import QueryError


def identity(query: BaseModel, content: bytes = b"") -> str:
    """Digest all of a query but where its page starts and how long it may take, and a file that came beside it."""
    text = query.model_dump_json(exclude={"cursor", "timeout_ms"}, by_alias=True)
    return hashlib.sha256(text.encode() + hashlib.sha256(content).digest()).hexdigest()[:16]


def write_cursor(version: str, query: str, offset: int) -> str:
    """Name the rows from an offset on, of what a query of this identity finds."""
    fields = {"v": version, "q": query, "o": offset}
    return base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode()


def read_offset(cursor: str | None, version: str, query: str) -> int:
    """Give the offset that a cursor names; 0 without one.

    Raises:
        QueryError: it is none of ours, of another query, or of a version that does not answer any more.
    """
    if cursor is None:
        return 0
    try:
        fields = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        pinned, digest, offset = str(fields["v"]), str(fields["q"]), int(fields["o"])
    except (binascii.Error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise QueryError("bad_cursor", "cursor: not one that a reply gave") from error
    if digest != query or offset < 1:
        raise QueryError("bad_cursor", "cursor: of another query; hand it back with the query it came from")
    if pinned != version:
        raise QueryError(
            "cursor_expired", f"cursor: of version {pinned}, now {version} answers; ask again without it", 410
        )
    return offset
