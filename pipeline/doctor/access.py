"""Whether a run gets at what it needs, and nobody else at it: store, source, model, table, clocks, addresses.

Pure: facts in, findings out.
"""

from collections.abc import Iterator

from pipeline.compute import UNSAFE_VARIABLES
from pipeline.config import DoctorConfig
from pipeline.doctor.facts import Facts
from pipeline.doctor.finding import HERE, Finding, answered


def find_conditions(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find a store in which two runs would not see each other."""
    if not facts.here.has_conditions and not config.single_writer:
        yield Finding(
            "fault", "conditional writes", config.store,
            "lets a second writer replace what a first has just created: two runs would not see each other",
            "a store with If-None-Match, or --single_writer where there never are two",
        )  # fmt: skip


def find_clocks(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find clocks by which a lease would seem to run out, or never to."""
    offsets = {node.name: node.clock_offset_s for node in facts.nodes} | {"store": facts.here.store_clock_offset_s}
    for where, offset_s in offsets.items():
        if offset_s is not None and abs(offset_s) > config.max_clock_skew_s:
            yield Finding(
                "fault", "clocks", where,
                f"its clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the one here; leases "
                f"and signed requests bear {config.max_clock_skew_s:.0f} s",
                "synchronise the clocks (chronyc tracking, timedatectl)",
            )  # fmt: skip


def find_model(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find places where the model is missing, or is another."""
    if "model" in facts.here.failures:
        yield Finding("fault", "model", HERE, facts.here.failures["model"], "mend model, or its flags")
    for node in facts.nodes:
        if "model" in node.failures:
            yield Finding(
                "fault", "model", node.name, f"cannot find the model: {node.failures['model']}",
                "put it into a folder or hub cache that every node reaches, or into the image",
            )  # fmt: skip
        elif node.space is not None and node.space != facts.here.space:
            yield Finding(
                "fault", "model", node.name, f"its model is another: space {node.space}, here {facts.here.space}",
                "copy one folder to all nodes, or name a revision; --expected_sha256 pins the weights",
            )  # fmt: skip


def find_reach(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find places from which the store or the source cannot be reached."""
    if "store" in facts.here.failures:
        yield Finding(
            "fault", "reach", HERE, facts.here.failures["store"], "mend the store's address, credentials or rights"
        )
    remedy = "a place that every node reaches, credentials or a role on each, and a way to it through the network"
    for node in facts.nodes:
        for question in ("store", "source"):
            if question in node.failures:
                yield Finding(
                    "fault", "reach", node.name, f"does not reach the {question}: {node.failures[question]}", remedy
                )


def find_source(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find what is wrong with the source itself."""
    if "source" in facts.here.failures:
        yield Finding(
            "fault", "source", HERE, facts.here.failures["source"], "mend the source, or the flags that name it"
        )
    for url, why in facts.here.unreadable.items():
        yield Finding(
            "warning", "source", url, f"cannot be read: {why}; the run leaves it out and ends with status 3",
            "mend or remove it",
        )  # fmt: skip


def find_table(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find what keeps a run off its table."""
    if "table" in facts.here.failures:
        yield Finding(
            "fault", "table", HERE, facts.here.failures["table"], "the config that it was made with, or another --table"
        )
    if facts.here.writer is not None:
        yield Finding(
            "fault", "table", HERE, f"another run writes it: {facts.here.writer}; this one would end with status 4",
            "wait for it, or 60 s after it has died",
        )  # fmt: skip


def find_authentication(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find processes of Ray that run whatever code is sent to them, from elsewhere and without a token."""
    for node, machine in answered(facts):
        if machine.exposed and not machine.asks_token:
            said = ", ".join(f"{name} on {address}" for name, address in sorted(machine.exposed.items()))
            yield Finding(
                "fault", "authentication", node.name,
                f"asks for no token, and binds more than loopback: {said}; whoever reaches it runs code",
                "set RAY_AUTH_MODE=token on every node and client (`ray get-auth-token --generate`)",
            )  # fmt: skip


def find_dashboard(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find a job server that takes jobs from elsewhere without a token."""
    heads = [machine for node, machine in answered(facts) if node.is_head]
    if facts.dashboard is None or not heads or heads[0].asks_token:
        return
    host = facts.dashboard.rpartition(":")[0].strip("[]")
    if host not in ("localhost", "::1") and not host.startswith("127."):
        yield Finding(
            "fault", "dashboard", "head",
            f"dashboard and job server bind {facts.dashboard} and ask for no token; whoever reaches it runs code",
            "start the head with --dashboard-host 127.0.0.1, or set RAY_AUTH_MODE=token",
        )  # fmt: skip


def find_variables(facts: Facts, config: DoctorConfig) -> Iterator[Finding]:
    """Find variables of the environment that make Ray unsafe."""
    for node, machine in answered(facts):
        for name, value in machine.variables.items():
            if name in UNSAFE_VARIABLES:
                yield Finding(
                    "fault", "environment", node.name, f"{name} lets Parquet files run code",
                    "unset it where that node is started",
                )  # fmt: skip
            elif value != "0":
                yield Finding(
                    "warning", "environment", node.name, f"{name} makes Serve bind every address of the machine",
                    "unset it where that node is started, unless the endpoint is to be public",
                )  # fmt: skip
