"""References in, encoded bytes out: rows that only name their image get its bytes, or a reason.

One missing file is one reject. What a reference may be is limited: schemes from a list, http and https not among them
by default; local paths below declared folders, wherever links lead; no chains of filesystems. A reference may mean some
bytes of a file, as of a tar: see byte_range.py. Knows nothing of Ray.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.utils import get_protocol

from pipeline import schema
from pipeline.config import FetchConfig
from pipeline.embedding.byte_range import ByteRange, split
from pipeline.embedding.web import Web, WebSpec
from pipeline.errors import InputError
from pipeline.filesystem import filesystem_of, is_local
from pipeline.schema import Reason, RejectedRowError

# Files held at a time are twice the threads, batches of them this: 128 pictures of a phone would be a gigabyte.
BATCH_BYTES = 32 << 20
# What fails for want of something on this machine is no row's fault, and ends the run: it can go on later.
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)


@dataclass(frozen=True)
class FetchSpec:
    """What may be fetched, and how."""

    schemes: tuple[str, ...]
    roots: tuple[str, ...]
    web: WebSpec


def fetch_spec(config: FetchConfig, max_bytes: int) -> FetchSpec:
    """Take from the config what fetching needs."""
    web = WebSpec(
        networks=config.networks,
        max_bytes=max_bytes,
        threads=config.threads,
        threads_per_host=config.threads_per_host,
        connect_timeout_s=config.connect_timeout_s,
        timeout_s=config.timeout_s,
        retries=config.retries,
    )
    return FetchSpec(config.schemes, config.roots, web)


class Fetch:
    """The step: a batch with references becomes batches with bytes."""

    def __init__(self, spec: FetchSpec) -> None:
        self.spec = spec
        self.web = Web(spec.web)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Fill in the image of every row that has a reference and neither bytes nor a reason: same rows, same order."""
        images: list[bytes | None] = batch[schema.IMAGE].to_pylist()
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        rows: list[int] = batch[schema.ROW].to_pylist()
        first = held = 0
        for i, found in enumerate(self._fetched(batch)):
            if isinstance(found, bytes):
                images[i], held = found, held + len(found)
            elif found is not None:
                reasons[i], errors[i] = found.reason.value, schema.error_text(found.reason, rows[i], str(found))
            if held > BATCH_BYTES:
                yield _piece(batch, first, i + 1, images, reasons, errors)
                images[first : i + 1] = [None] * (i + 1 - first)
                first, held = i + 1, 0
        if first < batch.num_rows or first == 0:
            yield _piece(batch, first, batch.num_rows, images, reasons, errors)

    def _fetched(self, batch: pa.Table) -> Iterator[bytes | RejectedRowError | None]:
        """Fetch in the order of the rows, some rows ahead of the one asked for; None where nothing is wanted."""

        def call(i: int) -> bytes | RejectedRowError | None:
            reference, shard = batch[schema.REFERENCE][i].as_py(), batch[schema.SHARD][i].as_py()
            if reference is None or batch[schema.REASON][i].is_valid:
                return None
            folder = () if "://" in shard else (shard.rpartition("/")[0] or "/",)
            try:
                return fetch(reference, self.spec, self.web, folder)
            except RejectedRowError as reject:
                return reject

        ahead: deque[Future[bytes | RejectedRowError | None]] = deque()
        with ThreadPoolExecutor(self.spec.web.threads) as pool:
            for i in range(batch.num_rows):
                ahead.append(pool.submit(call, i))
                if len(ahead) == 2 * self.spec.web.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def fetch(reference: str, spec: FetchSpec, web: Web, more_roots: tuple[str, ...] = ()) -> bytes:
    """Read the file that a path or URL names, or some of its bytes.

    Args:
        reference: a local path, or a URL; any but http's may end with a range of bytes.
        more_roots: folders that local paths may lie below, beside those of the spec.

    Raises:
        RejectedRowError: it may not be read, is not there, is too long or cannot be read.
    """
    scheme = get_protocol(reference)
    if scheme not in spec.schemes:
        allowed = ", ".join(spec.schemes)
        raise RejectedRowError(Reason.FETCH_DENIED, f"{reference}: scheme {scheme!r} is not among {allowed}")
    if "::" in reference and scheme not in ("http", "https"):  # fsspec would take it for a chain, file:// at its end
        raise RejectedRowError(Reason.FETCH_DENIED, f"{reference}: chains of filesystems are not followed")
    if scheme in ("http", "https"):
        return web.get(reference)
    name, part = split(reference)
    if part is not None and part.length > spec.web.max_bytes:
        raise RejectedRowError(Reason.FETCH_TOO_LARGE, f"{reference}: more than {spec.web.max_bytes} bytes")
    if scheme == "file":
        return _read_local(_local_path(name), part, (*spec.roots, *more_roots), spec.web.max_bytes)
    return _read_remote(name, part, spec)


