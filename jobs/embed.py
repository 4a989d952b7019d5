"""Embed every image of a source: `python -m jobs.embed --config jobs/configs/demo.toml`."""

import sys

from jobs.launch import launch
from pipeline.config import EmbedConfig
from pipeline.embedding.run import Report
from pipeline.upkeep.backfill import embed_only


def run(config: EmbedConfig) -> None:
    """Embed, and print the counts that close."""
    print(said(embed_only(config, "jobs.embed")))


def said(report: Report) -> str:
    """Put a report into two lines."""
    return (
        f"rows in {report.rows_in} = embedded {report.embedded} + rejected {report.rejected} {report.reasons or ''}\n"
        f"table {report.table}: {report.units} units, {report.units_skipped} of them done before, "
        f"{report.rows_now} rows in {report.seconds:.1f} s, {report.reused_now} of them with the vectors they had"
    )


if __name__ == "__main__":
    sys.exit(launch(EmbedConfig, run, "jobs.embed"))
