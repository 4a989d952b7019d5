"""What happens between us and a job server that fails; a real one is asked in tests/end_to_end/test_cluster.py."""

from collections.abc import AsyncIterator, Callable

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from pipeline.config import SubmitConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.submitting import job_server
from pipeline.submitting.job_server import JobServer

LOG = "first line\nsecond line\n"


def job(status: JobStatus, **fields: object) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, submission_id="night", status=status, entrypoint="run", **fields)


class Client:
    """Answers with what it was given, in turn: a job, or an error to raise; its log breaks off at the first tries."""

    def __init__(self, *answers: JobDetails | Exception, broken: int = 0) -> None:
        self.answers, self.broken = list(answers), broken

    def get_job_info(self, name: str) -> JobDetails:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.broken -= 1
        if self.broken >= 0:
            yield LOG[: 5 * (3 - self.broken)]
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield LOG[:8]
        yield LOG[8:]

    def submit_job(self, **fields: object) -> str:
        raise RuntimeError(self.answers.pop(0))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], JobServer]:
    monkeypatch.setattr(job_server, "POLL_S", 0.001)

    def made(client: Client) -> JobServer:
        monkeypatch.setattr(job_server, "JobSubmissionClient", lambda address: client)
        said: list[str] = []
        place = JobServer(SubmitConfig(id="night", entrypoint="run"), said.append)
        place.said = said
        return place

    return made


def test_lines_that_break_off_are_passed_on_once_and_cost_nothing(
    server: Callable[[Client], JobServer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_server, "LOST_S", 0.0)  # a job of hours: silence counts from its own beginning
    place = server(Client(job(JobStatus.RUNNING), job(JobStatus.RUNNING), job(JobStatus.SUCCEEDED), broken=2))
    assert place.follow("night").has_succeeded
    assert "".join(place.said) == LOG


def test_a_server_that_is_silent_for_a_while_is_asked_again(server: Callable[[Client], JobServer]):
    gone = ConnectionError("refused")
    place = server(Client(gone, RuntimeError("status code 503: starting"), gone, job(JobStatus.SUCCEEDED)))
    assert place.follow("night").has_succeeded


def test_one_that_stays_silent_ends_incomplete(server: Callable[[Client], JobServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_server, "LOST_S", 0.02)
    with pytest.raises(IncompleteError, match="the job may go on"):
        server(Client(*[ConnectionError("refused")] * 1000)).follow("night")


def test_a_head_that_has_forgotten_the_job_is_no_end_without_a_word(server: Callable[[Client], JobServer]):
    place = server(Client(RuntimeError("Request failed with status code 404: Job night does not exist.")))
    with pytest.raises(IncompleteError, match="knows it no more"):
        place.follow("night")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Request failed with status code 400: bad runtime_env", InputError),
        ("Request failed with status code 401: Unauthorized", InputError),
        ("Request failed with status code 500: Traceback", IncompleteError),
        ("Request failed with status code 429: slow down", IncompleteError),
    ],
)
def test_only_what_no_try_mends_is_a_bad_input(
    server: Callable[[Client], JobServer], said: str, error: type[Exception]
):
    with pytest.raises(error, match="night"):
        server(Client(said)).start("night")


def test_a_job_that_somebody_has_just_started_is_ours(server: Callable[[Client], JobServer]):
    server(Client("Request failed with status code 500: Job with submission_id night already exists")).start("night")


def test_a_stopped_job_is_incomplete_and_a_failed_one_says_its_last_line(server: Callable[[Client], JobServer]):
    message = "Job entrypoint command failed with exit code 2, last available logs (truncated):\none\nwhy it failed\n"
    stopped, failed = job(JobStatus.STOPPED), job(JobStatus.FAILED, message=message, driver_exit_code=2)
    place = server(Client(stopped, failed))
    found = place.find("night")
    assert (found.exit_status, found.was_stopped) == (3, True)
    found = place.find("night")
    assert (found.exit_status, found.was_stopped) == (2, False)
    assert found.said.endswith("exit code 2: why it failed")
