"""Say what a table holds, what is left to do, and who is at it: `python -m jobs.status --store out/demo/store`."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from jobs.launch import launch
from pipeline.config import StatusConfig
from pipeline.upkeep.status import status


def run(config: StatusConfig) -> None:
    """Print how the table stands, as JSON for programs or as a table for people."""
    found = asdict(status(config))
    if config.json_output:
        print(json.dumps(found))
        return
    runs = found.pop("runs")
    facts = Table("what", "how much", title=f"table {found.pop('table')}")
    for name, value in found.items():
        facts.add_row(name, str(value))
    history = Table("run", "job", "started", "seconds", "status", "rows", title="last runs")
    for one in runs:
        cells = (one["id"], one["job"], one["started"], one["seconds"], one["exit_status"], one["now"].get("rows"))
        history.add_row(*("" if cell is None else str(cell) for cell in cells))
    console = Console()
    console.print(facts)
    console.print(history)


if __name__ == "__main__":
    sys.exit(launch(StatusConfig, run, "jobs.status"))
