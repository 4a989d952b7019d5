"""Calls of many requests put together: whatever waits while one batch is worked on is the next batch.

In: single items, awaited. Out: what a function of lists makes of them, in threads of its own. Nobody waits for a batch
to fill: one request alone is answered as fast as it can be, and batches grow with the load. Knows nothing of HTTP.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """A function of lists, called with one item at a time from one event loop.

    An item that is not waited for any more, since its request was given up, is left out.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[list[Item]], Sequence[Result | Exception]],
        *,
        most: int,
        key: Callable[[Item], Hashable] = lambda item: None,
        threads: int = 1,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Take the function.

        Args:
            call: gives a result for each item, or the exception that is its result.
            most: items of one call.
            key: items are put together where it is the same.
            threads: batches that are worked on at once.
            prepare: called once in each of the threads.
        """
        self.call, self.most, self.key, self.threads = call, most, key, threads
        self.waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self.running = 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=prepare)

    async def __call__(self, item: Item) -> Result:
        """Have an item done in the next batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if self.running < self.threads:
            self.running += 1
            asyncio.get_running_loop().call_soon(self._next)  # requests that arrived together get to queue first
        return await future

    def _next(self) -> None:
        """Start the next batch, or be done."""
        batch = self._taken()
        if not batch:
            self.running -= 1
            return
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self.pool, self.call, [item for item, _ in batch])
        done.add_done_callback(lambda ended: self._ended(batch, ended))

    def _taken(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """Take the oldest item and what can be put together with it, in order."""
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        others: list[tuple[Item, asyncio.Future[Result]]] = []
        key: Hashable = None
        while self.waiting and len(batch) < self.most:
            item, future = self.waiting.popleft()
            if future.done():  # cancelled
                continue
            if not batch:
                key = self.key(item)
            (batch if self.key(item) == key else others).append((item, future))
        self.waiting.extendleft(reversed(others))
        return batch

    def _ended(
        self,
        batch: list[tuple[Item, "asyncio.Future[Result]"]],
        ended: "asyncio.Future[Sequence[Result | Exception]]",
    ) -> None:
        error = ended.exception()
        results = [error] * len(batch) if error is not None else ended.result()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._next()
