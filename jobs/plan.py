"""Say what an embed run would do and take, and write nothing: `python -m jobs.plan --config jobs/configs/demo.toml`."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from jobs.launch import launch
from pipeline.config import PlanConfig
from pipeline.upkeep.forecast import forecast


def run(config: PlanConfig) -> None:
    """Print the estimate, as JSON for programs or as a table for people."""
    embedding, index = forecast(config)
    found = {**asdict(embedding), **(asdict(index) if index else {})}
    if config.json_output:
        print(json.dumps(found))
        return
    facts = Table("what", "how much", title=f"table {found.pop('table')}")
    for name, value in found.items():
        facts.add_row(name, str(value))
    Console().print(facts)


if __name__ == "__main__":
    sys.exit(launch(PlanConfig, run, "jobs.plan"))
