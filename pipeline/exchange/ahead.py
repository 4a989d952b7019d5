"""Calls made by threads some places ahead of the one whose result is asked for: order kept, memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def ahead(call: Callable[[Given], Result], given: Iterable[Given], threads: int) -> Iterator[Result]:
    """Yield the result of each call in the order given; as many results wait, or are being made, as there are threads.

    What a call raises is raised in its place; calls that have not begun by then, or when nobody asks for more, are not
    made.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for one in given:
            waiting.append(pool.submit(call, one))
            if len(waiting) == threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
