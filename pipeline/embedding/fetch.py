"""References in, encoded bytes out: rows that only name their image get its bytes, or a reason.

One missing file is one reject. What a reference may be is limited: schemes from a list, http and https not among them
by default. Knows nothing of Ray.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from fsspec.utils import get_protocol

from pipeline import schema
from pipeline.errors import InputError
from pipeline.schema import Reason
from pipeline.store import STORE_ERRORS, filesystem_of


@dataclass(frozen=True)
class FetchSpec:
    """What may be fetched, and how much at a time."""

    schemes: tuple[str, ...]
    threads: int
    max_image_bytes: int


class RejectedReferenceError(Exception):
    """One reference that gives no bytes."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Fetch:
    """The step: a batch with references becomes a batch with bytes."""

    def __init__(self, spec: FetchSpec) -> None:
        self.spec = spec

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Fill in the image of every row that has a reference and neither bytes nor a reason."""
        images: list[bytes | None] = batch[schema.IMAGE].to_pylist()
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        references: list[str | None] = batch[schema.REFERENCE].to_pylist()
        rows: list[int] = batch[schema.ROW].to_pylist()
        shards: list[str] = batch[schema.SHARD].to_pylist()
        wanted = [i for i, url in enumerate(references) if url is not None and reasons[i] is None]
        with ThreadPoolExecutor(self.spec.threads) as pool:
            fetched = pool.map(lambda i: self._fetch(str(references[i]), shards[i]), wanted)
            for i, found in zip(wanted, fetched, strict=True):
                if isinstance(found, bytes):
                    images[i] = found
                else:
                    reasons[i] = found.reason.value
                    errors[i] = schema.error_text(found.reason, rows[i], str(found))
        new = {schema.IMAGE: pa.array(images, pa.large_binary()), **schema.outcome_columns(reasons, errors)}
        return schema.replace_columns(batch, [schema.REFERENCE], new)

    def _fetch(self, url: str, shard: str) -> bytes | RejectedReferenceError:
        if get_protocol(url) == "file" and get_protocol(shard) != "file":
            return RejectedReferenceError(Reason.FETCH_DENIED, f"{url}: a file of this machine, named by {shard}")
        try:
            return fetch(url, self.spec)
        except RejectedReferenceError as reject:
            return reject


def fetch(url: str, spec: FetchSpec) -> bytes:
    """Read the file that a path or URL names.

    Raises:
        RejectedReferenceError: it may not be read, is not there, is too long or cannot be read.
    """
    scheme = get_protocol(url)
    if scheme not in spec.schemes:
        allowed = ", ".join(spec.schemes)
        raise RejectedReferenceError(Reason.FETCH_DENIED, f"{url}: scheme {scheme!r} is not among {allowed}")
    try:
        filesystem, path = filesystem_of(url)
        with filesystem.open(path, "rb") as file:
            content = bytes(file.read(spec.max_image_bytes + 1))
    except FileNotFoundError as error:
        raise RejectedReferenceError(Reason.FETCH_NOT_FOUND, f"{url}: no such file") from error
    except PermissionError as error:
        raise RejectedReferenceError(Reason.FETCH_DENIED, f"{url}: {error}") from error
    except (*STORE_ERRORS, ValueError, InputError) as error:
        raise RejectedReferenceError(Reason.FETCH_FAILED, f"{url}: {error}") from error
    if len(content) > spec.max_image_bytes:
        raise RejectedReferenceError(Reason.TOO_MANY_BYTES, f"{url}: more than {spec.max_image_bytes} bytes")
    return content
