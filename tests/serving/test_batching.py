import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pipeline.serving.batching import Batcher


class Slow:
    """Doubles numbers, a batch at a time, and not before it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.has_begun = threading.Event()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.has_begun.set()
        assert self.may.wait(10)
        return [ValueError(f"no {item}") if item < 0 else 2 * item for item in items]


@pytest.fixture
def slow() -> Slow:
    return Slow()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def begun(slow: Slow) -> None:
    await asyncio.to_thread(slow.has_begun.wait, 10)


def test_what_waits_while_one_batch_is_worked_on_is_the_next_batch(slow: Slow):
    async def test() -> None:
        batcher = Batcher("t", slow, most=4)
        first = asyncio.ensure_future(batcher(1))
        await begun(slow)
        others = [asyncio.ensure_future(batcher(item)) for item in range(2, 9)]
        await asyncio.sleep(0)
        slow.may.set()
        assert await asyncio.gather(first, *others) == [2 * item for item in range(1, 9)]
        assert slow.batches == [[1], [2, 3, 4, 5], [6, 7, 8]]
        assert await batcher(9) == 18

    run(test)


def test_what_arrives_together_is_one_batch(slow: Slow):
    async def test() -> None:
        slow.may.set()
        batcher = Batcher("t", slow, most=64)
        await asyncio.gather(*(batcher(item) for item in range(10)))
        assert slow.batches == [list(range(10))]

    run(test)


def test_an_item_that_fails_fails_alone_and_a_call_that_fails_fails_all_of_its_batch(slow: Slow):
    async def test() -> None:
        slow.may.set()
        batcher = Batcher("t", slow, most=64)
        found = await asyncio.gather(*(batcher(item) for item in (1, -2, 3)), return_exceptions=True)
        assert (found[0], found[2], str(found[1])) == (2, 6, "no -2")

        def broken(items: list[int]) -> list[int]:
            raise OSError("the disk is gone")

        failing = Batcher("t", broken, most=64)
        errors = await asyncio.gather(*(failing(item) for item in (1, 2)), return_exceptions=True)
        assert [str(error) for error in errors] == ["the disk is gone"] * 2
        with pytest.raises(OSError, match="gone"):
            await failing(3)

    run(test)


def test_items_are_put_together_with_their_like_and_none_is_overtaken_for_ever(slow: Slow):
    async def test() -> None:
        batcher = Batcher("t", slow, most=3, key=lambda item: item % 2)
        first = asyncio.ensure_future(batcher(0))
        await begun(slow)
        others = [asyncio.ensure_future(batcher(item)) for item in (1, 2, 3, 4, 6, 8)]
        await asyncio.sleep(0)
        slow.may.set()
        await asyncio.gather(first, *others)
        assert slow.batches == [[0], [1, 3], [2, 4, 6], [8]]

    run(test)


def test_what_nobody_waits_for_any_more_is_not_worked_on(slow: Slow):
    async def test() -> None:
        batcher = Batcher("t", slow, most=4)
        first = asyncio.ensure_future(batcher(1))
        await begun(slow)
        given_up, wanted = asyncio.ensure_future(batcher(2)), asyncio.ensure_future(batcher(3))
        await asyncio.sleep(0)
        given_up.cancel()
        first.cancel()
        slow.may.set()
        assert await wanted == 6
        assert slow.batches == [[1], [3]]

    run(test)


def test_several_threads_work_on_as_many_batches(slow: Slow):
    async def test() -> None:
        prepared: list[str] = []
        batcher = Batcher(
            "t", slow, most=1, threads=2, prepare=lambda: prepared.append(threading.current_thread().name)
        )
        both = [asyncio.ensure_future(batcher(item)) for item in (1, 2, 3)]
        while len(slow.batches) < 2:
            await asyncio.sleep(0.01)
        assert slow.batches == [[1], [2]]
        slow.may.set()
        assert await asyncio.gather(*both) == [2, 4, 6]
        assert len(set(prepared)) == len(prepared) == 2

    run(test)
