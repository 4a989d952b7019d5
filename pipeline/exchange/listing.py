"""Files of some kinds below a folder or URL prefix: what listings tell of them; nothing is opened.

In: a folder, glob or file. Out: files in the order of their names; hidden ones are none. Knows nothing of contents.
"""

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import InputError
from pipeline.filesystem import STORE_ERRORS, filesystem_of, fingerprint, is_file, is_local, list_files

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
WRITTEN = ("mtime", "LastModified", "last_modified")  # on disks and GCS, S3, Azure
WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ListedFile:
    """One file, as its listing describes it."""

    key: str  # its path below the folder
    url: str
    bytes: int
    fingerprint: str  # of its state
    modified: datetime | None  # None where the filesystem does not say


def list_kinds(path: str, extensions: Collection[str]) -> list[ListedFile]:
    """List the files with these extensions, in any case.

    Args:
        path: in a glob * stands for slashes too.

    Raises:
        InputError: they cannot be listed, there are none, or a name is not UTF-8.
    """
    filesystem, pattern = filesystem_of(path)
    above = folder_of(pattern)
    try:
        is_one = not WILDCARD.search(pattern) and is_file(filesystem, pattern)
        above = pattern.rpartition("/")[0] if is_one else above
        listed = {pattern: filesystem.info(pattern)} if is_one else list_files(filesystem, above, follow=True)
    except STORE_ERRORS as error:
        raise InputError(f"{path}: cannot be listed: {error}") from error
    found = []
    for name, entry in sorted(listed.items()):
        key = name.removeprefix(above).lstrip("/")
        is_meant = name == pattern or above == pattern or fnmatch.fnmatchcase(name, pattern)
        is_hidden = any(part.startswith(".") for part in key.split("/"))
        if not is_meant or is_hidden or key.rpartition(".")[2].lower() not in extensions:
            continue
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{path}: the name {key!r} is not UTF-8; rename the file") from error
        url = name if is_local(filesystem) else filesystem.unstrip_protocol(name)
        found.append(ListedFile(key, url, int(entry["size"]), fingerprint(entry), _modified(entry)))
    if not found:
        raise InputError(f"{path}: no files there that end with {', '.join(extensions)}")
    return found


def _modified(entry: dict[str, Any]) -> datetime | None:  # a listing's values have many types
    """Take out of a listing when a file was written: disks say seconds, others a date."""
    found = next((entry[name] for name in WRITTEN if entry.get(name)), None)
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    return found if isinstance(found, datetime) else None


def folder_of(pattern: str) -> str:
    """Give the folder that a glob is below; of what is none, that itself."""
    above = WILDCARD.split(pattern, maxsplit=1)[0]
    return pattern if above == pattern else above.rpartition("/")[0]
