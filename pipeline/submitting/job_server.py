"""A running Ray cluster as a place for jobs: what `ray job submit` does, with an exit status that can be trusted.

The client of Ray exits 0 for a job that somebody stopped, and 1 for any that failed; here the job's own status counts.
With RAY_AUTH_MODE=token Ray's client takes the token from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

from pipeline.config import SubmitConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.submitting.once import Found

logger = logging.getLogger(__name__)

POLL_S = 2.0
LOST_S = 300.0  # without a word from the job server, after which nothing is known of the job
# A head that has just started has a job server before it has an agent that starts jobs (10 s on two busy cores).
STARTING_S = 90.0
STOPPED_STATUS = 3  # as of a job that SIGTERM stopped: the same command goes on


class JobServer:
    """Ray's job server at an address.

    Raises:
        IncompleteError: none answers there now.
    """

    def __init__(self, config: SubmitConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        try:
            self.client = JobSubmissionClient(config.address)
        except (ConnectionError, RuntimeError) as error:
            raise IncompleteError(f"address {config.address}: no job server answers, or not to us: {error}") from error

    def find(self, name: str) -> Found | None:
        """Look how a job stands; None: there never was one."""
        try:
            return _found(self.client.get_job_info(name))
        except RuntimeError as error:
            if "404" in str(error) and "does not exist" in str(error):
                return None
            raise

    def start(self, name: str) -> None:
        """Start it; nothing if somebody has just started one of that name.

        Raises:
            InputError: the job server refuses it.
        """
        try:
            self._submit(name)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise InputError(f"{name}: refused by the job server: {error}") from error
        except ValueError as error:  # of a working_dir that is none
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
            IncompleteError: the job server cannot be reached any more; the job may go on.
        """
        heard = time.monotonic()
        lines = _Lines(self.say)
        while True:
            try:
                if not lines.are_over:
                    asyncio.run(lines.pass_on(self.client, name))
                found = self.find(name)
                heard = time.monotonic()
                if found is not None and found.is_over:
                    return found
            except (RuntimeError, ConnectionError, aiohttp.ClientError) as error:
                if time.monotonic() - heard > LOST_S:
                    raise IncompleteError(
                        f"{name}: the job server has not answered for {LOST_S:.0f} s ({error}); the same command "
                        "follows the job if it still runs"
                    ) from error
            time.sleep(POLL_S)


class _Lines:
    """What a job prints, passed on once, over as many connections as it takes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.said, self.are_over = say, 0, False

    async def pass_on(self, client: JobSubmissionClient, name: str) -> None:
        """Pass on what is new, until the job ends or the connection does."""
        seen = 0
        async for piece in client.tail_job_logs(name):  # every connection has it from the beginning
            new = piece[max(0, self.said - seen) :]
            seen += len(piece)
            if new:
                self.say(new)
                self.said += len(new)
        self.are_over = True


def _found(job: JobDetails) -> Found:
    has_succeeded, is_over = job.status == JobStatus.SUCCEEDED, job.status.is_terminal()
    times = [f"{verb} {_when(at)}" for verb, at in (("began", job.start_time), ("ended", job.end_time)) if at]
    why = f": {_brief(job.message)}" if job.message and is_over and not has_succeeded else ""
    status = STOPPED_STATUS if job.status == JobStatus.STOPPED else job.driver_exit_code
    return Found(is_over, has_succeeded, f"{job.status.value}, {', '.join(times)}{why}", status)


def _brief(message: str) -> str:
    """Cut Ray's message, which has the job's last 20,000 characters in it, down to what happened and the last line."""
    what, _, log = message.partition(", last available logs")
    lines = log.strip().splitlines()
    return f"{what}: {lines[-1]}" if lines else " ".join(what.split())


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat(timespec="seconds")
