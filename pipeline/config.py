"""One frozen model per job, from which its flags and its TOML keys are derived (jobs/flags.py).

What a field means is said here, once; the model, not its fields, is what the code passes on.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pipeline.errors import InputError
from pipeline.schema import ROW_ID, VECTOR, Reason

Fit = Literal["pad", "model"]
Decode = Literal["exact", "scaled"]
Precision = Literal["fp32", "bf16", "fp16"]
Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]

# Nothing that runs an interpreter (EPS) or that nobody photographs with. MPO comes through JPEG; naming it breaks
# Image.open for every file that no plugin knows (Pillow 13). HEIF needs a package of its own.
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


class Config(BaseModel):
    """Frozen; unknown keys are refused; the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


ConfigType = TypeVar("ConfigType", bound=Config)


def checked(model: type[ConfigType], fields: Mapping[str, object]) -> ConfigType:
    """Build a config from fields.

    Raises:
        InputError: an unknown key, a missing or malformed value; in one line, all of them.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InputError(said(error)) from error


def said(error: ValidationError) -> str:
    """Put into one line what is wrong with fields."""
    return "; ".join(_said(problem) for problem in error.errors())


def _said(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "missing":
        return f"{where}: wanted a value, got none"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message}" if problem["type"] == "value_error" else f"{where}: {message}, got {problem['input']!r}"
    )


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


class TableConfig(Config):
    """Which table of which store."""

    store: str
    """The folder or URL below which everything is kept."""
    table: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """None: the store's only table; for jobs.embed, <source.name>__<space>."""


class WriterConfig(TableConfig):
    """What every job that writes needs."""

    single_writer: bool = False
    """Take a store without conditional writes; then nothing but you keeps two runs from harming each other."""


