"""Any fsspec filesystem: what it may raise, calls that are tried again, listings that leave nothing out, shards opened.

In: URLs and paths. Out: entries, files, fingerprints. fsspec's own helpers take errors for empty folders and for files
that are not there; these do not. Knows nothing of stores.
"""

import hashlib
import http.client
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.errors import InputError, storage_failed

logger = logging.getLogger(__name__)

# What a store may raise when it cannot be reached or refuses: s3fs lets botocore's and aiohttp's errors pass, which are
# no OSError.
STORE_ERRORS = (OSError, BotoCoreError, ClientError, aiohttp.ClientError, http.client.HTTPException)
# Of these, what asking again will not mend.
FINAL_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NoCredentialsError,
    CredentialRetrievalError,
)
TRIES = 4  # after those of s3fs and botocore, which alone may take a minute: an outage of some minutes is sat out
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
# Where filesystems say that a file was written again, the best first: S3, GCS, Azure, disks, Hugging Face and others.
STATES = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "blob_id", "last_modified", "modificationTime", "created")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def tried(call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
    """Make a call that is safe to repeat; while the store fails again after waits of random length, a few times."""
    again = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
        retry=retry_if_exception(lambda error: isinstance(error, STORE_ERRORS) and not isinstance(error, FINAL_ERRORS)),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    return again(call, *arguments, **options)


@contextmanager
def storage_named(where: Callable[[], str] = str) -> Iterator[None]:
    """Turn what a store raises inside ``with`` into an error that says so; a file that is not there is our mistake.

    Args:
        where: gives what goes before the message, when it is needed.
    """
    try:
        yield
    except FINAL_ERRORS:
        raise
    except STORE_ERRORS as error:
        raise storage_failed(error, where()) from error


def sha256_of(path: Path) -> str:
    """Digest a file of this machine's disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def filesystem_of(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Split a URL or path into its filesystem and the path on it; listings are never taken from a cache.

    Raises:
        InputError: no filesystem of that scheme is installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: {error}") from error
    return filesystem, str(path).rstrip("/")


def open_parquet(url: str) -> pq.ParquetFile:
    """Open a shard by path or URL: pages are read as they are needed, 8 MiB at once, never a whole row group."""
    if "://" not in url:
        file: pa.NativeFile = pa.OSFile(url)
    else:
        filesystem, path = filesystem_of(url)
        # Not through pyarrow's handler for fsspec: it asks isfile first, which takes every error for a no.
        file = pa.PythonFile(filesystem.open(path, "rb"), mode="r")
    return pq.ParquetFile(file, buffer_size=8 << 20, pre_buffer=False)


def column_bytes(footer: pq.FileMetaData, groups: Iterable[int], column: str) -> int:
    """Sum what a column, or all columns inside it, take in some row groups, encoded but not compressed."""
    total = 0
    for number in groups:
        group = footer.row_group(number)
        for i in range(group.num_columns):
            chunk = group.column(i)
            if f"{chunk.path_in_schema}.".startswith(f"{column}."):
                total += chunk.total_uncompressed_size
    return total


def list_files(
    filesystem: fsspec.AbstractFileSystem, path: str, depth: int | None = None, *, follow: bool = False
) -> dict[str, dict[str, Any]]:  # fsspec is untyped
    """List the files below a folder with what the listing says of them; none if there is no folder.

    On disks by os.walk: fsspec's own find leaves out, without a word, whatever it may not or cannot read.

    Args:
        depth: how many folders deep, on disks; None: however deep.
        follow: whether folders that are links count, on disks.

    Raises:
        One of STORE_ERRORS: a part of it cannot be listed, or a link leads nowhere.
    """
    if is_local(filesystem):
        path = path.rstrip("/")
        return _walk_locally(path, depth, follow=follow) if os.path.isdir(path) else {}  # noqa: PTH112 - of 10^5 names
    try:
        return dict(tried(filesystem.find, path, detail=True))
    except FileNotFoundError:
        return {}


def is_file(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
    """Tell whether there is a file of this name; fsspec's own isfile takes every error for a no."""
    try:
        return bool(tried(filesystem.info, path)["type"] == "file")
    except FileNotFoundError:
        return False


def fingerprint(entry: dict[str, Any]) -> str:  # a listing's values have many types
    """Name the state of a file by the best that its filesystem tells of it."""
    state = next((entry[key] for key in STATES if entry.get(key)), "")
    return f"{entry['size']}:{state}"


def fingerprint_of(url: str) -> str:
    """Name the present state of one file, as a listing would."""
    filesystem, path = filesystem_of(url)
    return fingerprint(filesystem.info(path))


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Tell whether paths of this filesystem are paths of this machine."""
    return "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _walk_locally(root: str, depth: int | None, *, follow: bool) -> dict[str, dict[str, Any]]:  # as fsspec's find
    found = {}
    seen: set[tuple[int, int]] = set()  # folders: links may lead in circles
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=follow):
        state = os.stat(folder)  # noqa: PTH116 - of 10^5 files, as below
        is_too_deep = depth is not None and folder.count("/") - root.count("/") + 1 >= depth
        if is_too_deep or (state.st_dev, state.st_ino) in seen:
            inner.clear()
        seen.add((state.st_dev, state.st_ino))
        for name in names:
            path = f"{folder}/{name}"
            try:
                state = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:  # removed while we looked, or a link to nothing
                if os.path.islink(path):  # noqa: PTH114
                    raise
                continue
            found[path] = {"name": path, "type": "file", "size": state.st_size, "mtime": state.st_mtime}
    return dict(sorted(found.items()))


def _refuse(error: OSError) -> None:
    """Let os.walk fail; but a folder that was removed while it looked has nothing in it."""
    if not isinstance(error, FileNotFoundError):
        raise error
