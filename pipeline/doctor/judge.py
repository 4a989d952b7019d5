"""Judges what was found out: pure, facts in, findings out, each with its remedy.

A fault is what would end, hang or spoil a run, make it cost much more, or let others in; a warning is what may.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import DoctorConfig
from pipeline.doctor.access import (
    find_authentication,
    find_clocks,
    find_conditions,
    find_dashboard,
    find_model,
    find_reach,
    find_source,
    find_table,
    find_variables,
)
from pipeline.doctor.computing import (
    find_cpus,
    find_disk,
    find_gpus,
    find_object_store,
    find_silent,
    find_versions,
)
from pipeline.doctor.facts import Facts
from pipeline.doctor.finding import Finding, merged

# Tried out here before a run knows its actors; what nodes are asked has the question's name alone.
PLANNED = ("plan here", "model here", "source here", "store here", "table here")


@dataclass(frozen=True)
class Check:
    """Something that can be wrong."""

    name: str
    about: str  # what holds if nothing is found
    needs: tuple[str, ...]  # questions without whose answers nothing can be said
    find: Callable[[Facts, DoctorConfig], Iterator[Finding]]


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what was looked at and found in order."""

    nodes: int
    findings: tuple[Finding, ...]
    fine: dict[str, str]  # what holds, by check
    unknown: tuple[str, ...]  # checks with nothing found, but not everything known

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that a run should not start with."""
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    def as_json(self) -> dict[str, Any]:
        """Give it in JSON's types."""
        return asdict(self)


def judge(facts: Facts, config: DoctorConfig) -> Diagnosis:
    """Say what is wrong, what is in order, and what is not known."""
    findings: list[Finding] = []
    fine: dict[str, str] = {}
    unknown: list[str] = []
    failed = {f"{question} here" for question in facts.here.failures}
    failed |= {question for node in facts.nodes for question in node.failures}
    failed |= {"machine", "model", "store", "source"} if "clock" in failed else set()
    for check in CHECKS:
        found = merged(check.find(facts, config))
        findings += found
        if found:
            continue
        if failed.intersection(check.needs):
            unknown.append(check.name)
        else:
            fine[check.name] = check.about
    return Diagnosis(len(facts.nodes), tuple(findings), fine, tuple(unknown))


CHECKS = (
    Check("answers", "every node answers", (), find_silent),
    Check("versions", "Python and packages are the same everywhere", ("machine",), find_versions),
    Check("gpus", "torch computes on all that are declared, or none are wanted", ("machine",), find_gpus),
    Check("cpus", "actors leave CPUs for reads", PLANNED, find_cpus),
    Check("object store", "in shared memory, and large enough", ("machine", *PLANNED), find_object_store),
    Check("conditional writes", "of two writers one wins", ("store here",), find_conditions),
    Check("clocks", "nodes and this machine agree, and the store if it tells", ("clock", "store here"), find_clocks),
    Check("model", "the same on every node", ("model", "model here"), find_model),
    Check("disk", "room to spill, to write and to cache", ("machine", *PLANNED), find_disk),
    Check("authentication", "nothing beyond loopback without a token", ("machine",), find_authentication),
    Check("dashboard", "takes no job from elsewhere without a token", ("machine",), find_dashboard),
    Check("environment", "no variable that makes Ray unsafe", ("machine",), find_variables),
    Check("reach", "store and source, from every node", ("store", "source", "store here", "source here"), find_reach),
    Check("source", "shards and columns as the config says", ("source here",), find_source),
    Check("table", "free, and of this config", PLANNED[1:], find_table),
)
