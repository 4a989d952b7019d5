"""Ray, started here or joined where it runs, and how its processors are shared out.

In: nothing, or a cluster's address in RAY_ADDRESS (`ray job submit` sets it). Out: a connected process, and the sizes
of the actor pools. Knows nothing of images.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.errors import IncompleteError, InputError, RunError, storage_failed
from pipeline.filesystem import STORE_ERRORS
from pipeline.machine import available_cpus
from pipeline.stopping import alive

logger = logging.getLogger(__name__)

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


HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"  # makes Serve bind every address, whatever the host says

# Ray's own word for full disks and for objects that are lost with the node that held them.
RAY_STORAGE_ERRORS = (
    ray.exceptions.OutOfDiskError,
    ray.exceptions.ObjectStoreFullError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.LocalRayletDiedError,
)

# Rows that travel together: on a CPU small, so that encoding starts a second after decoding; more where many encoders
# share one driver, which spends some ms on each block (jobs/BENCHMARKS.md, scaling); on a GPU its largest batch.
CPU_BLOCK_ROWS, GPU_BLOCK_ROWS = 128, 1024
MIN_BLOCK_ROWS = 16
# Rows count as done when they are written: with ViT-B-32, which does 16 a second on a CPU, every half a minute.
FILE_ROWS_PER_CPU = 512
# Blocks in flight for each actor and reader: the one it works on, the one it makes, and one waiting on either side.
BLOCKS_IN_FLIGHT = 4
STORE_SHARE = 0.5  # of Ray's object store that blocks may fill; Ray spills to disk when it is full
WAIT_S = 10.0  # between signs of life while nodes are waited for
LARGE_IMAGE = 256 << 10  # bytes; a JPEG of a megapixel or so, which takes 10 ms to decode
THREADS_PER_ENCODER = 16  # beyond these a batch's matrices are too small to share out further


@dataclass(frozen=True)
class Pools:
    """How many actors of each kind, what each asks of Ray, and what is between them."""

    readers: int
    fetchers: int
    preprocessors: int
    preprocessor_cpus: float
    encoders: int
    encoder_gpus: float
    encoder_threads: int | None
    writers: int
    write_rows: int  # that are gathered for one file
    block_rows: int
    in_flight_bytes: int  # of all blocks between the steps


@dataclass(frozen=True)
class Request:
    """What a job needs to know its pools by."""

    row_bytes: int  # of one row with its pixels
    written_bytes: int  # of one row with its vector
    unit_rows: int
    picture_bytes: int  # that decoding one picture may take
    image_bytes: int | None  # of one image as it is stored, in the mean; None: not known
    fetches: bool
    threads: int | None = None  # of one encoder on CPUs; None: up to THREADS_PER_ENCODER
    memory_budget: int | None = None  # bytes on each node, beside the model and Ray's own processes


def start_ray(address: str | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; nothing if connected already.

    Args:
        address: of a cluster, in place of RAY_ADDRESS.

    Raises:
        InputError: an environment variable is set that lets Parquet files run code, or there is no such cluster.
    """
    unsafe = [name for name in UNSAFE_VARIABLES if os.environ.get(name)]
    if unsafe:
        raise InputError(f"environment: {', '.join(unsafe)} lets Parquet files run code; unset it")
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS") or None  # which may be set to nothing
        options = _local_options() if address is None else {"address": address}
        ours = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=True, logging_level=logging.WARNING, **options)
        except ConnectionError as error:
            raise InputError(f"Ray at {address or 'this machine'} cannot be reached: {error}") from error
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray's own aborts the process after three seconds
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts rows that are written
    context.print_on_execution_start = False


