"""A store root on any fsspec filesystem: read, list, remove, and two ways to write whole or not at all.

In: a URL or a folder, and paths below it. Out: bytes. `create` never replaces (S3: If-None-Match; disks: link), so of
two writers one wins; `replace` swaps one whole file for another. That an object exists never means that it is whole
(a failed stream can leave a truncated one): what is whole is what a receipt names. All of it can be repeated, and is,
a few times, when a remote store fails. Knows nothing of tables.
"""

import http.client
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.errors import InputError
from pipeline.seal import seal, unseal

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
PROBE = ".probe-"  # how files begin that only test whether a store can be written

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
REMOVE_THREADS = 16
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


class Store:
    """Files below one root. Cheap to make and to pickle: a worker makes its own from ``url``."""

    def __init__(self, url: str) -> None:
        self.filesystem, self.root = filesystem_of(url)
        self.is_local = is_local(self.filesystem)
        self.url = self.root if self.is_local else url.rstrip("/")
        self.has_conditions = True  # that `create` never replaces; `check_writable` finds out

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    def path(self, relative: str) -> str:
        """Give the full path of a file below the root, as this store's filesystem spells it."""
        return f"{self.root}/{relative}"

    def read(self, relative: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(self._call(self.filesystem.cat_file, self.path(relative)))

    def read_json(self, relative: str) -> dict[str, Any]:  # JSON has every type
        """Read the fields of a JSON file that `create_json` or `replace_json` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        return unseal(self.read(relative))

    def read_many(self, folder: str, suffix: str) -> dict[str, bytes]:
        """Read every file right in a folder whose name ends in ``suffix``, in parallel where the store can: by name."""
        if self.is_local:
            here = self.path(folder)
            found = os.listdir(here) if os.path.isdir(here) else []  # noqa: PTH112, PTH208 - of 10^5 names
            return dict(_read_all(here, (name for name in sorted(found) if name.endswith(suffix))))
        names = sorted(name for name in self.files(folder) if name.endswith(suffix))
        if not names:
            return {}
        paths = {name: self.path(f"{folder}/{name}") for name in names}
        contents = tried(self._cat, list(paths.values()))
        read = ((name, contents[self._listed(f"{folder}/{name}")]) for name in names)
        return {name: bytes(content) for name, content in read if content is not None}

    def files(self, folder: str) -> dict[str, int]:
        """List the files below a folder, however deep: bytes by path relative to it; none if it does not exist."""
        prefix = self._listed(folder) + "/"
        found = list_files(self.filesystem, self.path(folder))
        return {path.removeprefix(prefix): int(entry["size"]) for path, entry in found.items()}

    def folders(self, folder: str) -> list[str]:
        """Name the folders right below a folder; none if it does not exist."""
        return sorted(name for name, size in self._entries(self.path(folder)).items() if size is None)

    def files_at_root(self) -> dict[str, int]:
        """List the files right below the root: bytes by name."""
        return {name: size for name, size in self._entries(self.root).items() if size is not None}

    def _entries(self, path: str) -> dict[str, int | None]:
        """List a folder: bytes of files, None for folders."""
        try:
            entries = self._call(self.filesystem.ls, path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: None if entry["type"] == "directory" else int(entry["size"])
            for entry in entries
        }

    def exists(self, relative: str) -> bool:
        """Tell whether there is a file of this name; not whether it is whole."""
        return is_file(self.filesystem, self.path(relative))

    def create(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet, whole or not at all; no two writers may bring the same content.

        Raises:
            FileExistsError: there is one already.
        """
        if self.is_local:
            self._write_locally(relative, content, replace=False)
            return
        try:
            tried(self._create_remotely, relative, content)
        except FileExistsError:
            # A write may have happened though it was answered with an error; the next try then meets what it wrote.
            if self._is_other(relative, content):
                raise

    def replace(self, relative: str, content: bytes) -> None:
        """Write a file, in place of an older one if there is one, whole or not at all."""
        if self.is_local:
            self._write_locally(relative, content, replace=True)
        else:
            tried(self.filesystem.pipe_file, self.path(relative), content)

    def replace_json(self, relative: str, fields: dict[str, Any]) -> None:  # JSON has every type
        """Write fields as a sealed JSON file, in place of an older one if there is one."""
        self.replace(relative, seal(fields))

    def put_file(self, relative: str, source: Path) -> None:
        """Write a file that is too large for memory from one on this machine's disk, which is used up by it."""
        if self.is_local:
            target = Path(self.path(relative))
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as file:
                os.fsync(file.fileno())
            shutil.move(source, target)
            _fsync_folder(target.parent)
        else:
            tried(self.filesystem.put_file, str(source), self.path(relative))

    def get_file(self, relative: str, folder: Path) -> Path:
        """Give a path on this machine's disk to a file: its own, or that of a copy made in ``folder``."""
        if self.is_local:
            return Path(self.path(relative))
        copy = folder / Path(relative).name
        tried(self.filesystem.get_file, self.path(relative), str(copy))
        return copy

    def _cat(self, paths: list[str]) -> dict[str, bytes | None]:
        """Read files; None for those that are gone since they were listed."""
        contents = self.filesystem.cat(paths, on_error="return")
        if not isinstance(contents, dict):  # some filesystems unwrap a list of one
            contents = {self.filesystem._strip_protocol(paths[0]): contents}
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {path: None if isinstance(content, Exception) else content for path, content in contents.items()}

    def remove_many(self, paths: Iterable[str]) -> None:
        """Remove files, many at a time where they are far away."""
        if self.is_local:
            for path in paths:
                self.remove(path)
            return
        with ThreadPoolExecutor(REMOVE_THREADS) as pool:
            list(pool.map(self.remove, paths))

    def remove(self, relative: str) -> None:
        """Remove a file; one that is gone already is no error. Empty folders above it go too, on disks."""
        path = self.path(relative)
        try:
            self._call(self.filesystem.rm_file, path)
        except FileNotFoundError:
            return
        if self.is_local:
            _remove_empty_folders(Path(path).parent, Path(self.root))

    def check_writable(self, *, single_writer: bool) -> None:
        """Write a small file, try to write another in its place, and remove it.

        Raises:
            InputError: the store cannot be written, or lets a second writer replace what the first created and
                ``single_writer`` does not say that there never is one.
        """
        probe = f"{PROBE}{uuid.uuid4().hex}"
        try:
            self.replace(probe, b"first")
            self.has_conditions = self._refuses(probe)
            self.remove(probe)
        except STORE_ERRORS as error:
            raise InputError(f"store {self.url}: cannot be written: {error}") from error
        if not self.has_conditions and not single_writer:
            raise InputError(
                f"store {self.url}: has no conditional writes, so that two runs at once would not see each other; "
                "wanted another store, or --single_writer where there never are two"
            )

    def _is_other(self, relative: str, content: bytes) -> bool:
        try:
            return self.read(relative) != content
        except FileNotFoundError:  # gone again; it was not ours
            return True

    def _refuses(self, existing: str) -> bool:
        """Tell whether a file that is there cannot be created."""
        try:
            self.create(existing, b"second")
        except FileExistsError:
            return True
        except (ValueError, NotImplementedError) as error:  # a filesystem that does not know how
            logger.info("store=%s create=%s", self.url, error)
        return False

    def _create_remotely(self, relative: str, content: bytes) -> None:
        if self.has_conditions:
            # Not open(path, "xb"): s3fs writes nothing but empty files by it without a condition.
            self.filesystem.pipe_file(self.path(relative), content, mode="create")
        elif self.exists(relative):
            raise FileExistsError(relative)
        else:
            self.filesystem.pipe_file(self.path(relative), content)

    def _call(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """Repeat calls to remote stores only: what a disk refuses once it refuses again."""
        return call(*arguments, **options) if self.is_local else tried(call, *arguments, **options)

    def _listed(self, relative: str) -> str:
        """Spell a path as this filesystem's listings do."""
        return str(self.filesystem._strip_protocol(self.path(relative)))

    def _write_locally(self, relative: str, content: bytes, *, replace: bool) -> None:
        """Temporary name, fsync, then rename or link, then fsync of the folder, so that a power cut loses neither."""
        path = Path(self.path(relative))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_folder(path.parent)


def _read_all(folder: str, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Read files that were listed; those that are gone since have no content."""
    for name in names:
        try:
            yield name, Path(f"{folder}/{name}").read_bytes()
        except FileNotFoundError:
            continue


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


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty_folders(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone already
            return
        folder = folder.parent
