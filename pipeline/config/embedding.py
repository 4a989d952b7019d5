"""Where pictures come from, and how they become vectors."""

from typing import Literal, Self

from pydantic import ByteSize, Field, IPvAnyNetwork, PositiveInt, model_validator

from pipeline.config.base import Config, RunConfig

Fit = Literal["pad", "model"]
Decode = Literal["exact", "scaled"]
Precision = Literal["fp32", "bf16", "fp16"]
Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]
# Nothing that runs an interpreter (EPS) or that nobody photographs with. MPO comes through JPEG; naming it breaks
# Image.open for every file that no plugin knows (Pillow 13). HEIF needs a package of its own.
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


class SourceConfig(Config):
    """Where images come from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What _source_id says; letters, digits, '.', '_' and '-'."""
    path: str | tuple[str, ...]
    """A folder, glob or Parquet file, or a list of them, on any fsspec filesystem."""
    image_column: str = "image"
    """Encoded bytes, or paths and URLs, or Hugging Face's struct of bytes and path."""
    key_column: str | None = None
    """Unique and without nulls; None makes keys of shard and row number."""
    duplicate_keys: Literal["error", "first"] = "error"
    """What two rows of one key mean: error ends the run before any work, first rejects all but the first."""
    keep_columns: tuple[str, ...] = ()
    """Columns to carry into the output beside the vector."""
    fingerprint: Literal["listing", "content"] = "listing"
    """What tells that a shard was rewritten: its size with etag or modification time; content: when these change, its
    SHA-256 too, so that a shard which was only copied stays as it is. Then every new shard is read once more."""
    bad_shards: Literal["error", "skip"] = "error"
    """What a shard means that cannot be read: the end of the run, or that it is left out, named, and the exit is 3."""
    removed_shards: Literal["retain", "remove"] = "retain"
    """What becomes of the rows of a shard that the source does not have any more."""
    max_removed_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """A source that has lost more than this share of its shards is refused, where their rows would be removed."""


class FetchConfig(Config):
    """How images that a column only names are read."""

    schemes: tuple[str, ...] = ("file", "s3", "gs", "gcs", "az", "abfs")
    """Schemes that a path may have; http and https are not among them unless named."""
    roots: tuple[str, ...] = ()
    """Folders or URL prefixes that paths must lie below; for local paths, the shard's own folder is always one."""
    networks: tuple[IPvAnyNetwork, ...] = ()
    """Private networks that http may reach beside public addresses, as 10.1.0.0/16, and there on any port."""
    threads: PositiveInt = 16
    """Reads at a time in one process."""
    threads_per_host: PositiveInt = 8
    """Of these, reads from one http server."""
    connect_timeout_s: float = Field(default=5.0, gt=0.0)
    """For an http server to take a connection."""
    timeout_s: float = Field(default=30.0, gt=0.0)
    """For one image by http: connecting, redirects and tries again included."""
    retries: int = Field(default=2, ge=0)
    """Tries again after what may pass: lost connections, status 408, 425, 429, 500, 502, 503, 504."""


class PreprocessConfig(Config):
    """How a picture becomes pixels."""

    fit: Fit = "pad"
    """pad: centred on a white square, so that nothing is cut off; model: as the checkpoint's own config asks."""
    decode: Decode = "exact"
    """scaled: large JPEGs are decoded at a reduced size, no smaller than twice the model's."""
    formats: tuple[Format, ...] = FORMATS
    """Formats that are opened at all; HEIF needs the extra of that name."""
    max_image_bytes: ByteSize = ByteSize(64 << 20)
    """Longer files are rejected unread."""
    max_image_pixels: PositiveInt = 100_000_000
    """Larger pictures are rejected by their header."""
    thumbnail_px: int | None = Field(default=None, ge=16, le=1024)
    """Keep a small WebP of each picture beside its vector, its longer edge so many pixels, for people to look at."""
    max_decode_s: float = Field(default=10.0, gt=0.0)
    """Seconds of processor time that one image may take; then its decoder is ended, and the row rejected."""


class EncodeConfig(Config):
    """How pixels become vectors."""

    precision: Precision | None = None
    """None: bf16 where the device computes in it fast, else fp32."""
    dimensions: PositiveInt | None = None
    """Keep the first D coordinates and normalise again; for models trained for that."""
    batch_size: PositiveInt | None = None
    """Images at a time on the device, at most a block's (128 to 1024); None: tried out on the first rows."""
    threads: PositiveInt | None = None
    """CPU threads of one encoder; None: all that the node has, up to 16. A node has as many encoders as that leaves."""


class ModelConfig(Config):
    """Which vectors: a checkpoint, and what it is given."""

    model: str
    """A folder, architecture/tag, org/name or hf-hub:org/name[@revision] of an OpenCLIP checkpoint."""
    expected_sha256: str | None = Field(default=None, pattern=r"^[0-9A-Fa-f]{8,64}$")
    """SHA-256 that the weights file must have, or its first digits."""
    allow_pickle_weights: bool = False
    """Take a PyTorch pickle where a checkpoint has no safetensors; its maker can do harm with it."""
    preprocess: PreprocessConfig = PreprocessConfig()
    encode: EncodeConfig = EncodeConfig()


class WaitConfig(Config):
    """What a cluster must have before a run starts: autoscalers bring it only to those who ask."""

    gpus: int = Field(default=0, ge=0)
    """GPUs to ask for and wait for; 0: those that are there."""
    cpus: int = Field(default=0, ge=0)
    """CPUs, beside those that come with the GPUs or among them."""
    timeout_s: float = Field(default=1800.0, gt=0.0)
    """How long; then the run ends with status 3."""


class EmbedConfig(ModelConfig, RunConfig):
    """Embed every image of a source: python -m jobs.embed."""

    source: SourceConfig
    fetch: FetchConfig = FetchConfig()
    wait: WaitConfig = WaitConfig()
    unit_rows: PositiveInt = 8192
    """Rows planned, written and committed together; what a crash costs, and one receipt each."""
    memory_budget: ByteSize | None = None
    """What blocks and decoders may take in memory on each node, beside model and Ray; None: half of Ray's store."""
    max_reject_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """More rejects than this share of the rows end the run with status 3."""
    max_rows: PositiveInt | None = None
    """Embed at most so many rows in this run, in whole units; if any are left, the status is 3."""
    partition_by: tuple[str, ...] = ()
    """Kept columns that become folders above the unit's, as hive partitions."""

    @model_validator(mode="after")
    def _columns_are_named_once(self) -> Self:
        for field in (self.source.keep_columns, self.partition_by):
            if len(set(field)) < len(field):
                raise ValueError(f"wanted each column once, got {list(field)}")
        return self

    @model_validator(mode="after")
    def _partitions_are_kept(self) -> Self:
        missing = set(self.partition_by) - set(self.source.keep_columns)
        if missing:
            raise ValueError(f"partition_by: {sorted(missing)} not in source.keep_columns")
        return self
