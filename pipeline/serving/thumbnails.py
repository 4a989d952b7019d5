"""Pictures of rows in, small WebP out, for people to look at: decoded and written anew, without what else a file holds.

They are those that the table keeps (preprocess.thumbnail_px), or made of the picture in its source, which costs a row
group; so few are made at a time, and the last ones are kept.
"""

from collections import OrderedDict
from dataclasses import replace

from pipeline.embedding.sandbox import Sandbox
from pipeline.serving.batching import Batcher
from pipeline.serving.problems import QueryError
from pipeline.serving.service import Service
from pipeline.serving.snapshot import Snapshot

KEPT = 2000  # thumbnails, of some 10 kB each
MADE_AT_ONCE = 2

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
        if (kept := snapshot.pictures.thumbnail(number)) is not None:
            return [kept]
        if (encoded := snapshot.pictures.of(number)) is not None:
            _, [made], _ = self._sandbox(service).pictures([encoded])
            if made is not None:
                return [made]
        return [QueryError("no_picture", "the picture of this row cannot be read from its source any more", 404)]

    def _sandbox(self, service: Service) -> Sandbox:
        """Give the decoder of a table's pictures, whose limits are those that they were embedded under."""
        if service.table not in self.sandboxes:
            spec = replace(service.record.preprocess, decode="scaled", thumbnail_px=self.edge_px)
            # What else it makes is not looked at; but by it the decoder knows how small a JPEG may be decoded.
            self.sandboxes[service.table] = Sandbox(replace(spec, height_px=self.edge_px, width_px=self.edge_px))
        return self.sandboxes[service.table]