def _local_path(reference: str) -> str:
    """Take a path out of file:///path, and leave any other as it is."""
    if not reference.startswith("file://"):
        return reference
    path = unquote(reference.removeprefix("file://"))
    if not path.startswith("/"):
        raise RejectedRowError(Reason.FETCH_DENIED, f"{reference}: wanted file:///path, of no other machine")
    return path


def _read_local(path: str, part: ByteRange | None, roots: tuple[str, ...], max_bytes: int) -> bytes:
    """Read of a regular file that lies below one of the roots once all links are followed."""
    local_roots = [
        Path(os.path.realpath(root.removeprefix("file://"))) for root in roots if get_protocol(root) == "file"
    ]
    try:
        real = Path(os.path.realpath(path, strict=True))
        if not any(real.is_relative_to(root) for root in local_roots):
            below = ", ".join(map(str, local_roots)) or "no folder"
            raise RejectedRowError(
                Reason.FETCH_DENIED, f"{path}: not below {below}; fetch.roots declares further folders"
            )
        # no waiting for a pipe to be written to, no link that was put in the way meanwhile
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise RejectedRowError(Reason.FETCH_DENIED, f"{path}: not a file of bytes")
            with open(descriptor, "rb", closefd=False) as file:
                if part is not None:
                    part.check_state(path, {"size": state.st_size, "mtime": state.st_mtime})
                    file.seek(part.first)
                    return part.check_length(path, file.read(part.length))
                return _short_enough(path, file.read(max_bytes + 1), max_bytes)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RejectedRowError(Reason.FETCH_NOT_FOUND, f"{path}: no such file") from error
    except PermissionError as error:
        raise RejectedRowError(Reason.FETCH_DENIED, f"{path}: {error.strerror}") from error
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a null byte in it
        if isinstance(error, OSError) and error.errno in OURS:
            raise
        raise RejectedRowError(Reason.FETCH_FAILED, f"{path}: {error}") from error


def _read_remote(url: str, part: ByteRange | None, spec: FetchSpec) -> bytes:
    roots = [root.rstrip("/") + "/" for root in spec.roots if get_protocol(root) != "file"]
    if roots and (".." in url.split("/") or not url.startswith(tuple(roots))):
        raise RejectedRowError(Reason.FETCH_DENIED, f"{url}: not below {', '.join(roots)}")
    try:
        filesystem, path = filesystem_of(url)
    except InputError as error:
        raise RejectedRowError(Reason.FETCH_FAILED, str(error)) from error
    if is_local(filesystem):
        raise RejectedRowError(Reason.FETCH_DENIED, f"{url}: another name of this machine's files")
    try:
        if part is not None:
            return part.check_length(url, _bytes_at(filesystem, path, url, part))
        with filesystem.open(path, "rb") as file:
            return _short_enough(url, bytes(file.read(spec.web.max_bytes + 1)), spec.web.max_bytes)
    except FileNotFoundError as error:
        raise RejectedRowError(Reason.FETCH_NOT_FOUND, f"{url}: no such file") from error
    except PermissionError as error:
        raise RejectedRowError(Reason.FETCH_DENIED, f"{url}: {error}") from error
    except TimeoutError as error:
        raise RejectedRowError(Reason.FETCH_TIMEOUT, f"{url}: {error}") from error
    except RejectedRowError:
        raise
    except Exception as error:  # each filesystem has errors of its own, which share no class
        if isinstance(error, OSError) and error.errno in OURS:
            raise
        raise RejectedRowError(Reason.FETCH_FAILED, f"{url}: {error}") from error


def _bytes_at(filesystem: fsspec.AbstractFileSystem, path: str, url: str, part: ByteRange) -> bytes:
    """Ask for no bytes but these; where there are none to ask for, filesystems would give all of the file."""
    if part.state is not None or part.length == 0:
        part.check_state(url, filesystem.info(path))
    return bytes(filesystem.cat_file(path, start=part.first, end=part.first + part.length)) if part.length else b""


def _piece(
    batch: pa.Table,
    start: int,
    stop: int,
    images: list[bytes | None],
    reasons: list[str | None],
    errors: list[str | None],
) -> pa.Table:
    new = {
        schema.IMAGE: pa.array(images[start:stop], pa.large_binary()),
        **schema.outcome_columns(reasons[start:stop], errors[start:stop]),
    }
    return schema.replace_columns(batch.slice(start, stop - start), [schema.REFERENCE], new)


def _short_enough(name: str, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise RejectedRowError(Reason.FETCH_TOO_LARGE, f"{name}: more than {max_bytes} bytes")
    return content
