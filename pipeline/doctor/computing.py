"""Whether nodes can compute what a run asks of them: software, processors, memory, disks.

Pure: facts in, findings out.
"""

from collections.abc import Iterator

from pipeline.compute import MIN_LOGICAL_CPUS, STORE_SHARE, TASK_CPUS, Pools
from pipeline.config import DoctorConfig
from pipeline.doctor.facts import Facts
from pipeline.doctor.finding import HERE, Finding, answered, size_of

SHARED_MEMORY = "/dev/shm"
SPILL_SHARE = 0.95  # of a disk; past it Ray spills no more (local_fs_capacity_threshold)
CACHE_BYTES = 1 << 30  # less free than this is no room for what is kept of columns and of trials


def find_silent(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find nodes that do not answer."""
    for node in facts.nodes:
        for question in ("clock", "machine"):
            if question in node.failures:
                yield Finding(
                    "fault", "answers", node.name, f"{node.failures[question]} ({question})",
                    "look at its raylet and worker logs; it must run tasks, with this code and the lock's packages",
                )  # fmt: skip


def find_versions(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find software that is another than here: other vectors, or blocks that cannot be read."""
    for node, machine in answered(facts):
        other = {name: there for name, there in machine.versions.items() if there != facts.here.versions.get(name)}
        if other:
            said = ", ".join(f"{name} {there} (here {facts.here.versions.get(name)})" for name, there in other.items())
            yield Finding(
                "fault", "versions", node.name, f"has {said}",
                "run one image, or install requirements.lock, on every node and where jobs are started",
            )  # fmt: skip


def find_gpus(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find GPUs that encoders would wait for, or be placed on and not see; all pass where min_gpus is 0."""
    if config.min_gpus == 0:
        return
    for node, machine in answered(facts):
        if machine.gpus is not None and machine.gpus < int(node.gpus):
            yield Finding(
                "fault", "gpus", node.name,
                f"declares {node.gpus:g} GPUs, torch computes on {machine.gpus}: encoders there would use CPUs"
                + (f" ({machine.gpu_error})" if machine.gpu_error else ""),
                "mend driver, container runtime or torch build; --num-gpus as many as there are; --min_gpus 0 where "
                "they are only declared",
            )  # fmt: skip
    seen = sum(machine.gpus or 0 for _, machine in answered(facts))
    if seen < (config.min_gpus or 0):
        yield Finding(
            "fault", "gpus", "cluster", f"{seen} GPUs; wanted {config.min_gpus}",
            "wait for GPU nodes, or add them; on none of a kind, look at quotas and taints; or lower --min_gpus",
        )  # fmt: skip


def find_cpus(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find nodes and plans on which actors would leave no CPU for the reads that feed them."""
    for node in facts.nodes:
        if 0 < node.cpus < MIN_LOGICAL_CPUS:
            yield Finding(
                "fault", "cpus", node.name,
                f"{node.cpus:g} logical CPUs; wanted {MIN_LOGICAL_CPUS}, or actors can leave none for reads, for ever",
                f"start it with --num-cpus {MIN_LOGICAL_CPUS} or more, or with 0 to keep work off it",
            )  # fmt: skip
    if "plan" in facts.here.failures:
        yield Finding(
            "fault", "cpus", HERE, facts.here.failures["plan"],
            f"add nodes, or give each --num-cpus {MIN_LOGICAL_CPUS} at least; or see to the --memory_budget it names",
        )  # fmt: skip
    if (pools := facts.here.pools) is None:
        return
    cpus, wanted = sum(node.cpus for node in facts.nodes), wanted_cpus(pools)
    if wanted > cpus:
        yield Finding(
            "fault", "cpus", "cluster", f"actors and the reads that feed them want {wanted:g} CPUs of {cpus:g}",
            "add nodes, or logical CPUs",
        )  # fmt: skip
        return
    free = {"CPU": wanted, "GPU": pools.encoders * pools.encoder_gpus}
    for name, count in free.items():
        if count > facts.free.get(name, 0.0):
            yield Finding(
                "warning", "cpus", "cluster",
                f"other work leaves {facts.free.get(name, 0.0):g} {name}s free; a run waits until it has {count:g}",
                "let it end, or add nodes; `ray status` says what holds them",
            )  # fmt: skip


def wanted_cpus(pools: Pools) -> float:
    """Count the CPUs that all actors take, and one read and one write beside them."""
    return pools.preprocessors * pools.preprocessor_cpus + (pools.fetchers + 2) * TASK_CPUS


def find_object_store(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find object stores that are too small for what is in flight, or do not lie in memory."""
    pools, total_bytes = facts.here.pools, sum(node.object_store_bytes for node in facts.nodes)
    if pools is not None and pools.in_flight_bytes > STORE_SHARE * total_bytes:
        yield Finding(
            "fault", "object store", "cluster",
            f"{size_of(total_bytes)} in all; a run keeps {size_of(pools.in_flight_bytes)} in flight, and may fill "
            f"{STORE_SHARE:.0%} of it before Ray spills to disk",
            f"start nodes with --object-store-memory {int(pools.in_flight_bytes / STORE_SHARE / len(facts.nodes))} "
            "at least, each",
        )  # fmt: skip
    for node, machine in answered(facts):
        if machine.objects.folder != SHARED_MEMORY:
            yield Finding(
                "fault", "object store", node.name,
                f"lies in {machine.objects.folder}, which is no shared memory: every block goes through a disk",
                f"give {SHARED_MEMORY} more than --object-store-memory (an emptyDir of medium Memory, --shm-size)",
            )  # fmt: skip
        elif machine.objects.total_bytes < node.object_store_bytes:
            yield Finding(
                "fault", "object store", node.name,
                f"{size_of(node.object_store_bytes)} in a {SHARED_MEMORY} of {size_of(machine.objects.total_bytes)}: a "
                "process that writes past its end is killed",
                f"give {SHARED_MEMORY} more, or --object-store-memory less",
            )  # fmt: skip


def find_disk(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find disks that would fill."""
    in_flight_bytes = facts.here.pools.in_flight_bytes if facts.here.pools else 0
    for node, machine in answered(facts):
        spill_bytes = int(machine.spill.free_bytes - (1 - SPILL_SHARE) * machine.spill.total_bytes)
        if spill_bytes < in_flight_bytes or spill_bytes <= 0:
            yield Finding(
                "fault", "disk", node.name,
                f"{size_of(machine.spill.free_bytes)} free of {size_of(machine.spill.total_bytes)} at "
                f"{machine.spill.folder}; Ray spills there up to {SPILL_SHARE:.0%} full, a run up to "
                f"{size_of(in_flight_bytes)}",
                "free space there, or start Ray with --temp-dir on another disk",
            )  # fmt: skip
        if machine.store is not None and machine.store.free_bytes < facts.here.output_bytes:
            yield Finding(
                "fault", "disk", node.name,
                f"{size_of(machine.store.free_bytes)} free at {machine.store.folder}; the rows to embed take about "
                f"{size_of(facts.here.output_bytes)}",
                "free space there, or put the store on a larger disk",
            )  # fmt: skip
        if machine.cache.free_bytes < CACHE_BYTES:
            yield Finding(
                "warning", "disk", node.name,
                f"{size_of(machine.cache.free_bytes)} free at {machine.cache.folder}; columns are kept there",
                "free space there, or set XDG_CACHE_HOME",
            )  # fmt: skip
