"""Some bytes of a file as a reference: how they are named, and whether the file is still the one that was meant.

    s3://bucket/0001.tar#bytes=512-20991&state=6c1f0a2b9d3e

In: a path or URL, perhaps with such an end. Out: the file's name, and a `ByteRange`. As in HTTP the last byte is
included. A file that was written again since has other bytes in that place, perhaps another picture's: the state tells.
Opens nothing.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from pipeline.filesystem import fingerprint
from pipeline.schema import Reason, RejectedRowError

PATTERN = re.compile(
    r"(?P<file>.*)#bytes=(?P<first>\d{1,18})-(?P<last>\d{1,18})(?:&state=(?P<state>[0-9a-f]{12}))?", re.DOTALL
)


@dataclass(frozen=True)
class ByteRange:
    """Consecutive bytes of a file, and the state that the file must have, if that is known."""

    first: int
    length: int
    state: str | None = None

    def check_state(self, name: str, entry: dict[str, Any]) -> None:
        """Check that the file is the one that was meant.

        Args:
            entry: what the filesystem says of the file now, its size and time among it.

        Raises:
            RejectedRowError: it was written again.
        """
        if self.state is not None and _digest(fingerprint(entry)) != self.state:
            raise RejectedRowError(
                Reason.FETCH_FAILED, f"{name}: was written again since its bytes were named; make its manifest anew"
            )

    def check_length(self, name: str, content: bytes) -> bytes:
        """Give the content if it is all that was asked for.

        Raises:
            RejectedRowError: the file ends before.
        """
        if len(content) != self.length:
            raise RejectedRowError(
                Reason.FETCH_FAILED,
                f"{name}: {len(content)} bytes from byte {self.first} on; wanted {self.length}: the file ends before",
            )
        return content


def reference(url: str, first: int, length: int, state: str) -> str:
    """Name some bytes of a file.

    Args:
        state: the file's fingerprint, as a listing tells it.
    """
    return f"{url}#bytes={first}-{first + length - 1}&state={_digest(state)}"


def split(reference: str) -> tuple[str, ByteRange | None]:
    """Take the range off a reference, if it has one.

    Raises:
        RejectedRowError: it ends before it begins.
    """
    found = PATTERN.fullmatch(reference)
    if found is None:
        return reference, None
    first, last = int(found["first"]), int(found["last"])
    if last < first - 1:  # of no byte at all the last is the one before
        raise RejectedRowError(Reason.FETCH_DENIED, f"{reference}: bytes end before they begin")
    return found["file"], ByteRange(first, last - first + 1, found["state"])


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()[:12]
