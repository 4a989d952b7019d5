"""Measured figures of the work, and what machines and stores cost: one JSON file, each number with its source.

In: a file like cluster/capacity.json. Out: a `Figures`. Nothing here is measured, and no number has a default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from pipeline.config import Config, said
from pipeline.errors import InputError

Entry = TypeVar("Entry")


class Figure(Config):
    """A number, and where it comes from."""

    value: PositiveFloat
    source: str = Field(min_length=10)
    """measured, published or assumed; by whom, when, how."""


class Machine(Config):
    """A kind of node."""

    cpus: PositiveInt
    gpus: int = Field(default=0, ge=0)
    gpu: str | None = None
    """The name that encode_images_per_s knows it by."""
    memory_gib: PositiveFloat
    network_gbit: Figure
    usd_per_hour: Figure


class Model(Config):
    """An OpenCLIP architecture."""

    d: PositiveInt
    edge_px: PositiveInt


class Prices(Config):
    """Of an object store, in US dollars."""

    gigabyte_month: Figure
    thousand_puts: Figure
    thousand_gets: Figure


class Figures(Config):
    """What was measured of the work, and what machines and stores cost: one JSON file."""

    note: str
    models: dict[str, Model]
    decode_images_per_s: dict[str, dict[str, Figure]]
    """Of one core, by preprocess.decode and by size in pixels, as 640x480."""
    encode_images_per_s: dict[str, dict[str, Figure]]
    """Of one GPU, by its name and by model."""
    ratio_steady: Figure
    """Of the ceiling of decoding and encoding that a run keeps up."""
    driver_images_per_s: Figure
    """That one driver can feed: one run's limit, whatever the cluster."""
    footers_per_s: Figure
    receipts_per_s: Figure
    """Read when a run is resumed."""
    receipt_bytes: Figure
    """In the driver's memory, for each unit."""
    multiply_adds_per_s: Figure
    """Of one core, in products of float32 matrices."""
    disk_bytes_per_s: Figure
    """As an index is built."""
    gpu_node: Machine
    cpu_node: Machine
    index_node: Machine
    """One of them trains and merges; as many as there are partial indexes fill."""
    prices: Prices


def read_figures(file: str) -> Figures:
    """Read measured figures.

    Raises:
        InputError: no such file, or it is not as `Figures` says.
    """
    try:
        return Figures.model_validate_json(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cluster {file}: {error}") from error
    except ValidationError as error:
        raise InputError(f"cluster {file}: {said(error)}") from error


def known(entries: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Look a figure up.

    Raises:
        InputError: nobody has measured it; names what was measured.
    """
    if name not in entries:
        raise InputError(
            f"{what}: no figure for {name!r}, only for {', '.join(sorted(entries))}; measure it, and add it"
        )
    return entries[name]
