"""A store root on any fsspec filesystem: read, list, remove, and two ways to write whole or not at all.

In: a URL or a folder, and paths below it. Out: bytes. `create` never replaces (S3: If-None-Match; disks: link), so of
two writers one wins; `replace` swaps one whole file for another. That an object exists never means that it is whole
(a failed stream can leave a truncated one): what is whole is what a receipt names. All of it can be repeated, and is,
a few times, when a remote store fails. Knows nothing of tables.
"""

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import IncompleteError, InputError
from pipeline.filesystem import (
    STORE_ERRORS,
    Arguments,
    Result,
    filesystem_of,
    is_file,
    is_local,
    list_files,
    sha256_of,
    tried,
)
from pipeline.seal import seal, unseal

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
PROBE = ".probe-"  # how files begin that only test whether a store can be written
REMOVE_THREADS, REMOVED_AT_ONCE = 16, 1000


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
        """Read the fields of a sealed JSON file, or of one of the first format.

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

    def files_in(self, folder: str) -> dict[str, int]:
        """List the files right below a folder, or the root (""): bytes by name; none if it does not exist."""
        path = self.path(folder).rstrip("/")
        return {name: size for name, size in self._entries(path).items() if size is not None}

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

    def link_file(self, relative: str, source: str) -> None:
        """Give a file of the store a second name, which outlives the first; far away, make a copy there."""
        if self.is_local:
            target = Path(self.path(relative))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.hardlink_to(self.path(source))
            _fsync_folder(target.parent)
        else:
            tried(self.filesystem.cp_file, self.path(source), self.path(relative))

    @contextmanager
    def scratch(self, relative: str) -> Iterator[Path]:
        """Give a folder to make files in: in one of this store's where that is a disk, so that moving is renaming."""
        parent = None
        if self.is_local:
            parent = Path(self.path(relative))
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".scratch-") as folder:
            yield Path(folder)

    def get_file(self, relative: str, folder: Path) -> Path:
        """Give a path on this machine's disk to a file: its own, or that of a copy made in ``folder``."""
        if self.is_local:
            return Path(self.path(relative))
        copy = folder / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        tried(self.filesystem.get_file, self.path(relative), str(copy))
        return copy

    def get_checked(self, relative: str, sha256: str, folder: Path) -> Path:
        """Give a path as `get_file` does, after its content was compared with its digest.

        Raises:
            IncompleteError: the file is missing or damaged.
        """
        try:
            path = self.get_file(relative, folder)
            found = sha256_of(path)
        except FileNotFoundError as error:
            raise IncompleteError(f"{relative} is missing") from error
        if found != sha256:
            raise IncompleteError(f"{relative} is damaged: SHA-256 {found[:12]}, wanted {sha256[:12]}")
        return path

    def _cat(self, paths: list[str]) -> dict[str, bytes | None]:
        """Read files; None for those that are gone since they were listed."""
        contents = self.filesystem.cat(paths, on_error="return")
        if not isinstance(contents, dict):  # some filesystems unwrap a list of one
            contents = {self.filesystem._strip_protocol(paths[0]): contents}
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {path: None if isinstance(content, Exception) else content for path, content in contents.items()}

    def remove_many(self, paths: Sequence[str], check: Callable[[], None]) -> None:
        """Remove files, in their order on disks, many at a time where they are far away.

        Args:
            check: called before every thousand; it raises when they are not ours to remove any more.
        """
        for start in range(0, len(paths), REMOVED_AT_ONCE):
            some = paths[start : start + REMOVED_AT_ONCE]
            check()
            if self.is_local:
                for path in some:
                    self.remove(path)
            else:
                with ThreadPoolExecutor(REMOVE_THREADS) as pool:
                    list(pool.map(self.remove, some))

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
