import asyncio

import pytest
from starlette.exceptions import HTTPException

from pipeline.serving import body
from pipeline.serving.body import Body

CHUNKED = {b"transfer-encoding": "chunked"}


class Sender:
    """Sends pieces of a hundred bytes; waits for ever after so many."""

    def __init__(self, pieces: int, stalls: bool = False) -> None:
        self.left, self.stalls = pieces, stalls

    async def __call__(self) -> dict:
        if self.left == 0 and self.stalls:
            await asyncio.Event().wait()
        self.left -= 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": self.left > 0 or self.stalls}


@pytest.mark.parametrize("pieces", [1, 10])
def test_a_body_of_just_the_limit_passes(pieces: int):
    async def test() -> None:
        arriving = Body(Sender(pieces), CHUNKED, 100 * pieces)
        for _ in range(pieces):
            assert not arriving.is_whole
            await arriving()
        assert arriving.is_whole

    asyncio.run(test())


def test_a_body_is_refused_with_the_piece_that_is_too_much():
    async def test() -> None:
        sender = Sender(1000)
        arriving = Body(sender, CHUNKED, 250)
        await arriving()
        await arriving()
        with pytest.raises(HTTPException, match="250 bytes"):
            await arriving()
        assert sender.left == 997

    asyncio.run(test())


@pytest.mark.parametrize(("pieces", "is_whole", "left"), [(1, True, 0), (21, True, 0), (22, False, 1), (99, False, 78)])
def test_what_nobody_wants_is_read_to_its_end_or_to_twice_the_limit(pieces: int, is_whole: bool, left: int):
    async def test() -> None:
        sender = Sender(pieces)
        assert await Body(sender, CHUNKED, 1000).discard() == is_whole
        assert sender.left == left

    asyncio.run(test())


def test_a_sender_that_stalls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "LINGER_S", 0.01)
    assert not asyncio.run(Body(Sender(2, stalls=True), CHUNKED, 1000).discard())


@pytest.mark.parametrize(
    "headers",
    [{}, {b"content-length": "0"}, {b"content-length": "100"}, {b"content-length": "100", b"expect": "100-Continue"}],
)
def test_nothing_is_asked_for_where_nothing_comes_or_the_client_waits_to_be_asked(headers: dict[bytes, str]):
    sender = Sender(1)
    is_whole = asyncio.run(Body(sender, headers, 1000).discard())
    is_coming, is_waiting = headers.get(b"content-length") == "100", b"expect" in headers
    assert sender.left == (0 if is_coming and not is_waiting else 1)
    assert is_whole != is_waiting
