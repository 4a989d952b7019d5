"""What one name leads to, with a place in memory that runs jobs at once."""

import pytest

from pipeline.errors import IncompleteError, InputError, LeaseHeldError, RunError
from pipeline.submitting.once import MAX_NAMES, Found, submit_once

RUNNING = Found(is_over=False, has_succeeded=False, said="RUNNING")


class Shop:
    """Runs jobs when they are followed; they end with the next of some statuses."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.jobs: dict[str, Found] = {}
        self.started: list[str] = []

    def find(self, name: str) -> Found | None:
        return self.jobs.get(name)

    def start(self, name: str) -> None:
        self.started.append(name)
        self.jobs[name] = RUNNING

    def follow(self, name: str) -> Found:
        status = self.statuses.pop(0)
        self.jobs[name] = Found(is_over=True, has_succeeded=status == 0, said=f"ended {status}", exit_status=status)
        return self.jobs[name]


def test_a_name_that_is_done_starts_nothing():
    shop = Shop(0)
    assert submit_once(shop, "night") == "night is done: ended 0"
    assert submit_once(shop, "night") == "night is already done: ended 0; nothing was started"
    assert shop.started == ["night"]


def test_a_name_that_runs_is_followed_and_not_started():
    shop = Shop(0)
    shop.jobs["night"] = RUNNING
    assert submit_once(shop, "night") == "night is done: ended 0"
    assert shop.started == []


@pytest.mark.parametrize(
    ("status", "error"), [(2, InputError), (3, IncompleteError), (4, LeaseHeldError), (1, RunError), (137, RunError)]
)
def test_a_job_ends_as_it_ended(status: int, error: type[RunError]):
    with pytest.raises(error, match=f"night: ended {status}") as caught:
        submit_once(Shop(status), "night")
    assert caught.value.exit_status == (status if status in (2, 3, 4) else 1)


def test_a_name_that_failed_goes_on_under_the_next():
    shop = Shop(3, 0)
    with pytest.raises(IncompleteError):
        submit_once(shop, "night")
    assert submit_once(shop, "night") == "night-2 is done: ended 0"
    assert "night-2 is already done" in submit_once(shop, "night")
    assert shop.started == ["night", "night-2"]


def test_only_what_going_on_can_mend_is_tried_again():
    shop = Shop(3, 3, 0)
    assert submit_once(shop, "night", tries=3) == "night-3 is done: ended 0"
    shop = Shop(2, 0)
    with pytest.raises(InputError):
        submit_once(shop, "night", tries=3)
    assert shop.started == ["night"]
    with pytest.raises(IncompleteError, match="night-2"):
        submit_once(Shop(3, 3, 0), "night", tries=2)


def test_a_job_that_somebody_stopped_is_not_started_again_at_once():
    shop = Shop(3, 0)
    shop.follow = lambda name: Found(is_over=True, has_succeeded=False, said="STOPPED", exit_status=3, was_stopped=True)
    with pytest.raises(IncompleteError, match="STOPPED"):
        submit_once(shop, "night", tries=3)
    assert shop.started == ["night"]


def test_a_name_that_always_fails_comes_to_an_end():
    shop = Shop(*[1] * MAX_NAMES)
    for _ in range(MAX_NAMES):
        with pytest.raises(RunError):
            submit_once(shop, "night")
    with pytest.raises(InputError, match="failed 20 times"):
        submit_once(shop, "night")
    assert len(shop.started) == MAX_NAMES
