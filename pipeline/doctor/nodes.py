"""Asks every node of a cluster what a run would meet there: one small actor on each, all at once.

In: a connected Ray, and questions. Out: a `Node` for each. A node that does not answer in time, or cannot, is a fact
like any other.
"""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import DoctorConfig
from pipeline.doctor import machine
from pipeline.doctor.facts import Machine, Node
from pipeline.doctor.machine import Questions
from pipeline.errors import RunError

ROUND_TRIPS = 5  # of which the shortest tells most of a clock
HEAD = "node:__internal_head__"
# What whoever can connect to runs code by, without a token.
PORTS = {"raylet": "NodeManagerPort", "object manager": "ObjectManagerPort", "job agent": "DashboardAgentListenPort"}


class Probe:
    """Answers on the node that it runs on; several questions at once, so that one that hangs is one."""

    def clock(self) -> float:
        """Read the clock."""
        return machine.clock_s()

    def machine(self, asked: Questions) -> Machine:
        """See what there is."""
        return machine.look(asked)

    def model(self, config: DoctorConfig) -> str:
        """Name the model's space."""
        return machine.space(config)

    def store(self, url: str, probe: str) -> None:
        """Read and write the store."""
        machine.reach_store(url, probe)

    def source(self, shard: str) -> None:
        """Open a shard."""
        machine.reach_source(shard)


@dataclass(frozen=True)
class Errand:
    """What nodes are asked to find; None is not asked for, where it is not even found here."""

    config: DoctorConfig  # with the model's name as encoders get it
    has_model: bool
    store: str
    probe: str | None  # a file that was just written into the store
    shard: str | None
    variables: tuple[str, ...]  # of the environment that matter


Key = tuple[str, str]  # a node's id, and a question


def ask_nodes(errand: Errand) -> tuple[Node, ...]:
    """Ask all nodes that are alive; the head comes first."""
    listed = [node for node in ray.nodes() if node["Alive"]]
    listed.sort(key=lambda node: (HEAD not in node["Resources"], node["NodeID"]))
    answer_s = errand.config.answer_s
    probes = {node["NodeID"]: _probe(node["NodeID"]) for node in listed}
    # Nothing else is asked before all processes have started: that takes seconds of every processor.
    answers, failures = _answers({(id_, "clock"): probe.clock.remote() for id_, probe in probes.items()}, answer_s)
    offsets_s: dict[str, float] = {}
    for id_, question in answers:
        try:
            offsets_s[id_] = _clock_offset_s(probes[id_], answer_s)
        except RayError as error:  # it left, or hangs by now
            failures[id_, question] = _said(error)
    asked = (_asked(node, probes[node["NodeID"]], errand) for node in listed if node["NodeID"] in offsets_s)
    more, others = _answers({key: ref for refs in asked for key, ref in refs.items()}, answer_s)
    answers, failures = answers | more, failures | others
    for probe in probes.values():
        ray.kill(probe)
    return tuple(
        Node(
            name=f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})",
            is_head=HEAD in node["Resources"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            clock_offset_s=offsets_s.get(node["NodeID"]),
            machine=answers.get((node["NodeID"], "machine")),
            space=answers.get((node["NodeID"], "model")),
            failures={question: why for (id_, question), why in failures.items() if id_ == node["NodeID"]},
        )
        for node in listed
    )


def dashboard() -> str | None:
    """Give the address of the dashboard and job server as Ray keeps it: that of its node, if it binds any other."""
    address = _internal_kv_get(b"dashboard", namespace=b"dashboard")
    return address.decode() if address else None


def _probe(id_: str) -> Any:  # an actor's handle is untyped
    where = NodeAffinitySchedulingStrategy(id_, soft=False)
    return ray.remote(Probe).options(num_cpus=0, max_concurrency=4, scheduling_strategy=where).remote()


def _asked(node: dict[str, Any], probe: Any, errand: Errand) -> dict[Key, Any]:
    """Send a node its questions; what is not found here is not looked for there."""
    id_, resources = node["NodeID"], node["Resources"]
    ports = {name: node[port] for name, port in PORTS.items() if node[port] > 0}
    if HEAD in resources:
        ports["GCS"] = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    refs = {
        (id_, "machine"): probe.machine.remote(
            Questions(resources.get("GPU", 0.0), ports, errand.variables, errand.store)
        )
    }
    if errand.has_model:
        refs[id_, "model"] = probe.model.remote(errand.config)
    if errand.probe is not None:
        refs[id_, "store"] = probe.store.remote(errand.store, errand.probe)
    if errand.shard is not None:
        refs[id_, "source"] = probe.source.remote(errand.shard)
    return refs


def _answers(refs: dict[Key, Any], answer_s: float) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Wait for answers, and take down why there is none."""
    answers: dict[Key, Any] = {}
    failures: dict[Key, str] = {}
    waiting = list(refs.values())
    ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=answer_s)
    for key, ref in refs.items():
        if ref not in ready:
            failures[key] = f"no answer within {answer_s:g} s"
            continue
        try:
            answers[key] = ray.get(ref)
        except RayTaskError as error:
            failures[key] = _said(error.cause)
        except RayError as error:
            failures[key] = _said(error)
    return answers, failures


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, RunError) else f"{type(error).__name__}: {text}"


def _clock_offset_s(probe: Any, answer_s: float) -> float:
    """Compare a node's clock with ours: at the middle of a round trip they are read at the same time, or nearly.

    Raises:
        RayError: it does not answer any more.
    """
    trips = []
    for _ in range(ROUND_TRIPS):
        before_s = time.time()
        there_s = ray.get(probe.clock.remote(), timeout=answer_s)
        after_s = time.time()
        trips.append((after_s - before_s, there_s - (before_s + after_s) / 2))
    return float(min(trips)[1])