def await_resources(gpus: int, cpus: int, timeout_s: float) -> None:
    """Ask for what a run wants and wait until all of it is there and free: an autoscaler starts nodes for it.

    A placement group says what is wanted, and ends with the process that made it, however that ends.

    Raises:
        IncompleteError: it was not there in time.
    """
    bundles = [{"GPU": 1.0}] * gpus + [{"CPU": 1.0}] * cpus
    if not bundles:
        return
    logger.info("waiting_for_gpus=%d cpus=%d timeout_s=%.0f", gpus, cpus, timeout_s)
    wanted = placement_group(bundles)
    try:
        ends = time.monotonic() + timeout_s
        while not wanted.wait(min(WAIT_S, timeout_s)) and time.monotonic() < ends:
            alive()  # to wait for machines is no hang
        if not wanted.wait(0):
            free = ray.available_resources()
            raise IncompleteError(
                f"cluster: {free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} CPUs are free after {timeout_s:g} s; "
                f"wanted {gpus} and {cpus} (wait.gpus, wait.cpus); run the same command again"
            )
    finally:
        remove_placement_group(wanted)


def nodes() -> list[dict[str, float]]:
    """Give what each node of the cluster has; Ray lists those too that have left."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def totals() -> dict[str, float]:
    """Count the cluster's nodes and what they have together, without what only names a node."""
    resources = ray.cluster_resources().items()
    return {"nodes": float(len(nodes())), **{name: count for name, count in resources if not name.startswith("node:")}}


def pools(request: Request) -> Pools:
    """Share the cluster out between decoding and encoding, within a budget of memory.

    With GPUs: an encoder on each, and on every CPU but one in eight a preprocessor. Without: on each node encoders of
    at most 16 threads, which together compute with all its CPUs, beside one preprocessor for every four CPUs: decoding
    a 640 x 480 JPEG takes a tenth to a quarter of the CPU time of encoding it with ViT-B-32. Where images are larger
    than LARGE_IMAGE, or of unknown size, a preprocessor for every CPU: decoding may be what takes longest.
    Readers wait for storage more than for processors; but each is a process that takes two CPU seconds to start, so
    there are few.

    Raises:
        InputError: there is no CPU, too few for the steps to run beside each other, or too little memory.
    """
    workers = [node for node in nodes() if node.get("CPU", 0) >= 1]
    if not workers:
        raise InputError("cluster: no node has a whole CPU; wanted at least one with four")
    return _fitted_to_memory(_shares(workers, request), workers, request)


