"""The index job, killed by SIGKILL in every stage: the same command finishes, and CURRENT was never broken."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline.indexing import publish
from pipeline.searching.index import open_index
from tests.conftest import ROOT
from tests.indexing.conftest import made_up_vectors, write_table

# In the order that a build gets to them: where its process is killed, as the function is entered.
STAGES = {
    "training": "pipeline.indexing.build.train",
    "filling": "pipeline.indexing.fill.compute.get",
    "merging": "pipeline.indexing.build.merge",
    "verifying": "pipeline.indexing.build.verify",
    "tuning": "pipeline.indexing.made.tune",
    "writing the card": "pipeline.indexing.publish.write_card",
    "publishing": "pipeline.indexing.run.publish.publish",
}
NOWHERE = "pipeline.indexing.publish.withdraw"  # which no build calls
JOB = """
import os, signal, sys
from unittest import mock
from jobs.build_index import run
from jobs.launch import launch
from pipeline.config import IndexConfig

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

place = sys.argv.pop(1)
with mock.patch(place, die):
    sys.exit(launch(IndexConfig, run, "jobs.build_index"))
"""


def run_killed(place: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    address = ray.get_runtime_context().gcs_address  # the driver dies, its cluster lives: as with `ray job submit`
    return subprocess.run(
        [sys.executable, "-c", JOB, place, *flags],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.usefixtures("local_ray")
def test_a_build_killed_in_any_stage_is_finished_by_the_same_command(tmp_path: Path):
    vectors = made_up_vectors(3000, 32)
    store = write_table(str(tmp_path / "store"), "t", vectors[:2900], 100)
    shape = ["--store", store.url, "--factory", "IVF16,SQ8", "--text_queries", "none", "--partials", "3"]
    first = run_killed(NOWHERE, shape)
    assert first.returncode == 0, first.stderr[-3000:]
    current = publish.read_current(store, "t")
    flags = [*shape, "--seed", "1"]  # another index, built anew
    for stage, place in STAGES.items():
        killed = run_killed(place, flags)
        assert killed.returncode == -signal.SIGKILL, (stage, killed.stderr[-3000:])
        assert publish.read_current(store, "t") == current, stage
        assert open_index(store, "t").card.version == current, stage
        filled = re.findall(r"partials_done=(\d) to_fill=(\d)", killed.stderr)
        known = {"training": [], "filling": [("0", "3")]}
        assert filled == known.get(stage, filled), stage
        if stage not in known and stage != "publishing":
            assert sum(map(int, filled[0])) == 3
            assert stage == "merging" or filled == [("3", "0")], stage  # what has its receipt is not built again
    ended = run_killed(NOWHERE, flags)
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = open_index(store, "t").card
    assert card.version != current
    assert card.seed == 1
    assert card.recall_at_10["image"] >= 0.95
