"""The body of a request, counted as it arrives, whatever its headers said; and read to an end when it was refused.

A client reads no reply before it has sent everything, and one that is cut off while it sends gets none at all. So what
nobody wants is read for a while and thrown away; then, where there is still more, the connection is closed.
"""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

STALL_S = 10.0  # without a byte of what is still to come: who sends nothing holds a place that others wait for
LINGER_S = 5.0  # as nginx's lingering_timeout
LINGER_FACTOR = 2  # of what a body may be: read in all, the part that nobody wants included
# Of a body in JSON, in which one lies between any two values. Unlike its bytes, its values cost: 2.6 million keys that
# no model knows, in 27 MB, took 4.6 GB and a minute (2026-11-25). 64 searches by vectors of 1536 numbers fit.
MAX_COMMAS = 100_000


class Body:
    """What a request still sends; is itself what an application receives it with."""

    def __init__(self, receive: Receive, headers: dict[bytes, str], max_bytes: int, *, is_json: bool = False) -> None:
        self.receive, self.max_bytes, self.is_json = receive, max_bytes, is_json
        self.arrived = self.commas = 0
        self.is_whole = b"transfer-encoding" not in headers and headers.get(b"content-length", "0") == "0"
        self.waits_for_us = headers.get(b"expect", "").lower() == "100-continue"  # which reading would tell it

    async def __call__(self) -> Message:
        """Give what arrives next.

        Raises:
            HTTPException: it is more than a body may be, or nothing more of it arrives.
        """
        try:
            async with asyncio.timeout(None if self.is_whole else STALL_S):
                message = await self._next()
        except TimeoutError as error:
            raise HTTPException(408, f"nothing more of the body arrived within {STALL_S:g} s") from error
        if self.arrived > self.max_bytes:
            raise HTTPException(413, f"wanted at most {self.max_bytes} bytes")
        self.commas += message.get("body", b"").count(b",")
        if self.is_json and self.commas > MAX_COMMAS:
            raise HTTPException(413, f"wanted at most {MAX_COMMAS} values")
        return message

    async def discard(self) -> bool:
        """Read what there is without looking at it; whether that was all."""
        if self.waits_for_us and self.arrived == 0:
            return self.is_whole
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.is_whole and self.arrived <= LINGER_FACTOR * self.max_bytes:
                    await self._next()
        except TimeoutError:
            pass
        return self.is_whole

    async def _next(self) -> Message:
        message = await self.receive()
        self.arrived += len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        return message
