"""Tars as webdataset writes them, and as nobody should."""

import io
import tarfile
from pathlib import Path


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of files by name; a TarInfo is written as it is, without contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path
