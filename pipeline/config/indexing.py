"""What an index shall be like, and which version is published."""

from pydantic import ByteSize, Field, PositiveInt

from pipeline.config.base import Config, RunConfig, WriterConfig


class IndexOptions(Config):
    """What an index shall be like."""

    factory: str | None = None
    """A FAISS key, Flat or IVF…; None: chosen from the number of rows and the memory budget."""
    recall_target: float = Field(default=0.95, gt=0.0, le=1.0)
    """Recall@10 against exact search that nprobe is tuned to, and below which nothing is published."""
    memory_budget: ByteSize = ByteSize(8 << 30)
    """What the index may take in memory when it is searched."""
    latency_budget_ms: float | None = Field(default=None, gt=0.0)
    """What a query may take on one thread; more lists are made for it, and the card says if it still takes longer."""
    rebuild_after: float = Field(default=0.3, ge=0.0)
    """Rows added or gone, as a share of those it was trained on, up to which a published index is gone on from; past it
    all is built anew."""
    partials: PositiveInt = 8
    """Partial indexes that are filled in parallel."""
    queries: PositiveInt = 1500
    """Rows that recall is measured with, as queries by image: a third of them chooses nprobe, for the others it is
    stated."""
    text_queries: str = "ours"
    """Queries by text that it is measured with: ours; none; a file with one on every line, or Parquet with a column
    text or vector."""
    seed: int = 0
    """Of the training sample and of those rows."""


class IndexConfig(RunConfig, IndexOptions):
    """Build, measure and publish the index of a table: python -m jobs.build_index."""

    rebuild: bool = False
    """Build all anew, whatever is published."""

    model: str | None = None
    """Where the table's model is now, if it has moved: its text tower encodes queries."""
    allow_pickle_weights: bool = False
    """As in the embed job."""


class PublishConfig(WriterConfig):
    """Publish an index version by name: python -m jobs.publish."""

    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """As jobs.status lists them."""


class RollbackConfig(WriterConfig):
    """Publish the index version before the published one, and withdraw that: python -m jobs.rollback."""
