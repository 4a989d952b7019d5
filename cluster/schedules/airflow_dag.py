"""The nightly backfill as an Airflow DAG (3.x): the same job under the same id as cron's line and the CronJob.

rayclip lives in an environment of its own, apart from Airflow's packages: RAYCLIP_HOME is a checkout with `make
.venv/ready` behind it. The id is the night's date, so that a task that Airflow tries again, or clears and runs again,
finds the job that there is: one that runs is followed, one that is done is not started. A token for Ray comes from
RAY_AUTH_TOKEN of the worker's environment.
"""

import os
import subprocess
from datetime import datetime, timedelta

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

HOME = os.environ.get("RAYCLIP_HOME", "/opt/rayclip")
ADDRESS = os.environ.get("RAYCLIP_ADDRESS", "http://127.0.0.1:8265")
CONFIG = os.environ.get("RAYCLIP_CONFIG", "/etc/rayclip/backfill.toml")
FINAL = {2: "its config or input cannot be used", 4: "another run has the table"}  # which no retry mends


@dag(
    schedule="17 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
    tags=["rayclip"],
)
def rayclip_backfill() -> None:
    """Embed what is new, index it, publish."""

    @task(execution_timeout=timedelta(hours=20))
    def backfill() -> None:
        night = get_current_context()["dag_run"].run_after.strftime("%Y-%m-%d")
        command = [f"{HOME}/.venv/bin/python", "-m", "jobs.submit", "--address", ADDRESS, "--id", f"backfill-{night}"]
        command += ["--entrypoint", f"python -m jobs.backfill --config {CONFIG}"]
        environment = {"RAY_AUTH_MODE": "token", **os.environ}  # or Ray's client sends none
        status = subprocess.run(command, cwd=HOME, env=environment, check=False).returncode
        if status in FINAL:
            raise AirflowFailException(f"backfill-{night}: status {status}: {FINAL[status]}; its log is above")
        if status:
            raise AirflowException(f"backfill-{night}: status {status}; the next try goes on from there")

    backfill()


rayclip_backfill()
