"""Measure what is claimed: `python -m jobs.benchmark throughput`, or another of the names below."""

import sys
from importlib import import_module

from jobs.benchmark.config import (
    DecodingConfig,
    DedupBenchmarkConfig,
    HostileConfig,
    IndexBenchmarkConfig,
    ParityConfig,
    ScalingConfig,
    ServeBenchmarkConfig,
    SoakConfig,
    ThroughputConfig,
)
from jobs.launch import launch
from pipeline.config import Config

# Each is a module beside this one, with a function of its name.
BENCHMARKS: dict[str, type[Config]] = {
    "throughput": ThroughputConfig,
    "scaling": ScalingConfig,
    "parity": ParityConfig,
    "hostile": HostileConfig,
    "decoding": DecodingConfig,
    "soak": SoakConfig,
    "index": IndexBenchmarkConfig,
    "serve": ServeBenchmarkConfig,
    "dedup": DedupBenchmarkConfig,
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        sys.exit(f"usage: python -m jobs.benchmark {'|'.join(BENCHMARKS)} [flags]; --help after a name lists its flags")
    measure = getattr(import_module(f"jobs.benchmark.{name}"), name)
    sys.exit(launch(BENCHMARKS[name], measure, f"jobs.benchmark {name}", sys.argv[2:]))
