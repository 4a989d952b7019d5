"""What is said of a request that is not answered: an error with a code for programs, and its HTTP status."""

from dataclasses import dataclass


class QueryError(Exception):
    """A query that cannot be answered as it was put; ``code`` is stable, for programs, ``status`` is HTTP's."""

    def __init__(self, code: str, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status


class OverloadedError(QueryError):
    """More requests than can be answered soon; ``retry_after_ms`` is when it may be different."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("overloaded", f"too many requests are waiting; try again in {retry_after_ms} ms", 429)
        self.retry_after_ms = retry_after_ms


@dataclass(frozen=True)
class Problem:
    """The body of an error (RFC 9457)."""

    status: int
    code: str
    detail: str
    type: str = "about:blank"


PROBLEM_JSON = "application/problem+json"
