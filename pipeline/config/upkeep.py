"""Whole runs, and looking after a store: before, between and after them."""

from typing import Literal, Self

from pydantic import AliasChoices, ByteSize, Field, PositiveInt, model_validator

from pipeline.config.base import Config, RunConfig, TableConfig, WriterConfig
from pipeline.config.embedding import Decode, EmbedConfig
from pipeline.config.indexing import IndexOptions
from pipeline.schema import Reason


class BackfillConfig(EmbedConfig):
    """Embed what is new, index it, publish, clear away what is old: python -m jobs.backfill."""

    index: IndexOptions = IndexOptions()
    redrive: tuple[Reason, ...] = ()
    """Rejects of these reasons are tried again at every run."""
    keep_versions: PositiveInt = 2
    """Index versions that stay, the published one among them."""
    keep_runs: PositiveInt = 100
    """Runs of the table whose records stay."""


class RedriveConfig(BackfillConfig):
    """Embed the rejects of some reasons again: python -m jobs.redrive."""

    reasons: tuple[Reason, ...] = Field(min_length=1)
    """Reasons for a reject, as '["fetch_timeout", "fetch_failed"]'."""


class PlanConfig(BackfillConfig):
    """Say what an embed run would do, and write nothing: python -m jobs.plan."""

    rows: PositiveInt | None = None
    """Rows to embed as a trial, kept nowhere; None: a few blocks for every encoder."""
    trial: bool = True
    """Whether to embed any at all; without, no time is estimated."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""


class CapacityConfig(Config):
    """Say what a corpus of any size takes on a cluster of known machines: python -m jobs.plan --cluster FILE."""

    cluster: str
    """A JSON file of measured figures, machines and prices, as cluster/capacity.json."""
    images: PositiveInt
    """Rows of the corpus."""
    image_size: str = Field(default="640x480", pattern=r"^[1-9][0-9]*x[1-9][0-9]*$")
    """Of its pictures, in pixels: one that the file has a figure for."""
    image_bytes: ByteSize = ByteSize(100_000)
    """Of one picture in the mean."""
    kept_bytes: int = Field(default=100, ge=0)
    """Of one row's kept columns."""
    model: str = "ViT-B-32"
    """An architecture that the file has a figure for."""
    decode: Decode = "exact"
    """As in the embed job."""
    hours: float = Field(default=24.0, gt=0.0)
    """In which all shall be embedded."""
    shard_rows: PositiveInt = 10_000
    """Rows of one shard."""
    unit_rows: PositiveInt = 8192
    """As in the embed job."""
    index: IndexOptions = IndexOptions(memory_budget=ByteSize(512 << 30))
    """As in the backfill; memory_budget is that of a machine that searches."""
    index_nodes: PositiveInt = 16
    """Machines that fill partial indexes."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of tables."""


class DoctorConfig(BackfillConfig):
    """Check a cluster and a config before money is spent: python -m jobs.doctor."""

    min_gpus: int | None = Field(default=None, ge=0)
    """GPUs that torch must see; None: as many as nodes declare; 0: none, so that those which are only declared pass."""
    max_clock_skew_s: float = Field(default=60.0, gt=0.0)
    """How far clocks of nodes and of the store may be from the one here; a lease counts for 60 s."""
    answer_s: float = Field(default=120.0, gt=0.0)
    """Seconds for nodes to start answering, and as many for their answers; a model that is fetched there counts."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of lines."""


class StatusConfig(TableConfig):
    """Say what a table holds, what is left to do, and who is at it: python -m jobs.status."""

    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""


class VerifyConfig(TableConfig):
    """Find every damaged, missing, extra or mixed file of a table and its indexes: python -m jobs.verify."""

    threads: PositiveInt = 16
    """Files read at a time."""


class VacuumConfig(WriterConfig):
    """Remove what nothing names: files of dead runs, old index versions, old records: python -m jobs.vacuum."""

    dry_run: bool = False
    """Name it, and remove nothing."""
    keep_versions: PositiveInt = 2
    """Index versions that stay, the published one among them."""
    keep_runs: PositiveInt = 100
    """Runs of the table whose records stay."""


class DedupConfig(RunConfig):
    """Find rows that show the same picture, and choose which of them to keep: python -m jobs.dedup."""

    stages: tuple[Literal["exact", "perceptual", "embedding"], ...] = ("exact", "perceptual", "embedding")
    """exact: equal bytes; perceptual: pictures that look alike at a small size, also mirrored, turned or cut a little;
    embedding: vectors that are near each other."""
    threshold: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Similarity of two vectors from which on they may be of one picture."""
    confirm_below: float = Field(default=0.999, ge=0.0, le=1.0)
    """Pairs of vectors below this count only where the pictures are alike too, if perceptual is among the stages; 0:
    all count."""
    likeness: float = Field(default=0.85, gt=0.0, lt=1.0)
    """Correlation of the spectra of two small grey pictures from which on they are one."""
    hamming: int = Field(default=10, ge=0, le=20)
    """Bits of 64 in which the hashes of pictures may differ that are compared at all."""
    max_steps: float = Field(default=1.5, ge=1.0)
    """How far a row may lie from the middle of its group, in steps as long as the threshold allows: chains are cut."""
    keep: str = Field(default="largest", pattern=r"^(largest|first|column:.+)$")
    """Which row of a group stays: largest, by pixels, then bytes; first, in the order of the source; column:NAME, the
    one with the largest value of a kept column. Of equals the first."""
    look_below: float = Field(default=0.02, ge=0.0, le=0.2)
    """How far below the threshold pairs of vectors are still found, for people to look at."""
    recall_rows: PositiveInt = 1000
    """Rows, drawn by seed, whose pairs are also searched for exactly, to state how many were found."""
    seed: int = 0
    """Of these rows."""

    @model_validator(mode="after")
    def _stages_are_named_once(self) -> Self:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages: wanted one at least, and each once, got {list(self.stages)}")
        return self
