"""What a corpus of any size takes on a cluster of known machines: nodes, hours, money, storage; and what breaks first.

In: a corpus, as a `CapacityConfig` describes it, and measured figures. Out: a `Capacity`. Pure arithmetic: no Ray is
started, no store asked, no clock read.
"""

import math
from dataclasses import dataclass

from pipeline.compute import decoders_of
from pipeline.config import CapacityConfig
from pipeline.embedding.estimate import ROW_BYTES
from pipeline.indexing.choose import check_mergeable, choose_factory, cost, nlist
from pipeline.upkeep.figures import Figures, Machine, known

HOUR_S = 3600
GIGABYTE = 1e9  # as object stores are billed
GIBIBYTE = float(1 << 30)
OBJECTS_PER_UNIT = 2  # a data file and a receipt; a unit with rejects has one more
PLAN_S, PLAN_BYTES = 60.0, 2 * GIBIBYTE  # that planning and resuming may take (design.md)
DAY_HOURS = 24.0  # what a nightly run may take in all


@dataclass(frozen=True)
class Embedding:
    """The machines that embed all of it in the hours asked for."""

    decode_cores_per_gpu: float  # that keep one GPU busy
    gpu_nodes: int
    cpu_nodes: int  # beside the CPUs of the GPU nodes
    images_per_s: float
    hours: float
    gpu_hours: float
    network_gbit: float  # into each GPU node: images that are decoded there, and pixels that were decoded elsewhere
    tables: int  # runs beside each other, each with a driver and a table of its own


@dataclass(frozen=True)
class Planning:
    """What a driver does before the first row, if all is done but the last unit."""

    shards: int
    units: int
    seconds: float  # footers and receipts
    bytes: float  # in its memory


@dataclass(frozen=True)
class Indexing:
    """The index built anew of all rows."""

    key: str
    bytes: int  # that searching wants in memory
    vectors_bytes: int  # beside it on disk
    training_hours: float  # on one machine
    filling_hours: float  # on all of them
    merging_hours: float  # on one: all of it read and written
    nodes: int


@dataclass(frozen=True)
class Money:
    """In US dollars."""

    embedding: float
    indexing: float
    requests: float
    storage_a_month: float  # of table and index; the source is somebody's already


@dataclass(frozen=True)
class Limit:
    """Something that the design has only so much of."""

    what: str
    load: float
    limit: float
    answer: str  # to it being passed

    @property
    def share(self) -> float:
        """How much of it is used; past 1 it breaks."""
        return self.load / self.limit


@dataclass(frozen=True)
class Capacity:
    """All of it."""

    images: int
    source_bytes: int
    table_bytes: int
    embedding: Embedding
    planning: Planning
    indexing: Indexing
    money: Money
    limits: tuple[Limit, ...]  # the most used first


def capacity(config: CapacityConfig, figures: Figures) -> Capacity:
    """Reckon what a corpus takes to be embedded within some hours, and then indexed.

    Raises:
        InputError: there is no figure for such a model, GPU or size of image, or no index fits the memory.
    """
    d = known(figures.models, config.model, "model").d
    table_bytes = config.images * (4 * d + config.kept_bytes + ROW_BYTES)
    embedding = _embedding(config, figures)
    planning = _planning(config, figures)
    indexing = _indexing(config, figures, d)
    return Capacity(
        images=config.images,
        source_bytes=config.images * config.image_bytes,
        table_bytes=table_bytes,
        embedding=embedding,
        planning=planning,
        indexing=indexing,
        money=_money(figures, embedding, planning, indexing, table_bytes),
        limits=_limits(figures, embedding, planning, indexing),
    )


def _embedding(config: CapacityConfig, figures: Figures) -> Embedding:
    """Count GPU nodes by the hours asked for, then CPU nodes by what the GPU nodes cannot decode themselves."""
    gpu_node, cpu_node = figures.gpu_node, figures.cpu_node
    by_model = known(figures.encode_images_per_s, gpu_node.gpu or "", "encode_images_per_s")
    gpu_per_s = known(by_model, config.model, f"encode_images_per_s of {gpu_node.gpu}").value
    by_size = known(figures.decode_images_per_s, config.decode, "decode_images_per_s")
    core_per_s = known(by_size, config.image_size, f"decode_images_per_s, {config.decode}").value
    node_per_s = gpu_node.gpus * gpu_per_s * figures.ratio_steady.value
    gpu_nodes = math.ceil(config.images / (config.hours * HOUR_S) / node_per_s)
    images_per_s = gpu_nodes * node_per_s
    here = min(1.0, decoders_of(gpu_node.cpus) * core_per_s / node_per_s)  # the share decoded where it is encoded
    cpu_nodes = math.ceil(round((1 - here) * images_per_s / (decoders_of(cpu_node.cpus) * core_per_s), 9))
    pixel_bytes = 3 * known(figures.models, config.model, "model").edge_px ** 2
    return Embedding(
        decode_cores_per_gpu=round(node_per_s / gpu_node.gpus / core_per_s, 1),
        gpu_nodes=gpu_nodes,
        cpu_nodes=cpu_nodes,
        images_per_s=round(images_per_s, 1),
        hours=round(config.images / images_per_s / HOUR_S, 2),
        gpu_hours=round(config.images / images_per_s / HOUR_S * gpu_nodes * gpu_node.gpus, 1),
        network_gbit=round(node_per_s * (here * config.image_bytes + (1 - here) * pixel_bytes) * 8 / 1e9, 2),
        tables=math.ceil(images_per_s / figures.driver_images_per_s.value),
    )


