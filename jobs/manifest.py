"""Make a folder of pictures or webdataset tars a source: `python -m jobs.manifest --store S --name N --path FOLDER`."""

import json
import sys

from jobs.launch import launch
from pipeline.config import ManifestConfig
from pipeline.errors import IncompleteError
from pipeline.exchange.manifest import manifest


def run(config: ManifestConfig) -> None:
    """Write the shards of references, and print what the embed job is to be given."""
    made = manifest(config)
    keep, roots = (json.dumps(list(names)) for names in (made.source.keep_columns, made.roots))
    print(f"source {config.name}: {made.rows} rows in {made.shards} shards, {made.written} of them written now")
    print(
        f"python -m jobs.embed --store {config.store} --source.name {config.name} --source.path {made.source.path} "
        f"--source.image_column {made.source.image_column} --source.key_column {made.source.key_column} "
        f"--source.keep_columns '{keep}' --fetch.roots '{roots}' --model <model>"
    )
    if made.unreadable:
        name, why = min(made.unreadable.items())
        raise IncompleteError(f"source {config.name}: {len(made.unreadable)} tars are left out, as {name}: {why}")


if __name__ == "__main__":
    sys.exit(launch(ManifestConfig, run, "jobs.manifest"))
