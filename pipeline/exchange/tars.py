"""A webdataset tar to rows that refer into it: its headers are read, and its texts; of pictures nothing.

In: the URL of a plain tar. Out: for every key, in the tar's order, where its picture's bytes are, and its texts. What a
tar may not have is refused with the tar's name: an end that is missing, sizes beyond it, links, names that lead out of
the folder. Nothing is unpacked. Knows nothing of stores.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO

from pipeline.errors import InputError
from pipeline.exchange.listing import PICTURES
from pipeline.filesystem import filesystem_of

TEXT, JSON = "txt", "json"
MAX_TEXT_BYTES = 1 << 20  # of one .txt or .json
MAX_HEADER_BYTES = 1 << 20  # of one long name or PAX header: tarfile reads them whole
MAX_PADDING_BYTES = 1 << 20  # zeros behind a tar's end: tar --blocking-factor makes some
READ_BYTES = 64 << 10  # at once, far away: a header and texts beside it, not the pictures between them
# As webdataset cuts a name: the key up to the first dot behind the last slash, the extension (its tariterators.py).
NAME = re.compile(r"(?P<key>(?:.*/|)[^./]+)\.(?P<extension>[^/]*)", re.DOTALL)


@dataclass(frozen=True)
class TarRow:
    """The members of one key."""

    key: str
    span: tuple[int, int] | None  # the picture's first byte in the tar, and how many; None: it has none
    text: str | None  # of .txt
    fields: dict[str, str]  # the scalars of .json, as text


@dataclass(frozen=True)
class _Member:
    """A file in a tar."""

    key: str
    extension: str
    span: tuple[int, int]
    text: str | None  # what it says, if it is a text


class _Headers:
    """A tar's bytes, of which no great piece is read at once, as a header may claim."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def tar_rows(url: str) -> list[TarRow]:
    """Read a tar's rows.

    Raises:
        InputError: it is cut short or no tar, or has what a webdataset has not.
    """
    filesystem, path = filesystem_of(url)
    with filesystem.open(path, "rb", block_size=READ_BYTES) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]  # it needs no more
                members = _members(tar, file, size)
                rows = [_row(key, list(group)) for key, group in groupby(members, key=lambda member: member.key)]
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise InputError(f"tar {url}: {error}") from error
    keys = {row.key for row in rows}
    if len(keys) < len(rows):
        raise InputError(f"tar {url}: members of one key lie apart, or a key is there twice")
    return rows


def _members(tar: tarfile.TarFile, file: BinaryIO, size: int) -> Iterator[_Member]:
    """Yield the files of a tar whose names have keys, and see that it goes on to its end."""
    end = 0
    while (entry := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen
        if entry.offset_data <= end or entry.offset_data + entry.size > size:
            raise tarfile.ReadError(f"{entry.name!r} claims {entry.size} bytes; the tar ends before")
        end = entry.offset_data + entry.size
        _check_plain(entry)
        found = NAME.fullmatch(entry.name)
        if found is not None and not entry.isdir():
            extension = found["extension"].lower()
            text = _text(file, entry) if extension in (TEXT, JSON) else None
            yield _Member(found["key"], extension, (entry.offset_data, entry.size), text)
    # tarfile ends without a word at what is no header, and at the first of several tars in one file; but what ends a
    # tar is a block of zeros, and nothing else is behind it
    file.seek(tar.offset)
    rest = file.read(MAX_PADDING_BYTES + 1)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE]):
        raise tarfile.ReadError(f"it is cut short, or damaged, at byte {tar.offset}")
    if len(rest) > MAX_PADDING_BYTES or any(rest):
        raise tarfile.ReadError(f"it ends at byte {tar.offset}, but more is behind: several tars in one file, perhaps")


def _check_plain(entry: tarfile.TarInfo) -> None:
    """Refuse what only harms whoever unpacks it, or is not the bytes that lie in the tar."""
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise tarfile.ReadError(f"{entry.name!r} leads out of its folder")
    if not (entry.isdir() or entry.isreg()) or entry.issparse():
        raise tarfile.ReadError(f"{entry.name!r} is no plain file: a link, a device or sparse")
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise tarfile.ReadError(f"{entry.name!r} is not UTF-8") from error


def _text(file: BinaryIO, entry: tarfile.TarInfo) -> str:
    if entry.size > MAX_TEXT_BYTES:
        raise tarfile.ReadError(f"{entry.name!r} has {entry.size} bytes; texts have at most {MAX_TEXT_BYTES}")
    file.seek(entry.offset_data)
    return file.read(entry.size).decode(errors="replace")


def _row(key: str, members: list[_Member]) -> TarRow:
    """Make a row of a key's members: of several pictures the first counts."""
    picture = next((member for member in members if member.extension.rpartition(".")[2] in PICTURES), None)
    texts = {member.extension: member.text for member in members if member.text is not None}
    return TarRow(key, None if picture is None else picture.span, texts.get(TEXT), scalars(texts.get(JSON)))


def scalars(text: str | None) -> dict[str, str]:
    """Give the fields of a JSON object that are text, numbers or truth values, as text; none of what is no object."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {
        _clean(name): _clean(value if isinstance(value, str) else json.dumps(value))
        for name, value in fields.items()
        if isinstance(value, str | int | float)
    }


def _clean(text: str) -> str:
    """Replace halves of surrogates, which JSON can have and UTF-8 cannot."""
    return text.encode(errors="replace").decode()
