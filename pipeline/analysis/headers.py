"""Encoded images in, what their headers say out: format, width and height, read by a process that may die of them.

Pillow opens each file and decodes no pixels. The process has no credentials in its environment, and bounds on its
memory, its processor time and what it may write; it writes JSON, a line for each image, which is checked before it is
believed. Knows nothing of tables.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO

from PIL import Image

from pipeline.embedding.decode import DECODE_ERRORS, take_over
from pipeline.embedding.sandbox import KEPT_VARIABLES
from pipeline.model import Limits

MAX_DEATHS = 3  # of one call: whoever sends more than that gets no more processes
CPU_S = 20  # of one process, its start included: a thousand headers take less than one
WALL_S = 120.0  # late enough for a machine that is busy starting others
EXTRA_BYTES = 1 << 30  # a WebP's canvas is there before its first pixel
SAID_BYTES = 1 << 20
LENGTH_BYTES = 8  # before each image: how long it is
READY = b"ready"
MAX_EDGE_PX = (1 << 31) - 1


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    format: str
    width: int
    height: int


def read_headers(images: Sequence[bytes], limits: Limits) -> list[Header | None]:
    """Read the headers of some images, in their order; None where there is none that Pillow can read.

    Raises:
        RuntimeError: the process that reads them cannot start.
    """
    headers: list[Header | None] = []
    deaths = 0
    while len(headers) < len(images) and deaths < MAX_DEATHS:
        headers += _said_of(images[len(headers) :], limits)
        if len(headers) < len(images):  # it died of the next one
            headers.append(None)
            deaths += 1
    return headers + [None] * (len(images) - len(headers))


def _said_of(images: Sequence[bytes], limits: Limits) -> list[Header | None]:
    """Give what one process says until it is through, dies, or is late."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        for image in images:
            given.write(len(image).to_bytes(LENGTH_BYTES) + image)
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.analysis.headers", json.dumps(asdict(limits))],
            env=environment,
            stdin=given,
            stdout=said,
        )
        try:
            status: int | str = process.wait(WALL_S)
        except subprocess.TimeoutExpired:
            status = f"none after {WALL_S:g} s"
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        first, *lines = said.read(SAID_BYTES).split(b"\n")
    if first != READY:
        raise RuntimeError(f"the process that reads headers never was ready, exit status {status}; see its output")
    return [_header(line, limits) for line in lines[: len(images)] if line]


def _header(line: bytes, limits: Limits) -> Header | None:
    """Take a line only for what it should be: its writer has read hostile bytes."""
    try:
        kind, width, height = json.loads(line) or (None, 0, 0)
    except (ValueError, TypeError, RecursionError):
        return None
    kind = "JPEG" if kind == "MPO" else kind  # a JPEG that holds others behind the first
    edges = [edge for edge in (width, height) if type(edge) is int and 0 < edge <= MAX_EDGE_PX]
    return Header(str(kind), *edges) if kind in limits.formats and len(edges) == 2 else None


def _read_for(given: IO[bytes], said: IO[bytes], limits: Limits) -> None:
    """Be the process: read header after header until there are no more."""
    take_over(limits)
    _confine(limits)
    said.write(READY + b"\n")
    said.flush()
    while len(length := given.read(LENGTH_BYTES)) == LENGTH_BYTES:
        said.write(json.dumps(_opened(given.read(int.from_bytes(length)), limits)).encode() + b"\n")
        said.flush()  # what follows may be the end of it


def _opened(encoded: bytes, limits: Limits) -> tuple[str | None, int, int] | None:
    try:
        with Image.open(io.BytesIO(encoded), formats=limits.formats) as image:
            return image.format, image.width, image.height
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return None


def _confine(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (SAID_BYTES, SAID_BYTES))
    if sys.platform == "linux":
        pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: SIM115, PTH123
        most = pages * resource.getpagesize() + 2 * limits.max_image_bytes + EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device; decoders complain of each bad image
        os.dup2(nowhere.fileno(), 2)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    _read_for(sys.stdin.buffer, sys.stdout.buffer, Limits(**{**asked, "formats": tuple(asked["formats"])}))