def _planning(config: CapacityConfig, figures: Figures) -> Planning:
    shards = math.ceil(config.images / config.shard_rows)
    units = shards * math.ceil(min(config.images, config.shard_rows) / config.unit_rows)  # each is of one shard
    return Planning(
        shards=shards,
        units=units,
        seconds=round(shards / figures.footers_per_s.value + units / figures.receipts_per_s.value, 1),
        bytes=units * figures.receipt_bytes.value,
    )


def _indexing(config: CapacityConfig, figures: Figures, d: int) -> Indexing:
    """Divide a build into what one machine does, training and merging, and what all of them do."""
    options = config.index
    key = check_mergeable(
        options.factory or choose_factory(config.images, d, options.memory_budget, options.latency_budget_ms)
    )
    choice = cost(key, config.images, d, options.queries)
    node_per_s = figures.index_node.cpus * figures.multiply_adds_per_s.value
    filling = float(config.images) * max(1, nlist(key)) * d
    moved_s = 3 * (choice.index_bytes + choice.vectors_bytes) / figures.disk_bytes_per_s.value
    return Indexing(
        key=key,
        bytes=choice.index_bytes,
        vectors_bytes=choice.vectors_bytes,
        training_hours=round((choice.multiply_adds - filling) / node_per_s / HOUR_S, 2),
        filling_hours=round(filling / node_per_s / config.index_nodes / HOUR_S, 2),
        merging_hours=round(moved_s / HOUR_S, 2),
        nodes=config.index_nodes,
    )


def _money(figures: Figures, embedding: Embedding, planning: Planning, indexing: Indexing, table_bytes: int) -> Money:
    prices, node = figures.prices, figures.index_node.usd_per_hour.value
    fleet = embedding.gpu_nodes * figures.gpu_node.usd_per_hour.value
    fleet += embedding.cpu_nodes * figures.cpu_node.usd_per_hour.value
    node_hours = indexing.training_hours + indexing.merging_hours + indexing.filling_hours * indexing.nodes
    puts, gets = OBJECTS_PER_UNIT * planning.units, planning.units + planning.shards
    stored = table_bytes + indexing.bytes + indexing.vectors_bytes
    return Money(
        embedding=round(embedding.hours * fleet, 2),
        indexing=round(node_hours * node, 2),
        requests=round((puts * prices.thousand_puts.value + gets * prices.thousand_gets.value) / 1e3, 2),
        storage_a_month=round(stored / GIGABYTE * prices.gigabyte_month.value, 2),
    )


def _limits(figures: Figures, embedding: Embedding, planning: Planning, indexing: Indexing) -> tuple[Limit, ...]:
    """List what is used up, the most first; what is past its limit names the design that answers it."""
    index_hours = indexing.training_hours + indexing.filling_hours + indexing.merging_hours
    limits = (
        Limit("network into a GPU node, Gbit/s", embedding.network_gbit, figures.gpu_node.network_gbit.value,
              "GPU nodes with more CPUs, so that images are decoded where they are encoded"),
        Limit("images/s of one driver", embedding.images_per_s, figures.driver_images_per_s.value,
              "sharded tables: one source, table and run for each range of shards, searched together by --tables"),
        Limit("seconds to plan and resume", planning.seconds, PLAN_S,
              "receipts compacted into one Parquet file; sharded tables, planned beside each other"),
        Limit("bytes of the driver to plan and resume", planning.bytes, PLAN_BYTES,
              "sharded tables: each driver holds only its own receipts"),
        Limit("bytes of an index in memory", indexing.bytes, _memory(figures.index_node),
              "smaller codes by --index.memory_budget; sharded tables, an endpoint for each"),
        Limit("hours to merge on one machine", indexing.merging_hours, DAY_HOURS,
              "merges by ranges of lists, each machine its own range; ranges are files of their own"),
        Limit("hours to index", index_hours, DAY_HOURS,
              "fewer lists by --index.factory; k-means and filling on GPUs; more index nodes; sharded tables"),
    )  # fmt: skip
    return tuple(sorted(limits, key=lambda limit: -limit.share))


def _memory(machine: Machine) -> float:
    return machine.memory_gib * GIBIBYTE
