"""Remove what nothing names and nobody needs: `python -m jobs.vacuum --store out/demo/store --dry-run`."""

import sys

from jobs.launch import launch
from pipeline.config import VacuumConfig
from pipeline.upkeep.vacuum import vacuum


def run(config: VacuumConfig) -> None:
    """Remove it, or only name it, a line for each file."""
    waste = vacuum(config)
    for file in waste:
        print(f"{file.path}: {file.bytes} bytes, {file.why}")
    done = "could go" if config.dry_run else "removed"
    print(f"{len(waste)} files of {sum(file.bytes for file in waste)} bytes {done}")


if __name__ == "__main__":
    sys.exit(launch(VacuumConfig, run, "jobs.vacuum"))
