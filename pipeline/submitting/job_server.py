"""A running Ray cluster as a place for jobs: what `ray job submit` does, with an exit status that can be trusted.

The client of Ray exits 0 for a job that somebody stopped, and 1 for any that failed; here the job's own status counts.
With RAY_AUTH_MODE=token, and only then, Ray's client sends the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
~/.ray/auth_token.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

from pipeline.config import SubmitConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.submitting.once import INCOMPLETE, Found

logger = logging.getLogger(__name__)

POLL_S = 2.0
LOST_S = 300.0  # without a word from the job server, after which nothing is known of the job
# A head that has just started has a job server before it has an agent that starts jobs (10 s on two busy cores).
STARTING_S = 90.0
REFUSED = re.compile(
    r"status code 4(?!08|29)\d\d|status 40[13]|[Aa]uthenticat"
)  # Ray's client has no other word for it


class JobServer:
    """Ray's job server at an address.

    Raises:
        IncompleteError: none answers there now.
        InputError: it does not take our token, or what it is asked for.
    """

    def __init__(self, config: SubmitConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        with _named(f"address {config.address}"):
            self.client = JobSubmissionClient(config.address)

    def find(self, name: str) -> Found | None:
        """Look how a job stands; None: there never was one.

        Raises:
            InputError, IncompleteError: as the class.
        """
        try:
            with _named(name):
                return _found(self.client.get_job_info(name))
        except InputError as error:
            if "does not exist" in str(error):
                return None
            raise

    def start(self, name: str) -> None:
        """Start it; nothing if somebody has just started one of that name.

        Raises:
            InputError, IncompleteError: as the class; or the working_dir is none.
        """
        try:
            with _named(name):
                self._submit(name)
        except (InputError, IncompleteError) as error:
            if "already exists" not in str(error):
                raise
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error

    @retry(
        retry=retry_if_exception_message(match=r"(?s).*No available agent"),
        stop=stop_after_delay(STARTING_S),
        wait=wait_fixed(POLL_S),
        reraise=True,
    )
    def _submit(self, name: str) -> None:
        environment: dict[str, object] = {}
        if self.config.working_dir is not None:
            environment["working_dir"] = self.config.working_dir
        if self.config.py_modules:
            environment["py_modules"] = list(self.config.py_modules)
        self.client.submit_job(
            entrypoint=self.config.entrypoint,
            submission_id=name,
            runtime_env=environment,
            metadata={"rayclip_id": self.config.id},
        )

    def follow(self, name: str) -> Found:
        """Pass on what it prints, and wait for its end.

        Raises:
            IncompleteError: the job server is gone, or has forgotten the job; it may go on.
        """
        lines, lost_since = _Lines(self.say), None
        while True:
            try:
                asyncio.run(lines.pass_on(self.client, name))
            except (RuntimeError, ConnectionError, aiohttp.ClientError) as error:
                logger.info("job=%s its lines broke off: %s", name, error)
            try:
                found, lost_since = self.find(name), None
            except IncompleteError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_S:
                    raise IncompleteError(f"{error}; for {LOST_S:.0f} s now; the job may go on") from error
            else:
                if found is None:
                    raise IncompleteError(f"{name}: the job server knows it no more: its head has started anew")
                if found.is_over:
                    return found
            time.sleep(POLL_S)


class _Lines:
    """What a job prints, passed on once, over as many connections as it takes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.said = say, 0

    async def pass_on(self, client: JobSubmissionClient, name: str) -> None:
        """Pass on what is new, until the job ends or the connection does."""
        seen = 0
        async for piece in client.tail_job_logs(name):  # every connection has it from the beginning
            new = piece[max(0, self.said - seen) :]
            seen += len(piece)
            if new:
                self.say(new)
                self.said += len(new)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Tell what a job server refuses, which no next try mends, from what may pass."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        said = " ".join(str(error).split())
        if REFUSED.search(said):
            raise InputError(f"{what}: refused by the job server: {said}") from error
        raise IncompleteError(f"{what}: no job server answers as it should: {said}") from error


def _found(job: JobDetails) -> Found:
    has_succeeded, is_over = job.status == JobStatus.SUCCEEDED, job.status.is_terminal()
    times = [f"{verb} {_when(at)}" for verb, at in (("began", job.start_time), ("ended", job.end_time)) if at]
    why = f": {_brief(job.message)}" if job.message and is_over and not has_succeeded else ""
    was_stopped = job.status == JobStatus.STOPPED
    status = INCOMPLETE if was_stopped else job.driver_exit_code
    return Found(is_over, has_succeeded, f"{job.status.value}, {', '.join(times)}{why}", status, was_stopped)


def _brief(message: str) -> str:
    """Cut Ray's message, which has the job's last 20,000 characters in it, down to what happened and the last line."""
    what, _, log = message.partition(", last available logs")
    lines = log.strip().splitlines()
    return f"{what}: {lines[-1]}" if lines else " ".join(what.split())


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat(timespec="seconds")
