"""Ray, started here or joined where it runs, and how its processors are shared out.

In: nothing, or a cluster's address in RAY_ADDRESS (`ray job submit` sets it). Out: a connected process, and the sizes
of the actor pools. Knows nothing of images.
"""

import logging
import os
import sys
from dataclasses import dataclass

import ray
from ray.data import DataContext

from pipeline.errors import InputError
from pipeline.machine import available_cpus

# Actors are placed before tasks, so pools that take every logical CPU leave none for the reads that feed them and hang
# (Ray issue 44687). Actors here ask for little and tasks for a quarter; four logical CPUs are always enough.
MIN_LOGICAL_CPUS = 4
TASK_CPUS = 0.25

# Parquet from strangers could run code through these (CVE-2026-41486 and its kin).
UNSAFE_VARIABLES = (
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
)


@dataclass(frozen=True)
class Pools:
    """How many actors of each kind, and what each asks of Ray."""

    readers: int
    preprocessors: int
    preprocessor_cpus: float
    encoders: int
    encoder_gpus: float
    encoder_threads: int | None
    writers: int


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; nothing if connected already.

    Raises:
        InputError: an environment variable is set that lets Parquet files run code.
    """
    unsafe = [name for name in UNSAFE_VARIABLES if os.environ.get(name)]
    if unsafe:
        raise InputError(f"environment: {', '.join(unsafe)} lets Parquet files run code; unset it")
    if not ray.is_initialized():
        options = {} if os.environ.get("RAY_ADDRESS") else _local_options()
        ray.init(log_to_driver=True, logging_level=logging.WARNING, **options)
    context = DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False


def pools() -> Pools:
    """Share the cluster out between decoding and encoding.

    With GPUs: an encoder on each, and on every CPU but one in eight a preprocessor. Without: on each node an encoder
    that computes with all its CPUs, beside one preprocessor for every four CPUs: decoding a 640 x 480 JPEG takes a
    quarter of the time of encoding it with ViT-B-32 in bf16, and less than that in float32. Readers wait for storage
    more than for processors; but each is a process that takes two CPU seconds to start, so there are few.

    Raises:
        InputError: there is no CPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise InputError("cluster: no node has a whole CPU; wanted at least one with four")
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        preprocessors = max(1, sum(cpus) - max(2, sum(cpus) // 8))
        preprocessor_cpus = min(1.0, sum(cpus) / 2 / preprocessors)
        return Pools(max(2, preprocessors // 2), preprocessors, preprocessor_cpus, gpus, 1.0, None, gpus)
    # A small machine claims more logical CPUs than it has (MIN_LOGICAL_CPUS); threads are for those it has.
    cores = min(cpus[0], available_cpus()) if len(cpus) == 1 else max(cpus)
    preprocessors = sum(max(1, min(count, cores) // 4) for count in cpus)
    return Pools(2 * len(cpus), preprocessors, 0.5, len(cpus), 0.0, cores, len(cpus))


def _local_options() -> dict[str, object]:
    return {
        "num_cpus": max(MIN_LOGICAL_CPUS, available_cpus()),
        "include_dashboard": False,
    }
