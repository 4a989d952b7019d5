"""Embed every image of a source: `python -m jobs.embed --config jobs/configs/demo.toml`."""

import sys

from jobs.launch import launch
from pipeline.config import EmbedConfig
from pipeline.embedding.run import embed


def run(config: EmbedConfig) -> None:
    """Embed, and print the counts that close."""
    report = embed(config)
    print(
        f"rows in {report.rows_in} = embedded {report.embedded} + rejected {report.rejected} {report.reasons or ''}\n"
        f"table {report.table}: {report.units} units, {report.units_skipped} of them done before, "
        f"{report.rows_now} rows in {report.seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(launch(EmbedConfig, run, "jobs.embed"))
