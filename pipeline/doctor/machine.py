"""Questions to one machine, asked by a process that runs on it, with the environment that a run's processes have.

In: what a run needs there. Out: a `Machine`, a space, or the error that a run would meet. Knows nothing of Ray but what
its node process (the raylet) was started with, which Linux tells of the parent of every worker.
"""

import importlib
import ipaddress
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.doctor.facts import Disk, Machine
from pipeline.embedding.record import space_of
from pipeline.errors import InputError
from pipeline.filesystem import open_parquet
from pipeline.machine import cache_folder
from pipeline.store import Store

# Of two builds for different machines the version counts, not the build.
PACKAGES = {
    "ray": ("ray",), "torch": ("torch",), "torchvision": ("torchvision",), "open_clip": ("open_clip_torch",),
    "faiss": ("faiss-gpu", "faiss-cpu"), "pyarrow": ("pyarrow",), "pillow": ("pillow",), "numpy": ("numpy",),
}  # fmt: skip
# In a process of its own: torch takes seconds to import and memory on every GPU that it looks at.
SEE_GPUS = """
import torch
seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
for number in range(seen):
    torch.ones(1, device=f"cuda:{number}").item()
print(seen)
"""
GPU_S = 60.0
LISTENS = "0A"  # Linux, include/net/tcp_states.h


@dataclass(frozen=True)
class Questions:
    """What a node is asked about itself."""

    gpus: float  # that it declares
    ports: dict[str, int]  # of Ray, by what listens there
    variables: tuple[str, ...]  # of the environment
    store: str


def clock_s() -> float:
    """Read this machine's clock."""
    return time.time()


def look(asked: Questions) -> Machine:
    """See what there is on this machine."""
    started = started_with()
    gpus, gpu_error = seen_gpus() if asked.gpus else (None, "")
    store = Store(asked.store)
    return Machine(
        versions=versions(),
        gpus=gpus,
        gpu_error=gpu_error,
        objects=disk(Path(started.get("plasma_directory", "/dev/shm"))),
        spill=disk(Path(started.get("fallback_directory", tempfile.gettempdir()))),
        cache=disk(cache_folder()),
        store=disk(Path(store.root)) if store.is_local else None,
        variables={name: os.environ[name] for name in asked.variables if os.environ.get(name)},
        # Ray sets it for all processes that it starts when it turns authentication on by itself.
        asks_token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        exposed=exposed(asked.ports),
    )


def versions() -> dict[str, str]:
    """Name the versions of what computes vectors, or speaks with other nodes."""
    major, minor, _ = platform.python_version_tuple()
    code = importlib.import_module("pipeline")  # as it runs here, which may lie beside an older one that is installed
    found = {"python": f"{major}.{minor}", "rayclip": str(code.__version__)}
    for name, distributions in PACKAGES.items():
        installed = [_version(distribution) for distribution in distributions]
        found[name] = next((one for one in installed if one is not None), "none")
    return found


def seen_gpus() -> tuple[int, str]:
    """Count the GPUs that torch can compute on, and say why not on more, as far as torch says."""
    environment = {**os.environ, **_visible_gpus()}
    try:
        done = subprocess.run(
            [sys.executable, "-c", SEE_GPUS],
            env={name: value for name, value in environment.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=GPU_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, f"no answer within {GPU_S:.0f} s"
    said = done.stderr.strip().rpartition("\n")[2][:200]
    return (int(done.stdout), said) if done.returncode == 0 else (0, said)


def disk(folder: Path) -> Disk:
    """Measure the disk that a folder lies on, or will."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    return Disk(str(folder), usage.free, usage.total)


def exposed(ports: dict[str, int], tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> dict[str, str]:
    """Name those of some ports on which something listens that can be reached from elsewhere, with the address.

    Nothing where there is no /proc: other systems do not run Ray clusters, but for trying it out.
    """
    listening = [place for table in tables if Path(table).exists() for place in _listening(Path(table).read_text())]
    found = {}
    for name, wanted in ports.items():
        for address, port in listening:
            if port == wanted and not address.is_loopback:
                found[name] = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return found


def space(config: ModelConfig) -> str:
    """Name the space of the model as it is found on this machine.

    Raises:
        InputError: it is not.
    """
    return space_of(config).name


def reach_store(url: str, probe: str) -> None:
    """Read what was written elsewhere, and write.

    Raises:
        InputError: the store is another one here, or cannot be written.
        One of STORE_ERRORS: it cannot be read.
    """
    store = Store(url)
    if not store.exists(probe):
        raise InputError(f"store {store.url}: has not what was just written into it from elsewhere")
    store.check_writable(single_writer=True)


def reach_source(shard: str) -> None:
    """Open a shard.

    Raises:
        One of STORE_ERRORS, or pyarrow's: it cannot be read.
    """
    with open_parquet(shard):
        pass


def started_with() -> dict[str, str]:
    """Give the flags that this node's raylet was started with; none where it cannot be told."""
    flags = (part.removeprefix("--").partition("=") for part in _of_raylet("cmdline"))
    return {name: value for name, _, value in flags}


def _visible_gpus() -> dict[str, str | None]:
    """Undo what Ray hides from a worker that asked for no GPU: as the raylet was given them."""
    given = dict(part.partition("=")[::2] for part in _of_raylet("environ"))
    return {"CUDA_VISIBLE_DEVICES": given.get("CUDA_VISIBLE_DEVICES")}


def _of_raylet(file: str) -> list[str]:
    try:
        return Path(f"/proc/{int(os.environ['RAY_RAYLET_PID'])}/{file}").read_text(errors="replace").split("\0")
    except (KeyError, OSError):
        return []


def _listening(table: str) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Read /proc/net/tcp or tcp6: addresses are hexadecimal, in words of four bytes in the machine's own order."""
    found = []
    for line in table.splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state != LISTENS:
            continue
        address, _, port = local.partition(":")
        words = (int(address[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(address), 8))
        packed = ipaddress.ip_address(b"".join(words))
        found.append(((getattr(packed, "ipv4_mapped", None) or packed), int(port, 16)))
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        return None
