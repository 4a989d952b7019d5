"""The data flow of the embed job: read, fetch, preprocess, encode, write, as one Ray Data pipeline.

In: units, what each step has to know, and how many of each there are. Out: for every run of rows that is written, one
row of schema.PART_SCHEMA. Knows nothing of receipts.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from pipeline import compute
from pipeline.compute import Pools, Request
from pipeline.config import EmbedConfig
from pipeline.embedding.fetch import Fetch, FetchSpec, fetch_spec
from pipeline.embedding.plan import Survey
from pipeline.embedding.preprocess import Preprocess
from pipeline.embedding.read import ReadSpec, UnitSource
from pipeline.embedding.reuse import Elder, Reuse, ReuseSpec
from pipeline.embedding.write import Write, WriteSpec
from pipeline.model import EncodeSpec, PreprocessSpec
from pipeline.store import Store
from pipeline.table import TableRecord, table_folder

logger = logging.getLogger(__name__)

TEXT_BYTES = 1024  # of one row in flight: its key, its unit, its shard's URL, its content hash


@dataclass(frozen=True)
class Steps:
    """What each step of the data flow has to know."""

    fetch: FetchSpec
    reuse: ReuseSpec
    preprocess: PreprocessSpec
    encode: EncodeSpec
    write: WriteSpec


class LazyEncode:
    """Encode, imported where it runs: torch takes seconds to import, and whoever plans has no use for it."""

    def __init__(self, spec: EncodeSpec) -> None:
        from pipeline.embedding.encode import Encode

        self.step = Encode(spec)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do what Encode does."""
        return self.step(batch)


class ReuseThenPreprocess:
    """Two steps in one process: what has its vector already needs no decoding."""

    def __init__(
        self, reuse: ReuseSpec, elders: ray.ObjectRef, preprocess: type, spec: PreprocessSpec, max_rows: int
    ) -> None:
        self.reuse = Reuse(reuse, ray.get(elders))
        self.preprocess = preprocess(spec, max_rows)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Do what both do."""
        yield from self.preprocess(self.reuse(batch))


def dataflow(
    source: UnitSource,
    steps: Steps,
    pools: Pools,
    elders: Mapping[str, tuple[Elder, ...]],
    preprocess: type = Preprocess,
    encode: type = LazyEncode,
    write: Callable[[pa.Table], pa.Table] | None = None,
) -> Dataset:
    """Units in; out, for every run of rows that is written, one row of schema.PART_SCHEMA.

    Args:
        elders: by shard, files of its earlier state, whose vectors may be used again.
        preprocess, encode, write: the steps; jobs.benchmark has others, which only take their time, and a trial one
            that writes nothing.
    """
    context = DataContext.get_current()
    context.target_max_block_size = pools.block_rows * steps.preprocess.pixel_bytes
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=pools.in_flight_bytes)
    task = {"num_cpus": compute.TASK_CPUS}
    readers, writers = TaskPoolStrategy(size=pools.readers), TaskPoolStrategy(size=pools.writers)
    rows = ray.data.read_datasource(source, override_num_blocks=len(source.units), compute=readers, **task)
    if source.spec.image_kind != "bytes":
        rows = rows.map_batches(
            Fetch,
            fn_constructor_args=(steps.fetch,),
            compute=ActorPoolStrategy(size=pools.fetchers),
            batch_size=compute.CPU_BLOCK_ROWS,
            batch_format="pyarrow",
            **task,
        )
    return (
        rows.map_batches(
            ReuseThenPreprocess,
            fn_constructor_args=(steps.reuse, ray.put(elders), preprocess, steps.preprocess, pools.block_rows),
            compute=ActorPoolStrategy(size=pools.preprocessors),
            batch_size=None,  # blocks as they were read: of large images they have few rows
            batch_format="pyarrow",
            num_cpus=pools.preprocessor_cpus,
        )
        .map_batches(
            encode,
            fn_constructor_args=(steps.encode,),
            compute=ActorPoolStrategy(size=pools.encoders),
            batch_size=pools.block_rows,
            batch_format="pyarrow",
            num_cpus=0,
            num_gpus=pools.encoder_gpus,
        )
        .map_batches(
            write or Write(steps.write).__call__,
            compute=writers,
            batch_size=pools.write_rows,
            batch_format="pyarrow",
            **task,
        )
    )


def steps_for(
    config: EmbedConfig, store: Store, table: str, record: TableRecord, found: Survey, threads: int | None
) -> Steps:
    """Tell each step what it has to know; ``threads`` is for one encoder."""
    return Steps(
        fetch=fetch_spec(config.fetch, record.preprocess.limits.max_image_bytes),
        reuse=ReuseSpec(store.url, table_folder(table), record.preprocess.thumbnail_px is not None),
        preprocess=record.preprocess,
        encode=EncodeSpec(
            model=record.model,
            space=record.space,
            preprocess=record.preprocess,
            precision=config.encode.precision,
            dimensions=config.encode.dimensions,
            batch_size=config.encode.batch_size,
            threads=threads,
            allow_pickle_weights=config.allow_pickle_weights,
        ),
        write=WriteSpec(
            store=store.url,
            folder=table_folder(table),
            source=config.source.name,
            model_id=record.model_id,
            d=record.d,
            kept=found.kept,
            partition_by=config.partition_by,
            content_hashes=record.content_hashes,
            thumbnails=record.preprocess.thumbnail_px is not None,
        ),
    )


def read_spec(config: EmbedConfig, record: TableRecord, found: Survey) -> ReadSpec:
    """Tell the read step which columns become which of ours."""
    limits = record.preprocess.limits
    return ReadSpec(
        record.image_column, record.image_kind, config.source.key_column, found.kept, limits.max_image_bytes
    )


def pools_for(config: EmbedConfig, record: TableRecord, found: Survey) -> Pools:
    """Share the cluster out for this source.

    Raises:
        InputError: the cluster is too small, or the memory budget.
    """
    pools = compute.pools(
        Request(
            row_bytes=record.preprocess.pixel_bytes + record.preprocess.thumbnail_bytes + found.kept_bytes + TEXT_BYTES,
            written_bytes=4 * record.d + record.preprocess.thumbnail_bytes + found.kept_bytes + TEXT_BYTES,
            unit_rows=config.unit_rows,
            picture_bytes=record.preprocess.limits.picture_bytes,
            image_bytes=found.image_bytes,
            fetches=record.image_kind != "bytes",
            threads=config.encode.threads,
            memory_budget=config.memory_budget,
        )
    )
    logger.info("pools=%s", json.dumps(asdict(pools)))
    return pools
