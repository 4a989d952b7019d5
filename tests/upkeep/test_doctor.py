"""What the doctor makes of facts; and what a machine says of itself, where that can be had on any."""

import ipaddress
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import compute
from pipeline.compute import HA_PROXY, Pools
from pipeline.config import DoctorConfig, SourceConfig
from pipeline.doctor import machine
from pipeline.doctor.facts import Disk, Facts, Machine, Node, Trial
from pipeline.doctor.finding import merged
from pipeline.doctor.judge import CHECKS, Diagnosis, judge
from pipeline.doctor.trial import try_out
from pipeline.errors import InputError
from pipeline.lease import EXPIRES_S
from pipeline.store import Store
from tests.conftest import DEMO_MODEL, encoded, write_shard

GIB = 1 << 30
VERSIONS = {"python": "3.11", "ray": "2.60.0", "pillow": "12.0"}
MACHINE = Machine(
    versions=VERSIONS,
    gpus=None,
    gpu_error="",
    objects=Disk("/dev/shm", 8 * GIB, 8 * GIB),
    spill=Disk("/tmp/ray/session", 100 * GIB, 200 * GIB),
    cache=Disk("/root/.cache/rayclip", 100 * GIB, 200 * GIB),
    store=None,
    variables={},
    asks_token=True,
    exposed={"raylet": "10.0.0.1:4000"},
)
HEAD = Node("head (00)", True, 8.0, 0.0, 4 * GIB, 0.01, MACHINE, "space")
WORKER = replace(HEAD, name="worker (01)", is_head=False)
POOLS = Pools(
    readers=4, fetchers=0, preprocessors=4, preprocessor_cpus=0.5, encoders=2, encoder_gpus=0.0, encoder_threads=8,
    writers=2, write_rows=1024, block_rows=128, in_flight_bytes=2 * GIB,
)  # fmt: skip
HERE = Trial(versions=VERSIONS, model="m", space="space", shard="a.parquet", pools=POOLS, output_bytes=10 * GIB)
FACTS = Facts((HEAD, WORKER), {"CPU": 16.0}, "10.0.0.1:8265", HERE)


def config(**fields: Any) -> DoctorConfig:
    return DoctorConfig(
        **{"store": "s3://bucket/store", "model": "m", "source": SourceConfig(name="s", path="a"), **fields}
    )


def on_worker(**fields: Any) -> Facts:
    """A cluster whose worker says something else of itself."""
    return replace(FACTS, nodes=(HEAD, replace(WORKER, machine=replace(MACHINE, **fields))))


def with_worker(**fields: Any) -> Facts:
    """A cluster whose worker is listed otherwise."""
    return replace(FACTS, nodes=(HEAD, replace(WORKER, **fields)))


def tried(**fields: Any) -> Facts:
    """A cluster on which something else came of trying it out here."""
    return replace(FACTS, here=replace(HERE, **fields))


def found(facts: Facts, **fields: Any) -> list[tuple[str, str, str]]:
    return [(one.severity, one.check, one.where) for one in judge(facts, config(**fields)).findings]


def test_nothing_is_found_where_nothing_is_wrong_and_every_check_says_so():
    judged = judge(FACTS, config())
    assert judged == Diagnosis(2, (), {check.name: check.about for check in CHECKS}, ())


