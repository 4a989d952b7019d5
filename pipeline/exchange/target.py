"""Where an export goes: a folder or a file that nothing is in yet, unless it may be replaced; and what was written."""

from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.store import Store


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    target: str  # a path or URL
    rows: int
    files: int
    bytes: int


def split(target: str) -> tuple[Store, str]:
    """Take a path or URL apart into the folder it is in and its name there.

    Raises:
        InputError: it has no name.
    """
    folder, _, name = target.rstrip("/").rpartition("/")
    if not name or folder.endswith(":/"):
        raise InputError(f"{target}: wanted the name of a file in a folder")
    return Store(folder or ("/" if target.startswith("/") else ".")), name


def check_free(target: str, found: dict[str, int], *, overwrite: bool) -> None:
    """Refuse to write where there are files already.

    Args:
        found: the files that are there.

    Raises:
        InputError: there are some, and they may not be replaced.
    """
    if found and not overwrite:
        raise InputError(f"{target}: has {len(found)} files, as {min(found)}; wanted a new place, or overwrite=True")
