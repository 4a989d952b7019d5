"""Find every damaged, missing, extra or mixed file of a table: `python -m jobs.verify --store out/demo/store`."""

import sys

from jobs.launch import launch
from pipeline.config import VerifyConfig
from pipeline.errors import IncompleteError
from pipeline.upkeep.verify import verify


def run(config: VerifyConfig) -> None:
    """Verify, and print one line for every file that is not what it should be.

    Raises:
        IncompleteError: there are any.
    """
    found = verify(config)
    for fault in found.faults:
        print(f"{fault.kind} {fault.path}: {fault.detail}")
    print(f"table {found.table}: {found.files} files, {found.bytes} bytes, {len(found.faults)} faults")
    if found.faults:
        raise IncompleteError(f"table {found.table}: {len(found.faults)} files are not what they should be")


if __name__ == "__main__":
    sys.exit(launch(VerifyConfig, run, "jobs.verify"))