def decoders_of(cpus: int) -> int:
    """Say how many of these CPUs decode where there are GPUs: all but one in eight, which read, write and feed them."""
    return max(1, cpus - max(2, cpus // 8))


def get(results: Any) -> Any:  # a reference or several, to whatever the tasks gave
    """Do as ray.get; an error of ours that a task raised is raised as it was."""
    try:
        return ray.get(results)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RunError):
            raise error.cause from error
        raise


def named(error: Exception) -> RunError | None:
    """Name what ended work in Ray, if a person can act on it: storage that fails, memory, a hang, our own errors."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, RunError):
            return cause
    for cause in causes:
        if isinstance(cause, (*STORE_ERRORS, *RAY_STORAGE_ERRORS)):
            return storage_failed(cause)
        if isinstance(cause, ExecutionTimeoutError):
            return IncompleteError(f"nothing has moved: {cause}; run the same command again")
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return IncompleteError(f"a node ran out of memory; ask for a smaller --memory_budget: {cause}")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it came from: Ray's own hold the task's, which hold what was raised there."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [getattr(one, "cause", None), one.__cause__, one.__context__]


def _shares(nodes: list[dict[str, float]], request: Request) -> Pools:
    """Count actors by CPUs and GPUs alone."""
    cpus = [int(node["CPU"]) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        preprocessors = decoders_of(sum(cpus))
        preprocessor_cpus = min(1.0, sum(cpus) / 2 / preprocessors)
        readers, encoders, threads, block_rows = max(2, preprocessors // 2), gpus, None, GPU_BLOCK_ROWS
        write_rows = request.unit_rows
    else:
        # A small machine claims more logical CPUs than it has (MIN_LOGICAL_CPUS); threads are for those it has.
        cores = [min(cpus[0], available_cpus())] if len(cpus) == 1 else cpus
        threads = request.threads or min(THREADS_PER_ENCODER, max(cores))
        encoders = sum(-(-count // threads) for count in cores)
        threads = request.threads or max(count // -(-count // threads) for count in cores)
        is_large = request.image_bytes is None or request.image_bytes > LARGE_IMAGE
        preprocessors = sum(max(1, count if is_large else count // 4) for count in cores)
        preprocessor_cpus = min(0.5, sum(cpus) / 2 / preprocessors)
        readers, block_rows = 2 * len(cpus), CPU_BLOCK_ROWS * min(8, encoders)
        write_rows = min(request.unit_rows, FILE_ROWS_PER_CPU * sum(cores))
    fetchers = readers if request.fetches else 0
    # Actors are placed first; what is left must do for a read and a write, or nothing ever moves.
    wanted = preprocessors * preprocessor_cpus + (fetchers + 2) * TASK_CPUS
    if wanted > sum(cpus):
        raise InputError(
            f"cluster: {sum(cpus)} CPUs; wanted at least {wanted:g} for the steps to run beside each other"
        )
    return Pools(
        readers=readers,
        fetchers=fetchers,
        preprocessors=preprocessors,
        preprocessor_cpus=preprocessor_cpus,
        encoders=encoders,
        encoder_gpus=1.0 if gpus else 0.0,
        encoder_threads=threads,
        writers=max(1, gpus or len(cpus)),
        write_rows=write_rows,
        block_rows=block_rows,
        in_flight_bytes=0,
    )


def _fitted_to_memory(shares: Pools, nodes: list[dict[str, float]], request: Request) -> Pools:
    """Take preprocessors away, then rows from blocks, until what may be in memory at once is within the budget."""
    store_bytes = int(STORE_SHARE * sum(node.get("object_store_memory", 0) for node in nodes))
    preprocessors = shares.preprocessors
    if request.memory_budget is not None:
        budget = request.memory_budget * len(nodes)
        preprocessors = min(preprocessors, request.memory_budget // 2 // request.picture_bytes * len(nodes))
        if preprocessors == 0:
            raise InputError(
                f"memory_budget: {request.memory_budget} bytes a node; wanted at least {2 * request.picture_bytes}, "
                "half of it for one picture of preprocess.max_image_pixels: lower that"
            )
        store_bytes = min(store_bytes, budget - preprocessors * request.picture_bytes)
    actors = shares.readers + shares.fetchers + preprocessors + shares.encoders
    # What a file is gathered from counts as the encoders' output, and must never be all that they may have.
    file_row_bytes = BLOCKS_IN_FLIGHT * shares.writers * request.written_bytes
    write_rows = min(shares.write_rows, max(MIN_BLOCK_ROWS, store_bytes // 2 // file_row_bytes))
    file_bytes, block_row_bytes = write_rows * file_row_bytes, BLOCKS_IN_FLIGHT * actors * request.row_bytes
    block_rows = shares.block_rows
    while block_rows > MIN_BLOCK_ROWS and block_rows * block_row_bytes + file_bytes > store_bytes:
        block_rows //= 2
    in_flight_bytes = block_rows * block_row_bytes + file_bytes
    if request.memory_budget is not None and in_flight_bytes > store_bytes:  # without one, Ray spills to disk
        raise InputError(
            f"memory: {actors} actors with {BLOCKS_IN_FLIGHT} blocks of {block_rows} rows each are {in_flight_bytes} "
            f"bytes; memory_budget leaves {store_bytes}"
        )
    return replace(
        shares,
        preprocessors=preprocessors,
        write_rows=write_rows,
        block_rows=block_rows,
        in_flight_bytes=in_flight_bytes,
    )


def _local_options() -> dict[str, object]:
    return {
        "address": "local",  # not to join a cluster that happens to run on this machine
        "num_cpus": max(MIN_LOGICAL_CPUS, available_cpus()),
        "include_dashboard": False,
    }
