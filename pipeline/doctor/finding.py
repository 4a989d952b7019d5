"""What is found to be wrong, and helpers to say it. Knows no check."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.doctor.facts import Facts, Machine, Node

HERE = "here"  # where the job is started


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    severity: Literal["fault", "warning"]
    check: str
    where: str
    what: str
    remedy: str


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Say once what holds of several nodes."""
    places: dict[tuple[Literal["fault", "warning"], str, str, str], list[str]] = {}
    for one in findings:
        places.setdefault((one.severity, one.check, one.what, one.remedy), []).append(one.where)
    return [
        Finding(severity, check, ", ".join(where), what, remedy)
        for (severity, check, what, remedy), where in places.items()
    ]


def answered(facts: Facts) -> Iterator[tuple[Node, Machine]]:
    """Give the nodes that said what they are."""
    return ((node, node.machine) for node in facts.nodes if node.machine is not None)


def size_of(count: float) -> str:
    """Write bytes as people do."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
