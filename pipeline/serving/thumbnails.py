"""Pictures of rows in, small WebP out, for people to look at: decoded and written anew, without what else a file holds.

A picture is read from its source, which costs a row group; so few are made at a time, and the last ones are kept.
"""

import io
from collections import OrderedDict
from dataclasses import replace

import numpy as np
from PIL import Image

from pipeline.embedding.sandbox import Sandbox
from pipeline.model import WHITE
from pipeline.serving.batching import Batcher
from pipeline.serving.problems import QueryError
from pipeline.serving.service import Service
from pipeline.serving.snapshot import Snapshot

KEPT = 2000  # thumbnails, of some 10 kB each
MADE_AT_ONCE = 2
QUALITY = 80

Wanted = tuple[Service, Snapshot, int]


class Thumbnails:
    """Makes thumbnails, and keeps those it made last."""

    def __init__(self, edge_px: int) -> None:
        self.edge_px = edge_px
        self.kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self.sandboxes: dict[str, Sandbox] = {}
        self.making: Batcher[Wanted, bytes] = Batcher("thumbnails", self._make, most=1, threads=MADE_AT_ONCE)

    async def of(self, service: Service, snapshot: Snapshot, number: int) -> bytes:
        """Give the thumbnail of a row, in WebP.

        Raises:
            QueryError: its picture cannot be had any more.
        """
        key = (service.table, snapshot.version, number)
        if (found := self.kept.get(key)) is not None:
            self.kept.move_to_end(key)
            return found
        made = await self.making((service, snapshot, number))
        self.kept[key] = made
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return made

    def _make(self, wanted: list[Wanted]) -> list[bytes | Exception]:
        ((service, snapshot, number),) = wanted
        encoded = snapshot.pictures.of(number)
        gone = QueryError("no_picture", "the picture of this row cannot be read from its source any more", 404)
        if encoded is None:
            return [gone]
        pixels, [reject] = self._sandbox(service).pixels([encoded])
        if reject is not None:
            return [gone]
        written = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0)))
        picture.save(written, "WEBP", quality=QUALITY)
        return [written.getvalue()]

    def _sandbox(self, service: Service) -> Sandbox:
        """Give the decoder of a table's pictures, whose limits are those that they were embedded under."""
        if service.table not in self.sandboxes:
            small = replace(
                service.record.preprocess,
                height_px=self.edge_px,
                width_px=self.edge_px,
                resize_mode="pad",
                fill=WHITE,
                decode="scaled",
            )
            self.sandboxes[service.table] = Sandbox(small)
        return self.sandboxes[service.table]
