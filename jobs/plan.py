"""Say what a run would do and take, and write nothing: `python -m jobs.plan --config jobs/configs/demo.toml`.

With `--cluster FILE` of measured figures it is of a corpus of any size on a cluster that need not be there:
`python -m jobs.plan --cluster cluster/capacity.json --images 1000000000`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from jobs.launch import launch
from pipeline.config import CapacityConfig, PlanConfig
from pipeline.upkeep.capacity import capacity
from pipeline.upkeep.figures import read_figures
from pipeline.upkeep.forecast import forecast


def run(config: PlanConfig) -> None:
    """Print the estimate, as JSON for programs or as a table for people."""
    embedding, index = forecast(config)
    found = {**asdict(embedding), **(asdict(index) if index else {})}
    if config.json_output:
        print(json.dumps(found))
        return
    _print(f"table {found.pop('table')}", found)


def run_on_paper(config: CapacityConfig) -> None:
    """Print what a corpus takes and what breaks first, as JSON for programs or as tables for people."""
    found = capacity(config, read_figures(config.cluster))
    if config.json_output:
        print(json.dumps({**asdict(found), "shares": {limit.what: limit.share for limit in found.limits}}))
        return
    parts = asdict(found)
    parts.pop("limits")
    _print("corpus", {name: value for name, value in parts.items() if not isinstance(value, dict)})
    for name, part in parts.items():
        if isinstance(part, dict):
            _print(name, part)
    limits = Table("what is used up", "load", "limit", "share", "past it", title="what breaks first")
    for limit in found.limits:
        limits.add_row(limit.what, f"{limit.load:.4g}", f"{limit.limit:.4g}", f"{limit.share:.2f}", limit.answer)
    Console().print(limits)


def _print(title: str, found: Mapping[str, object]) -> None:
    facts = Table("what", "how much", title=title)
    for name, value in found.items():
        facts.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(facts)


if __name__ == "__main__":
    if any(argument.split("=")[0] == "--cluster" for argument in sys.argv):
        sys.exit(launch(CapacityConfig, run_on_paper, "jobs.plan"))
    sys.exit(launch(PlanConfig, run, "jobs.plan"))
