"""One job for one name: a schedule that fires twice, or a client that tries again, gets the job that there is.

In: a place where jobs run under names, and a name. Out: how the job ended, as the exit status that it had itself. A job
that failed is tried again under the next name, `<name>-2`, which goes on where it stopped; one that succeeded is not.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import IncompleteError, InputError, LeaseHeldError, RunError

logger = logging.getLogger(__name__)

MAX_NAMES = 20  # that one name may lead to: whoever sees as many failures of one night should look
INCOMPLETE = IncompleteError.exit_status  # also of a job that somebody stopped: the same command goes on
NAMED = {error.exit_status: error for error in (InputError, IncompleteError, LeaseHeldError)}


@dataclass(frozen=True)
class Found:
    """How a job stands that a place knows."""

    is_over: bool
    has_succeeded: bool
    said: str  # for people: its state, and since when
    exit_status: int | None = None  # of the job itself, where it ended and the place knows
    was_stopped: bool = False  # by somebody, who will not want it started again at once


class Place(Protocol):
    """Where jobs run, each under a name of its own."""

    def find(self, name: str) -> Found | None:
        """Look how a job stands; None: there never was one."""

    def start(self, name: str) -> None:
        """Start it; nothing if somebody has just started one of that name."""

    def follow(self, name: str) -> Found:
        """Wait for its end."""


def submit_once(place: Place, name: str, tries: int = 1) -> str:
    """Have the job of a name done, and wait for its end; say what was done.

    Args:
        place: where jobs run.
        name: of the job; whoever hands over the same one means the same job.
        tries: how often it is started here while it ends incomplete: what status 3 means can be mended by going on.

    Raises:
        InputError, IncompleteError, LeaseHeldError, RunError: the job ended with status 2, 3, 4, or another but 0.
    """
    attempt, found = _latest(place, name)
    if found is not None and found.has_succeeded:
        return f"{attempt} is already done: {found.said}; nothing was started"
    ended = _ended(place, attempt, found)
    while ended.exit_status == INCOMPLETE and not ended.was_stopped and tries > 1:
        tries -= 1
        attempt, found = _latest(place, name)
        ended = _ended(place, attempt, found)
    if ended.has_succeeded:
        return f"{attempt} is done: {ended.said}"
    raise NAMED.get(ended.exit_status or 0, RunError)(f"{attempt}: {ended.said}")


def _ended(place: Place, attempt: str, found: Found | None) -> Found:
    """Start a job that is not there, and wait for it."""
    if found is None:
        place.start(attempt)
        logger.info("job=%s started", attempt)
    else:
        logger.info("job=%s is there already: %s", attempt, found.said)
    return place.follow(attempt)


def _latest(place: Place, name: str) -> tuple[str, Found | None]:
    """Find the first try of a name that has not failed; with None, it is still to be made."""
    for number in range(1, MAX_NAMES + 1):
        attempt = name if number == 1 else f"{name}-{number}"
        found = place.find(attempt)
        if found is None or found.has_succeeded or not found.is_over:
            return attempt, found
        logger.info("job=%s has failed: %s", attempt, found.said)
    raise InputError(f"{name}: failed {MAX_NAMES} times; see to the cause, then submit it under another name")