class RunConfig(WriterConfig):
    """When a run gives up."""

    deadline: timedelta | None = Field(default=None, gt=timedelta(0))
    """Time from the start after which the run stops with status 3: seconds, or as PT6H."""
    hang_s: float = Field(default=3600.0, gt=0.0)
    """Seconds without any sign of life after which the run stops, naming its stage."""
    drain_s: float = Field(default=20.0, ge=0.0)
    """Seconds after SIGTERM in which units may still end; clusters mostly give 30 in all."""

    @property
    def deadline_s(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline is None else self.deadline.total_seconds()


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


class StatusConfig(TableConfig):
    """Say what a table holds, what is left to do, and who is at it: python -m jobs.status."""

    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""


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


class PublishConfig(WriterConfig):
    """Publish an index version by name: python -m jobs.publish."""

    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """As jobs.status lists them."""


class RollbackConfig(WriterConfig):
    """Publish the index version before the published one, and withdraw that: python -m jobs.rollback."""


class SearchConfig(TableConfig):
    """What every search needs."""

    model: str | None = None
    """Where the table's model is now, if it has moved; of any other space it is refused."""
    allow_pickle_weights: bool = False
    """As in the embed job."""


class QueryConfig(SearchConfig):
    """Search a published index from a shell: python -m jobs.query."""

    text: str | None = None
    """What to look for, in words."""
    image: str | None = None
    """What to look for, as a picture: a path or URL."""
    id: str | None = None
    """What to look for, as a row of the table: its _row_id."""
    k: int = Field(default=10, ge=1, le=10_000, validation_alias=AliasChoices("k"))
    """How many rows."""
    sheet: str | None = None
    """Write the pictures found to this PNG."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = [name for name in ("text", "image", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wanted exactly one of --text, --image, --id; got {given or 'none'}")
        return self


class ServeConfig(SearchConfig):
    """Answer queries over HTTP: python -m jobs.serve."""

    tables: tuple[str, ...] = ()
    """Several tables of the store, of one space or more; the first answers where a request names none."""
    host: str = "127.0.0.1"
    """The address to bind; any other than loopback needs api_key_file."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to bind."""
    api_key_file: str | None = None
    """A file of keys, one a line, 'admin' before those that may also read /metrics and have CURRENT looked at; all are
    valid, so that an old and a new one overlap. With it every route but /livez wants 'Authorization: Bearer <key>', or
    the key as the password that a browser asks for."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may be for; on loopback, loopback's own are always among them, and others are refused,
    since any page's script could have its own name lead here. (): elsewhere, any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API, as https://example.org."""
    replicas: PositiveInt = 1
    """Processes that answer; each holds the model, and maps the index."""
    max_replicas: PositiveInt | None = None
    """More of them while requests wait; None: no more."""
    max_waiting: PositiveInt = 64
    """Requests in one replica, past which others get 429 at once."""
    timeout_s: float = Field(default=10.0, gt=0.0, le=60.0)
    """What a request may take that names no time itself; then it gets 504."""
    searchers: PositiveInt = 1
    """Batches of queries that one replica searches at a time."""
    search_threads: PositiveInt | None = None
    """Threads of one search of a batch; None: all CPUs, shared among the searchers."""
    max_body_bytes: ByteSize = ByteSize(32 << 20)
    """Longer requests get 413, counted as they arrive."""
    max_image_bytes: ByteSize = ByteSize(20 << 20)
    """Of one image of a query, at most what the embed job took."""
    max_image_pixels: PositiveInt = 40_000_000
    """Likewise."""
    image_urls: bool = False
    """Fetch images that queries name by URL, from public addresses only, as the embed job does."""
    model_aliases: tuple[str, ...] = ()
    """Names under which POST /v1/embeddings also takes the first table's model, for clients that name another."""
    thumbnail_px: PositiveInt = 256
    """The longer edge of thumbnails made from the source."""
    poll_s: float = Field(default=5.0, gt=0.0)
    """Seconds between looks at which version is published."""
    allow_ha_proxy: bool = False
    """Start although RAY_SERVE_ENABLE_HA_PROXY makes Serve bind every address of the machine."""

    @model_validator(mode="after")
    def _tables_are_named_once(self) -> Self:
        if len(set(self.tables)) < len(self.tables) or (self.tables and self.table is not None):
            raise ValueError("tables: wanted each once, and no table beside them")
        if self.model is not None and len(self.tables) > 1:
            raise ValueError("model: of which of the tables? their models are where table.json says")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: wanted {self.replicas} at least")
        return self


class EvaluateConfig(SearchConfig):
    """Measure what a table finds, and hold it to floors: python -m jobs.evaluate."""

    golden: str | None = None
    """Parquet of golden queries: query_id, one of query_text, query_image and query_vector, relevant_id, and perhaps
    relevance_grade."""
    captions: str | None = None
    """A column of captions: pictures are found by them, and they by pictures."""
    k: int = Field(default=10, ge=1, le=10_000, validation_alias=AliasChoices("k"))
    """How many rows a query finds."""
    cohorts: tuple[str, ...] = ()
    """Columns of the golden queries to state results by."""
    floor: tuple[str, ...] = ()
    """What must be reached, as recall@10=0.9, or of captions text_to_image@5=0.7; else the status is 3."""
    floor_of: Literal["indexed", "exact"] = "indexed"
    """Whether floors hold for what the index finds, or for an exact search."""
    seed: int = 0
    """Of the intervals."""
    json_output: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print JSON in place of a table."""

    @property
    def floors(self) -> dict[str, float]:
        """The floors by metric."""
        return {metric: float(value) for metric, _, value in (floor.partition("=") for floor in self.floor)}

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.golden is None and self.captions is None:
            raise ValueError("wanted --golden, --captions, or both")
        for floor in self.floor:
            metric, _, value = floor.partition("=")
            try:
                is_share = 0.0 <= float(value) <= 1.0
            except ValueError:
                is_share = False
            if "@" not in metric or not is_share:
                raise ValueError(f"floor: wanted metric@k=0.9 or the like, got {floor!r}")
        if len(self.floors) < len(self.floor):
            raise ValueError(f"floor: wanted each metric once, got {list(self.floor)}")
        return self


class VectorsConfig(SourceConfig):
    """Where vectors are that were made elsewhere: rows of an id and a vector."""

    image_column: str = ROW_ID
    """Names the picture of a row, for people to look at; by default its id does."""
    key_column: str = ROW_ID
    """Unique and without nulls: what _row_id says."""


class SubmitConfig(Config):
    """Hand a job to a running Ray cluster, once for each id, and end as it did: python -m jobs.submit."""

    address: str | None = None
    """Of Ray's job server, as http://127.0.0.1:8265; None: RAY_API_SERVER_ADDRESS, or the Ray that runs here."""
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the job is known by: a schedule names its date or minute, so that the same one is not done twice."""
    entrypoint: str
    """The command, as "python -m jobs.backfill --config nightly.toml"."""
    working_dir: str | None = None
    """A folder or zip that the job runs in, as the working directory of every process; None: the image's own."""
    py_modules: tuple[str, ...] = ()
    """Folders or wheels that the job can import."""
    tries: PositiveInt = 1
    """How often it is started while it ends with status 3, which means that the same command goes on."""


class SubmitRayJobConfig(Config):
    """Start a copy of a suspended RayJob on Kubernetes, once for each id: python -m jobs.submit_rayjob."""

    template: str = "backfill"
    """The suspended RayJob that is copied."""
    id: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """The name of the copy: in a CronJob that of its Job, which has the minute of the schedule in it."""
    namespace: str = "rayclip"
    """Where both are."""
    poll_s: float = Field(default=10.0, gt=0.0)
    """Seconds between looks at it."""
    tries: PositiveInt = 1
    """How often it is started while it ends with status 3, which means that the same command goes on."""


class ImportConfig(RunConfig):
    """Make a table of vectors that were made elsewhere; nothing is encoded."""

    source: VectorsConfig
    dimensions: PositiveInt
    """Numbers in each vector; those of another width are refused."""
    layout: Literal["parquet", "clip-retrieval"] = "parquet"
    """parquet: vectors are a column; clip-retrieval: in img_emb/*.npy, and source.path has metadata/*.parquet."""
    texts: bool = False
    """Of clip-retrieval take text_emb, the vectors of captions, in place of img_emb."""
    vector_column: str = VECTOR
    """Lists of numbers, of any norm."""
    model: str | None = None
    """The checkpoint that made the vectors, as the embed job takes it: then texts and pictures are encoded for them."""
    label: str | None = Field(default=None, min_length=1)
    """What the vectors were made by, where there is no such checkpoint: those of one label and width can be compared;
    None: only those of this source."""
    expected_sha256: str | None = Field(default=None, pattern=r"^[0-9A-Fa-f]{8,64}$")
    """As in the embed job."""
    allow_pickle_weights: bool = False
    """As in the embed job."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """How the vectors' pictures were fitted, where there is a model."""
    fetch: FetchConfig = FetchConfig()
    """Where pictures may be read from that the vectors' files name."""
    unit_rows: PositiveInt = 8192
    """Rows planned, written and committed together."""
    max_reject_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """More rejects than this share of the rows end the run with status 3."""

    @model_validator(mode="after")
    def _made_by_one(self) -> Self:
        if self.model is not None and self.label is not None:
            raise ValueError("wanted model, a checkpoint, or label, a name for what is none; not both")
        return self


class ManifestConfig(Config):
    """Make pictures that do not lie in Parquet a source, without copying them: python -m jobs.manifest."""

    store: str
    """The folder or URL below which everything is kept."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The source's."""
    path: str
    """The folder or URL prefix that the pictures are in; of tars, that, a glob, or one of them."""
    kind: Literal["folder", "webdataset"] = "folder"
    """folder: files, labelled by the folders they are in; webdataset: tars of pictures with their .txt and .json."""
    json_fields: tuple[str, ...] | None = None
    """Fields of .json that become columns, as text; None: those that the first tar has."""
    bad_shards: Literal["error", "skip"] = "error"
    """What a tar means that cannot be read, or holds what no webdataset does: the end of the run, or that it is left
    out, named, and the exit is 3."""
    threads: PositiveInt = 16
    """Tars read at a time."""


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
