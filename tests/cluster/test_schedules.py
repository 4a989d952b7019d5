"""Whoever keeps the clock, cron, Airflow or Kubernetes, hands over the same job, and cron and Airflow under one id.

Airflow itself is not among the packages here, which its own would not go with: the DAG is read, not run.
"""

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.flags import load
from pipeline.config import SubmitConfig
from pipeline.errors import InputError, LeaseHeldError
from tests.conftest import ROOT

SCHEDULES = ROOT / "cluster" / "schedules"
DAG = ast.parse((SCHEDULES / "airflow_dag.py").read_text())
CRON_JOB = yaml.safe_load((ROOT / "cluster/kubernetes/base/schedule.yaml").read_text())
ENTRYPOINT = "python -m jobs.backfill --config /etc/rayclip/backfill.toml"


def cron_line() -> tuple[str, str]:
    """The schedule, and the command as a shell gets it."""
    (line,) = (line for line in (SCHEDULES / "crontab").read_text().splitlines() if re.match(r"\d", line))
    assert not re.search(r"(?<!\\)%", line)  # would end the command
    return " ".join(line.split()[:5]), " ".join(line.split()[5:]).replace("\\%", "%")


def assigned(name: str) -> object:
    (value,) = (
        node.value for node in DAG.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return value


def default_of(name: str) -> str:
    call = assigned(name)
    assert isinstance(call, ast.Call)
    return ast.literal_eval(call.args[1])


@pytest.fixture
def run_cron(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Have a shell run the line, with a script in the place of our Python."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    _, command = cron_line()
    command = command.replace("/opt/rayclip", str(tmp_path)).replace("/var/log", str(tmp_path))

    def run(script: str) -> subprocess.CompletedProcess[str]:
        python.write_text(f"#!/bin/bash\n{script}\n")
        python.chmod(0o755)
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    return run


def test_cron_submits_the_backfill_of_its_date(run_cron: Callable[..., object], tmp_path: Path):
    run_cron('printf "%s\\n" "$@"')
    module, *flags = (tmp_path / "rayclip.log").read_text().splitlines()[1:]
    assert module == "jobs.submit"
    config = load(SubmitConfig, flags, module)
    assert re.fullmatch(r"backfill-\d{4}-\d\d-\d\d", config.id)
    assert (config.entrypoint, config.tries) == (ENTRYPOINT, 3)


@pytest.mark.parametrize(("status", "mailed"), [(0, ""), (3, "line 3\nline 4\nline 5\n")])
def test_cron_mails_the_last_lines_of_a_night_that_failed(
    run_cron: Callable[..., subprocess.CompletedProcess[str]], status: int, mailed: str
):
    assert run_cron(f'for i in 1 2 3 4 5; do echo "line $i" >&2; done; exit {status}').stdout == mailed


def test_airflow_hands_over_the_same_under_the_same_id():
    (command,) = (
        ast.unparse(node.value)
        for node in ast.walk(DAG)
        if isinstance(node, ast.Assign) and "jobs.submit" in ast.unparse(node)
    )
    assert "f'backfill-{night}'" in command
    (night,) = (
        ast.unparse(node)
        for node in ast.walk(DAG)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "night"
    )
    assert night.endswith("run_after.strftime('%Y-%m-%d')")  # in UTC, as everything in Airflow
    (entrypoint,) = (node for node in ast.walk(DAG) if isinstance(node, ast.AugAssign))
    said = ast.unparse(entrypoint.value).replace("{CONFIG}", default_of("CONFIG"))
    assert said == f"['--entrypoint', f'{ENTRYPOINT}']"
    _, cron = cron_line()
    assert f"--address {default_of('ADDRESS')}" in cron
    assert f"cd {default_of('HOME')} " in cron


def test_airflow_tries_again_only_what_a_try_may_mend():
    assert set(ast.literal_eval(assigned("FINAL"))) == {InputError.exit_status, LeaseHeldError.exit_status}


def test_all_have_one_clock():
    schedule, _ = cron_line()
    (decorated,) = (node for node in DAG.body if isinstance(node, ast.FunctionDef))
    (arguments,) = (call.keywords for call in decorated.decorator_list)
    given = {keyword.arg: keyword.value for keyword in arguments}
    assert ast.literal_eval(given["schedule"]) == schedule == CRON_JOB["spec"]["schedule"]
    assert (ast.literal_eval(given["max_active_runs"]), ast.literal_eval(given["catchup"])) == (1, False)


@pytest.mark.parametrize("flag", ["template", "id", "namespace"])
def test_kubernetes_makes_the_id_of_its_own_job(flag: str):
    (container,) = CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    arguments = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    wanted = {"template": "backfill", "id": "run-$(JOB_NAME)", "namespace": "$(NAMESPACE)"}
    assert arguments[f"--{flag}"] == wanted[flag]
