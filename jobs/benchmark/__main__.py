"""Measure what is claimed: `python -m jobs.benchmark throughput | parity | hostile | decoding`."""

import sys
from typing import Any

from jobs.benchmark.decoding import decoding
from jobs.benchmark.hostile import hostile
from jobs.benchmark.parity import parity
from jobs.benchmark.throughput import throughput
from jobs.launch import launch
from pipeline.config import DecodingConfig, HostileConfig, ParityConfig, ThroughputConfig

# Any: each pair agrees with itself, which the type of a dictionary cannot say.
BENCHMARKS: dict[str, tuple[Any, Any]] = {
    "throughput": (ThroughputConfig, throughput),
    "parity": (ParityConfig, parity),
    "hostile": (HostileConfig, hostile),
    "decoding": (DecodingConfig, decoding),
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        sys.exit(f"usage: python -m jobs.benchmark {'|'.join(BENCHMARKS)} [flags]; --help after a name lists its flags")
    config, measure = BENCHMARKS[name]
    sys.exit(launch(config, measure, f"jobs.benchmark {name}", sys.argv[2:]))
