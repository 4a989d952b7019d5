"""A few of the runs that `python -m jobs.benchmark soak` kills by the hundred: every row exactly once."""

from pathlib import Path

import pytest

from jobs.benchmark.config import SoakConfig
from jobs.benchmark.soak import soak


@pytest.mark.timeout(900)  # five runs, each of several processes that start
def test_drivers_workers_and_raylets_that_are_killed_cost_no_row(tmp_path: Path):
    deaths = soak(SoakConfig(out=str(tmp_path), runs=3, rows=150, seed=7))
    assert [death.is_exact for death in deaths] == [True] * 3  # ids in equal ids out, and verify finds no fault
    assert {death.victim for death in deaths} == {"driver", "worker", "raylet"}
    assert sum(death.was_running for death in deaths) >= 2
    drivers = [death for death in deaths if death.victim == "driver" and death.was_running]
    assert all(death.exits[0] == -9 and death.exits[-1] == 0 for death in drivers)
