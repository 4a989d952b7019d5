"""Check a cluster and a config before money is spent: `python -m jobs.doctor --config jobs/configs/demo.toml`."""

import json
import sys

from jobs.launch import launch
from pipeline.config import DoctorConfig
from pipeline.doctor.run import examine
from pipeline.errors import IncompleteError


def run(config: DoctorConfig) -> None:
    """Print each finding with its remedy, and what was found in order; faults end with status 3.

    Raises:
        IncompleteError: there are faults.
    """
    found = examine(config)
    if config.json_output:
        print(json.dumps(found.as_json()))
    else:
        for one in found.findings:
            print(f"{one.severity}: {one.check}: {one.where}: {one.what}; {one.remedy}")
        for check, about in found.fine.items():
            print(f"fine: {check}: {about}")
        for check in found.unknown:
            print(f"not known: {check}")
        warnings = len(found.findings) - len(found.faults)
        print(f"{found.nodes} nodes; {len(found.faults)} faults, {warnings} warnings, {len(found.fine)} checks fine")
    if found.faults:
        checks = ", ".join(dict.fromkeys(one.check for one in found.faults))
        raise IncompleteError(f"{len(found.faults)} faults ({checks}); mend them before a run")


if __name__ == "__main__":
    sys.exit(launch(DoctorConfig, run, "jobs.doctor"))
