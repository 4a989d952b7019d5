"""A store root on any fsspec filesystem: read, list, remove, and two ways to write whole or not at all.

In: a URL or a folder, and paths below it. Out: bytes. `create` never replaces (S3: If-None-Match; disks: link), so of
two writers one wins; `replace` swaps one whole file for another. That an object exists never means that it is whole
(a failed stream can leave a truncated one): what is whole is what a receipt names. Knows nothing of tables.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.errors import InputError

TEMPORARY_SUFFIX = ".tmp"

# What a store may raise when it cannot be reached or refuses: s3fs lets botocore's errors pass, which are no OSError.
STORE_ERRORS = (OSError, BotoCoreError, ClientError)


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
        file = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)).open_input_file(path)
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


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Tell whether paths of this filesystem are paths of this machine."""
    return "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


class Store:
    """Files below one root. Cheap to make and to pickle: a worker makes its own from ``url``."""

    def __init__(self, url: str) -> None:
        self.filesystem, self.root = filesystem_of(url)
        self.is_local = is_local(self.filesystem)
        self.url = self.root if self.is_local else url.rstrip("/")

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
        return bytes(self.filesystem.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> Any:  # JSON has every type
        """Read and parse a JSON file."""
        return json.loads(self.read(relative))

    def read_many(self, folder: str, suffix: str) -> dict[str, bytes]:
        """Read every file right in a folder whose name ends in ``suffix``, in parallel where the store can: by name."""
        if self.is_local:
            here = self.path(folder)
            found = os.listdir(here) if os.path.isdir(here) else []  # noqa: PTH112, PTH208 - of 10^5 names
            return {name: Path(f"{here}/{name}").read_bytes() for name in sorted(found) if name.endswith(suffix)}
        names = sorted(name for name in self.files(folder) if name.endswith(suffix))
        if not names:
            return {}
        contents = self.filesystem.cat([self.path(f"{folder}/{name}") for name in names])
        if isinstance(contents, bytes):  # some filesystems unwrap a list of one
            return {names[0]: contents}
        return {name: bytes(contents[self._listed(f"{folder}/{name}")]) for name in names}

    def files(self, folder: str) -> dict[str, int]:
        """List the files below a folder, however deep: bytes by path relative to it; none if it does not exist."""
        prefix = self._listed(folder) + "/"
        try:
            found = self.filesystem.find(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(prefix): int(entry["size"]) for path, entry in found.items()}

    def folders(self, folder: str) -> list[str]:
        """Name the folders right below a folder; none if it does not exist."""
        try:
            entries = self.filesystem.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")

    def exists(self, relative: str) -> bool:
        """Tell whether there is a file of this name; not whether it is whole."""
        return bool(self.filesystem.isfile(self.path(relative)))

    def create(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet, whole or not at all.

        Raises:
            FileExistsError: there is one already.
        """
        if self.is_local:
            self._write_locally(relative, content, replace=False)
        else:
            with self.filesystem.open(self.path(relative), "xb") as file:
                file.write(content)

    def replace(self, relative: str, content: bytes) -> None:
        """Write a file, in place of an older one if there is one, whole or not at all."""
        if self.is_local:
            self._write_locally(relative, content, replace=True)
        else:
            self.filesystem.pipe_file(self.path(relative), content)

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
            self.filesystem.put_file(str(source), self.path(relative))

    def get_file(self, relative: str, folder: Path) -> Path:
        """Give a path on this machine's disk to a file: its own, or that of a copy made in ``folder``."""
        if self.is_local:
            return Path(self.path(relative))
        copy = folder / Path(relative).name
        self.filesystem.get_file(self.path(relative), str(copy))
        return copy

    def remove(self, relative: str) -> None:
        """Remove a file; one that is gone already is no error. Empty folders above it go too, on disks."""
        path = self.path(relative)
        try:
            self.filesystem.rm_file(path)
        except FileNotFoundError:
            return
        if self.is_local:
            _remove_empty_folders(Path(path).parent, Path(self.root))

    def check_writable(self) -> None:
        """Write, and remove, a small file.

        Raises:
            InputError: the store cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, b"")
        except STORE_ERRORS as error:
            raise InputError(f"store {self.url}: cannot be written: {error}") from error
        self.remove(probe)

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
