"""What was found out about a cluster before a run: facts only, no opinion. Knows nothing of Ray."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every node would import Ray Data
    from pipeline.compute import Pools


@dataclass(frozen=True)
class Disk:
    """A filesystem, as seen from one of its folders."""

    folder: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a process on a node sees of the machine that it runs on."""

    versions: dict[str, str]  # python, then packages
    gpus: int | None  # that torch can compute on; None: not asked, since the node declares none
    gpu_error: str  # what torch said of those that it cannot
    objects: Disk  # where Ray's object store lies
    spill: Disk  # where Ray puts what is too much for that
    cache: Disk
    store: Disk | None  # where rows are written, if that is a disk
    variables: dict[str, str]  # of the environment, those that were asked for and are set
    asks_token: bool  # whether Ray's processes there want its token
    exposed: dict[str, str]  # address by what listens there, of Ray's ports that others than this machine reach


@dataclass(frozen=True)
class Node:
    """A node as the cluster lists it, and its answers; a question that is not in ``failures`` was answered."""

    name: str
    is_head: bool
    cpus: float  # declared, as all that follow
    gpus: float
    object_store_bytes: int
    clock_offset_s: float | None = None  # its clock less ours, half the round trip taken off
    machine: Machine | None = None
    space: str | None = None  # of the model as it is found there
    failures: dict[str, str] = field(default_factory=dict)  # why, by question


@dataclass(frozen=True)
class Trial:
    """What a run does first, tried out from where it would be started; as in `Node`, failures by question."""

    versions: dict[str, str]
    model: str  # by the name that nodes will be given
    space: str | None = None
    shard: str | None = None  # one that can be read
    unreadable: dict[str, str] = field(default_factory=dict)  # why, by shard that is skipped
    pools: "Pools | None" = None  # what a run would start
    output_bytes: int = 0  # of the rows that have no receipt
    has_conditions: bool = True  # the store's writes
    store_clock_offset_s: float | None = None  # its clock less ours; None: it does not say
    writer: str | None = None  # who holds the table's lease
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """All that was found out."""

    nodes: tuple[Node, ...]
    free: dict[str, float]  # resources that nothing holds
    dashboard: str | None  # its address; None: there is none
    here: Trial