PLANTED: dict[str, tuple[Facts, dict[str, Any], tuple[str, str, str]]] = {
    "another version of Pillow": (
        on_worker(versions={**VERSIONS, "pillow": "11.3"}), {}, ("fault", "versions", "worker (01)")),
    "a package that is missing there": (
        on_worker(versions={**VERSIONS, "pillow": "none"}), {}, ("fault", "versions", "worker (01)")),
    "fewer GPUs than wanted": (FACTS, {"min_gpus": 1}, ("fault", "gpus", "cluster")),
    "a plan that cannot be made": (
        tried(pools=None, failures={"plan": "cluster: 1 CPUs; wanted at least 1.5"}), {}, ("fault", "cpus", "here")),
    "actors that take every CPU": (
        tried(pools=replace(POOLS, preprocessors=16, preprocessor_cpus=1.0)), {}, ("fault", "cpus", "cluster")),
    "CPUs that others hold": (replace(FACTS, free={"CPU": 2.0}), {}, ("warning", "cpus", "cluster")),
    "an object store too small for what is in flight": (
        tried(pools=replace(POOLS, in_flight_bytes=5 * GIB)), {}, ("fault", "object store", "cluster")),
    "shared memory smaller than the object store": (
        on_worker(objects=Disk("/dev/shm", 64 << 20, 64 << 20)), {}, ("fault", "object store", "worker (01)")),
    "an object store on a disk": (
        on_worker(objects=Disk("/tmp", 99 * GIB, 99 * GIB)), {}, ("fault", "object store", "worker (01)")),
    "a store without conditions": (
        tried(has_conditions=False), {}, ("fault", "conditional writes", "s3://bucket/store")),
    "a clock that is ahead": (with_worker(clock_offset_s=61.0), {}, ("fault", "clocks", "worker (01)")),
    "a clock that is behind": (with_worker(clock_offset_s=-61.0), {}, ("fault", "clocks", "worker (01)")),
    "a store's clock": (tried(store_clock_offset_s=900.0), {}, ("fault", "clocks", "store")),
    "no model on a node": (
        with_worker(space=None, failures={"model": "no such folder"}), {}, ("fault", "model", "worker (01)")),
    "another model on a node": (with_worker(space="other"), {}, ("fault", "model", "worker (01)")),
    "no room to spill": (
        on_worker(spill=Disk("/tmp", 11 * GIB, 200 * GIB)), {}, ("fault", "disk", "worker (01)")),
    "no room for the rows": (
        on_worker(store=Disk("/store", 9 * GIB, 200 * GIB)), {}, ("fault", "disk", "worker (01)")),
    "no room to cache": (on_worker(cache=Disk("/cache", GIB // 2, GIB)), {}, ("warning", "disk", "worker (01)")),
    "no token on what others reach": (on_worker(asks_token=False), {}, ("fault", "authentication", "worker (01)")),
    "a variable that lets Parquet run code": (
        on_worker(variables={compute.UNSAFE_VARIABLES[0]: "0"}), {}, ("fault", "environment", "worker (01)")),
    "a variable that opens Serve": (
        on_worker(variables={HA_PROXY: "1"}), {}, ("warning", "environment", "worker (01)")),
    "a store that a node does not reach": (
        with_worker(failures={"store": "NoCredentialsError"}), {}, ("fault", "reach", "worker (01)")),
    "a source that a node does not reach": (
        with_worker(failures={"source": "FileNotFoundError"}), {}, ("fault", "reach", "worker (01)")),
    "a shard that is left out": (tried(unreadable={"b.parquet": "cut short"}), {}, ("warning", "source", "b.parquet")),
    "a lease that another holds": (tried(writer="process 7 on x"), {}, ("fault", "table", "here")),
    "a table of another space": (tried(failures={"table": "has space A"}), {}, ("fault", "table", "here")),
    "no model here": (
        replace(
            tried(space=None, pools=None, failures={"model": "no such folder"}),
            nodes=(replace(HEAD, space=None), replace(WORKER, space=None)),
        ),
        {}, ("fault", "model", "here")),
    "no store here": (tried(pools=None, failures={"store": "denied"}), {}, ("fault", "reach", "here")),
    "no source here": (tried(pools=None, failures={"source": "no files"}), {}, ("fault", "source", "here")),
    "a node that is silent": (
        with_worker(machine=None, space=None, clock_offset_s=None, failures={"clock": "no answer in time"}),
        {}, ("fault", "answers", "worker (01)")),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_is_found_alone_and_with_its_remedy(fault: str):
    facts, fields, wanted = PLANTED[fault]
    assert found(facts, **fields) == [wanted]
    judged = judge(facts, config(**fields))
    assert all(len(one.what) > 5 and len(one.remedy) > 5 for one in judged.findings)
    assert wanted[1] not in judged.fine
    assert bool(judged.faults) == (wanted[0] == "fault")


def test_four_logical_cpus_are_enough_and_none_is_no_fault():
    assert found(with_worker(cpus=4.0)) == []
    assert found(with_worker(cpus=0.0)) == []  # a head that takes no work
    assert found(with_worker(cpus=3.0)) == [("fault", "cpus", "worker (01)")]
    assert found(with_worker(cpus=0.5)) == [("fault", "cpus", "worker (01)")]


def test_gpus_that_are_only_declared_pass_where_none_are_wanted():
    declared = replace(on_worker(gpus=0, gpu_error="no driver"), free={"CPU": 16.0, "GPU": 2.0})
    declared = replace(declared, nodes=(HEAD, replace(declared.nodes[1], gpus=2.0)))
    assert found(declared, min_gpus=0) == []
    assert found(declared) == [("fault", "gpus", "worker (01)")]
    assert found(declared, min_gpus=1) == [("fault", "gpus", "worker (01)"), ("fault", "gpus", "cluster")]
    some = replace(declared, nodes=(HEAD, replace(declared.nodes[1], machine=replace(MACHINE, gpus=1))))
    assert found(some) == [("fault", "gpus", "worker (01)")]
    assert found(some, min_gpus=1) == [("fault", "gpus", "worker (01)")]
    real = replace(declared, nodes=(HEAD, replace(declared.nodes[1], machine=replace(MACHINE, gpus=2))))
    assert found(real, min_gpus=2) == []


def test_plans_of_compute_itself_always_leave_cpus_for_reads(monkeypatch: pytest.MonkeyPatch):
    request = compute.Request(150_000, 3072, 8192, 1600 << 20, 100_000, fetches=True)
    for cpus in (4, 5, 8, 31, 96):
        for gpus in (0, 1, 8):
            for count in (1, 2, 9):
                resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": 64e9}
                monkeypatch.setattr(compute, "nodes", lambda nodes=[resources] * count: nodes)
                free = {"CPU": float(cpus * count), "GPU": float(gpus * count)}
                nodes = tuple(replace(WORKER, cpus=float(cpus), object_store_bytes=64 * 10**9) for _ in range(count))
                spacious = replace(
                    MACHINE, objects=Disk("/dev/shm", 64 * 10**9, 64 * 10**9), spill=Disk("/t", 10**12, 10**12)
                )
                nodes = tuple(replace(node, machine=spacious) for node in nodes)
                facts = Facts(nodes, free, None, replace(HERE, pools=compute.pools(request)))
                assert judge(facts, config()).findings == ()


def test_a_dashboard_is_open_only_if_others_reach_it_and_no_token_is_wanted():
    without = replace(MACHINE, asks_token=False, exposed={})
    open_head = replace(FACTS, nodes=(replace(HEAD, machine=without), WORKER))
    assert found(open_head) == [("fault", "dashboard", "head")]
    for address in ("127.0.0.1:8265", "localhost:8265", "[::1]:8265", None):
        assert found(replace(open_head, dashboard=address)) == []
    assert found(FACTS) == []


def test_without_a_token_loopback_is_safe():
    assert found(on_worker(asks_token=False, exposed={})) == []


def test_a_variable_that_says_no_is_one_unless_any_text_means_yes():
    assert found(on_worker(variables={HA_PROXY: "0"})) == []
    for name in compute.UNSAFE_VARIABLES:  # compute.start_ray takes any text for a yes
        assert found(on_worker(variables={name: "0"})) == [("fault", "environment", "worker (01)")]


def test_single_writers_need_no_conditions():
    assert found(tried(has_conditions=False), single_writer=True) == []


def test_clocks_may_differ_by_what_a_lease_bears():
    assert DoctorConfig.model_fields["max_clock_skew_s"].default == EXPIRES_S
    assert found(with_worker(clock_offset_s=59.0)) == []
    assert found(with_worker(clock_offset_s=59.0), max_clock_skew_s=1.0) == [("fault", "clocks", "worker (01)")]


def test_what_is_not_known_is_not_called_fine():
    silent = judge(with_worker(machine=None, space=None, failures={"clock": "no answer in time"}), config())
    assert set(silent.fine) == {"cpus", "conditional writes", "source", "table"}
    no_model = judge(tried(space=None, pools=None, failures={"model": "no such folder"}), config())
    assert {"cpus", "object store", "disk", "table"} <= set(no_model.unknown)
    for judged in (silent, no_model):
        named = {one.check for one in judged.findings} | set(judged.fine) | set(judged.unknown)
        assert named == {check.name for check in CHECKS}


def test_what_holds_of_several_nodes_is_said_once():
    both = replace(FACTS, nodes=tuple(replace(node, cpus=1.0) for node in FACTS.nodes))
    assert found(both)[0] == ("fault", "cpus", "head (00), worker (01)")
    assert merged([]) == []


def test_a_listener_beyond_loopback_is_exposed_and_one_on_loopback_is_not():
    with (
        socket.socket() as here,
        socket.socket() as wide,
        socket.socket(socket.AF_INET6) as six,
        socket.socket() as shut,
    ):
        here.bind(("127.0.0.1", 0))
        wide.bind(("0.0.0.0", 0))
        six.bind(("::", 0))
        shut.bind(("0.0.0.0", 0))
        ports = {"here": here.getsockname()[1], "wide": wide.getsockname()[1], "six": six.getsockname()[1]}
        for one in (here, wide, six):
            one.listen()
        seen = machine.exposed({**ports, "shut": shut.getsockname()[1]})
    assert seen == {"wide": f"0.0.0.0:{ports['wide']}", "six": f"[::]:{ports['six']}"}


def test_loopback_in_the_guise_of_ipv6_is_loopback(tmp_path: Path):
    words = ["00000000", "00000000", ipaddress.ip_address("0.0.255.255"), ipaddress.ip_address("127.0.0.1")]
    packed = "".join(w if isinstance(w, str) else f"{int.from_bytes(w.packed, 'little'):08X}" for w in words)
    table = tmp_path / "tcp6"
    table.write_text(f"  sl  local_address\n   0: {packed}:1F90 {'0' * 32}:0000 0A 00000000:00000000\n")
    assert machine.exposed({"x": 0x1F90}, (str(table),)) == {}


def test_a_machine_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    monkeypatch.setenv("SET", "0")
    monkeypatch.setenv("SET_TO_NOTHING", "")
    variables = ("SET", "SET_TO_NOTHING", "NOT_SET")
    seen = machine.look(machine.Questions(0.0, {}, variables, store=str(tmp_path / "not" / "there")))
    assert (seen.asks_token, seen.variables, seen.gpus) == (True, {"SET": "0"}, None)
    assert seen.store is not None
    assert 0 < seen.store.free_bytes <= seen.store.total_bytes
    assert seen.versions == machine.versions()
    assert "none" not in seen.versions.values()


def test_what_a_raylet_was_started_with_is_read_from_its_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    assert machine.started_with() == {}
    monkeypatch.setenv("RAY_RAYLET_PID", str(os.getpid()))
    assert machine.started_with() != {}


def test_a_folder_of_the_same_name_on_another_machine_is_another_store(tmp_path: Path):
    with pytest.raises(InputError, match="has not what was just written"):
        machine.reach_store(str(tmp_path), ".probe-elsewhere")
    Store(str(tmp_path)).replace(".probe-here", b"x")
    machine.reach_store(str(tmp_path), ".probe-here")
    assert [path.name for path in tmp_path.iterdir()] == [".probe-here"]


def trial(tmp_path: Path, pools: Any, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Trial:
    monkeypatch.setattr("pipeline.doctor.trial.pools_for", pools)
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [encoded(i) for i in range(20)], group_rows=10)
    source = SourceConfig(name="s", path=str(tmp_path / "corpus"), key_column="key", **fields)
    asked = config(store=str(tmp_path / "store"), model=str(DEMO_MODEL), source=source)
    return try_out(asked, Store(asked.store))


def test_trying_out_finds_what_a_run_would_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = trial(tmp_path, lambda *_: POOLS, monkeypatch)
    assert (tried.failures, tried.pools, tried.unreadable, tried.writer) == ({}, POOLS, {}, None)
    assert tried.has_conditions
    assert abs(tried.store_clock_offset_s or 0.0) < 2.0
    assert 20 * 4 < tried.output_bytes < 20 * 8192
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_trying_out_names_what_would_end_a_run_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def too_small(*_: object) -> Pools:
        raise InputError("cluster: 1 CPUs")

    assert trial(tmp_path, too_small, monkeypatch).failures == {"plan": "cluster: 1 CPUs"}
    (tmp_path / "corpus" / "b.parquet").write_bytes(b"no Parquet")
    broken = trial(tmp_path, lambda *_: POOLS, monkeypatch)
    assert list(broken.failures) == ["source"]
    assert "b.parquet cannot be read" in broken.failures["source"]
    left_out = trial(tmp_path, lambda *_: POOLS, monkeypatch, bad_shards="skip")
    assert (left_out.failures, list(left_out.unreadable)) == ({}, [str(tmp_path / "corpus" / "b.parquet")])
