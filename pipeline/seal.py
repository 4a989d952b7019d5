"""Small JSON files that know whether they are whole: their last field is the digest of everything before it.

In: fields, and out: bytes, or the other way round. One changed bit anywhere is found. Files of the first format have
no seal, and are read as they are. Knows nothing of stores.
"""

import hashlib
import json
from typing import Any

FORMAT = 2  # of everything below a store's root; 1 had neither seals nor content hashes


def seal(fields: dict[str, Any]) -> bytes:  # JSON has every type
    """Write fields as JSON with their format in front and their seal behind."""
    body = json.dumps({"format": FORMAT, **fields}, indent=1).removesuffix("\n}").encode()
    return body + _tail(body)


def unseal(content: bytes) -> dict[str, Any]:  # as above
    """Read fields back, without format and seal.

    Raises:
        ValueError: this is no JSON object, is of a format that is not known here, or has been changed.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - of a file, not of a call
    if fields.pop("seal", None) is None:
        if "format" in fields:
            raise ValueError("its seal is missing")
        return fields
    body = content[: -len(_tail(b""))]
    if content != body + _tail(body):
        raise ValueError("it does not match its seal")
    if fields.pop("format") != FORMAT:
        raise ValueError("written by a newer rayclip")
    return fields


def _tail(body: bytes) -> bytes:
    return f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()
