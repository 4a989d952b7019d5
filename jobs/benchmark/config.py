"""One config per benchmark, as in pipeline/config."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.config import Config, Decode, Fit, Precision

Corpus = Literal["jpeg-640x480", "jpeg-4000x3000", "png-512", "mixed"]


class ThroughputConfig(Config):
    """Measure decoding, encoding and the embed job on this machine: python -m jobs.benchmark throughput."""

    out: str = "out/benchmark"
    """Where corpora, weights, tables and the result go."""
    model: str | None = None
    """As in the embed job; None: random weights of the architecture."""
    architecture: str = "ViT-B-32"
    """Any of OpenCLIP's."""
    corpora: tuple[Corpus, ...] = ("jpeg-640x480",)
    """Pictures to make and embed; mixed is seven small JPEGs, two PNGs and one large JPEG of ten."""
    images: PositiveInt = 2048
    """Rows of each corpus."""
    fit: Fit = "pad"
    """As in the embed job."""
    decode: Decode = "exact"
    """As in the embed job."""
    precision: Precision | None = None
    """As in the embed job."""
    passes: PositiveInt = 3
    """Times that the job runs; medians count."""


class ScalingConfig(Config):
    """Measure where the graph, its planning and its commits stop scaling: python -m jobs.benchmark scaling."""

    out: str = "out/benchmark"
    """Where made-up shards, tables and the result go."""
    encoders: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)
    """Logical encoders of the simulated clusters, each beside a CPU; they wait where a real one computes."""
    images_per_s: float = Field(default=312.0, gt=0.0)
    """Of one encoder; 312 is what clip-retrieval published for ViT-L/14 on an A100."""
    seconds: float = Field(default=40.0, gt=0.0)
    """How long each of the clusters should be busy, start-up apart."""
    shards: PositiveInt = 100_000
    """Made-up shards of 10,000 rows for planning and resuming."""
    merged_rows: PositiveInt = 1_000_000
    """Made-up rows of 512 bytes to merge by ranges of lists."""
    commits: PositiveInt = 2000
    """Receipts to write."""


class ParityConfig(Config):
    """Compare vectors with OpenCLIP's own: python -m jobs.benchmark parity."""

    out: str = "out/benchmark"
    """Where random weights and the result go."""
    architectures: tuple[str, ...] = (
        "ViT-B-32",
        "ViT-B-32-quickgelu",
        "ViT-S-16-alt",
        "vit_medium_patch16_gap_256",
        "RN50",
        "RN50x4-quickgelu",
        "convnext_base_w",
        "EVA02-B-16",
        "ViTamin-S",
        "coca_ViT-B-32",
        "ViT-B-16-SigLIP",
        "ViT-B-32-SigLIP2-256",
        "MobileCLIP-S1",
        "MobileCLIP2-S0",
        "PE-Core-T-16-384",
        "ViT-L-14-CLIPA",
        "swin_base_patch4_window7_224",
        "roberta-ViT-B-32",
    )
    """Of OpenCLIP's; one of every family by default."""


class HostileConfig(Config):
    """Embed a folder of bad images, and mutations of good ones: python -m jobs.benchmark hostile."""

    images: str
    """The folder, as Tests/images of Pillow's source package."""
    out: str = "out/benchmark"
    """Where shards, tables and the result go."""
    model: str = "jobs/demo/model"
    """As in the embed job."""
    good: PositiveInt = 50
    """Images of the folder that decode, of which mutations are made."""
    mutations: PositiveInt = 10_000
    """Flips, cuts and splices of these."""
    seed: int = 0
    """Of the mutations."""


class DecodingConfig(Config):
    """Measure what scaled decoding costs in likeness and gains in time: python -m jobs.benchmark decoding."""

    out: str = "out/benchmark"
    """Where random weights and the result go."""
    models: tuple[str, ...] = ("jobs/demo/model",)
    """Checkpoints to compare vectors of."""
    architectures: tuple[str, ...] = ("ViT-B-32", "ViT-B-16-SigLIP")
    """And these, with random weights."""
    passes: PositiveInt = 3
    """Times that each photograph is decoded; medians count."""


class SoakConfig(Config):
    """Kill runs at random moments and resume them: python -m jobs.benchmark soak."""

    out: str = "out/benchmark"
    """Where the corpus, stores, logs and the result go."""
    runs: PositiveInt = 200
    """How many; drivers, workers and raylets are killed in turn."""
    rows: PositiveInt = 300
    """Of the corpus."""
    seed: int = 0
    """Of the corpus and of the moments."""


class ServeBenchmarkConfig(Config):
    """Load the endpoint, and compare it with an empty handler: python -m jobs.benchmark serve."""

    out: str = "out/benchmark"
    """Where vectors, indexes, logs and the result go."""
    rows: PositiveInt = 1_000_000
    """Vectors."""
    architecture: str = "ViT-B-32"
    """OpenCLIP's, with random weights: their width is its, and texts are encoded by it."""
    demo_store: str = "out/demo/store"
    """What `make quickstart` leaves: texts are also asked there, if it is there."""
    clients: tuple[PositiveInt, ...] = (1, 32, 8)
    """How many ask at once; kinds of query but the first are asked by the last number of these."""
    seconds: float = Field(default=8.0, gt=0.0)
    """How long each load takes."""
    passes: PositiveInt = 3
    """Times that each is put on; medians count."""
    overload_clients: PositiveInt = 64
    """As many as a replica takes; ten times as many ask at once."""
    overload_s: float = Field(default=60.0, gt=0.0)
    """For how long."""


class IndexBenchmarkConfig(Config):
    """Build indexes of several keys over made-up vectors, and measure them: python -m jobs.benchmark index."""

    out: str = "out/benchmark"
    """Where vectors, indexes and the result go."""
    rows: PositiveInt = 100_000
    """Vectors."""
    dimensions: PositiveInt = 512
    """Their width."""
    factories: tuple[str, ...] = ()
    """FAISS keys; none: those that are worth comparing at this size."""
    recall_target: float = Field(default=0.95, gt=0.0, le=1.0)
    """As in the index job."""
    changed: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the rows that are added to the first key's index, and share that is deleted; 0 leaves it as it is."""
    peers: tuple[str, ...] = ()
    """Others to measure on the same vectors, of jobs/benchmark/peers.py; installed by uv into places of their own."""
    seed: int = 0
    """Of vectors, queries and training."""


class DedupBenchmarkConfig(Config):
    """Measure what jobs.dedup finds of made copies, and what it takes: python -m jobs.benchmark dedup."""

    out: str = "out/benchmark"
    """Where pictures, vectors, stores and the result go."""
    model: str = "jobs/demo/model"
    """As in the embed job."""
    scenes: int = Field(default=300, ge=0)
    """Pictures that are made, beside photographs; of each there is a copy with every kind of change. 0: none."""
    rows: tuple[PositiveInt, ...] = (100_000, 1_000_000)
    """Made-up vectors to find copies among, one corpus after the other."""
    dimensions: PositiveInt = 512
    """Their width."""
    planted: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of these that are copies."""
    seed: int = 0
    """Of all that is made."""
