"""Checks a cluster and a config before a run: finds out, then judges.

In: a `DoctorConfig`. Out: a `Diagnosis`. Writes nothing that stays.
"""

import uuid

import ray

from pipeline import compute
from pipeline.config import DoctorConfig
from pipeline.doctor.facts import Facts
from pipeline.doctor.judge import Diagnosis, judge
from pipeline.doctor.nodes import Errand, ask_nodes, dashboard
from pipeline.doctor.trial import noted, try_out
from pipeline.store import PROBE, Store


def examine(config: DoctorConfig) -> Diagnosis:
    """Say what would stop, slow or expose a run of this config on this cluster.

    Raises:
        InputError: there is no such cluster, or this process's own environment lets Parquet files run code.
    """
    return judge(gather(config), config)


def gather(config: DoctorConfig) -> Facts:
    """Find out all that can be known before a run.

    Raises:
        InputError: as `examine`.
    """
    store = Store(config.store)
    compute.start_ray()
    here = try_out(config, store)
    probe = f"{PROBE}{uuid.uuid4().hex}" if "store" not in here.failures else None
    if probe is not None:
        with noted(here.failures, "store"):
            store.replace(probe, b"doctor")
    try:
        errand = Errand(
            config=config.model_copy(update={"model": here.model}),
            has_model=here.space is not None,
            store=store.url,
            probe=probe,
            shard=here.shard,
            variables=(*compute.UNSAFE_VARIABLES, compute.HA_PROXY),
        )
        nodes = ask_nodes(errand)
    finally:
        if probe is not None:
            store.remove(probe)
    return Facts(nodes=nodes, free=ray.available_resources(), dashboard=dashboard(), here=here)
