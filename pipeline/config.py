"""One frozen model per job, from which its flags and its TOML keys are derived: `python -m jobs.embed --help`.

In: a command line and perhaps a TOML file, flags first. Out: a config that is valid or one line that says why not.
What a field means is said here, once; the model, not its fields, is what the code passes on.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pipeline.errors import InputError


class Config(BaseModel):
    """Frozen; unknown keys are refused; the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


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
    keep_columns: tuple[str, ...] = ()
    """Columns to carry into the output beside the vector."""


class FetchConfig(Config):
    """How images that a column only names are read."""

    schemes: tuple[str, ...] = ("file", "s3", "gs", "gcs", "az", "abfs")
    """Schemes that a path may have; http and https are not among them unless named."""
    threads: PositiveInt = 16
    """Reads at a time in one task."""


class PreprocessConfig(Config):
    """How a picture becomes pixels."""

    fit: Literal["pad"] = "pad"
    """pad: centred on a white square, so that nothing is cut off."""
    decode: Literal["exact", "scaled"] = "exact"
    """scaled: large JPEGs are decoded at a reduced size, no smaller than twice the model's."""
    max_image_bytes: ByteSize = ByteSize(64 << 20)
    """Longer files are rejected unread."""
    max_image_pixels: PositiveInt = 100_000_000
    """Larger pictures are rejected by their header."""


class EncodeConfig(Config):
    """How pixels become vectors."""

    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """None: bf16 where the device computes in it fast, else fp32."""
    dimensions: PositiveInt | None = None
    """Keep the first D coordinates and normalise again; for models trained for that."""
    batch_size: PositiveInt | None = None
    """Images at a time on the device; None: 256 on a GPU, 64 on a CPU."""


class TableConfig(Config):
    """Which table of which store."""

    store: str
    """The folder or URL below which everything is kept."""
    table: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """None: the store's only table; for jobs.embed, <source.name>__<space>."""


class EmbedConfig(TableConfig):
    """Embed every image of a source: python -m jobs.embed."""

    model: str
    """A folder, architecture/tag, org/name or hf-hub:org/name[@revision] of an OpenCLIP checkpoint."""
    source: SourceConfig
    fetch: FetchConfig = FetchConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    encode: EncodeConfig = EncodeConfig()
    unit_rows: PositiveInt = 8192
    """Rows planned, written and committed together; what a crash costs, and one receipt each."""
    max_reject_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """More rejects than this share of the rows end the run with status 3."""
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


class IndexConfig(TableConfig):
    """Build, measure and publish the index of a table: python -m jobs.build_index."""

    factory: str | None = None
    """A FAISS key, Flat or IVF…; None: chosen from the number of rows and the memory budget."""
    recall_target: float = Field(default=0.95, gt=0.0, le=1.0)
    """Recall@10 against exact search that nprobe is tuned to, and below which nothing is published."""
    memory_budget: ByteSize = ByteSize(8 << 30)
    """What the index may take in memory when it is searched."""
    partials: PositiveInt = 8
    """Partial indexes that are filled in parallel."""
    queries: PositiveInt = 1000
    """Rows that recall is measured with."""
    seed: int = 0
    """Of the training sample and of those rows."""


class SearchConfig(TableConfig):
    """What every search needs."""

    model: str | None = None
    """Where the table's model is now, if it has moved; of any other space it is refused."""


class QueryConfig(SearchConfig):
    """Search a published index from a shell: python -m jobs.query."""

    text: str | None = None
    """What to look for, in words."""
    image: str | None = None
    """What to look for, as a picture: a path or URL."""
    id: str | None = None
    """What to look for, as a row of the table: its _row_id."""
    k: PositiveInt = Field(default=10, validation_alias=AliasChoices("k"))
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

    host: str = "127.0.0.1"
    """The address to bind; any other than loopback needs api_key_file."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to bind."""
    api_key_file: str | None = None
    """A file of keys, one a line; with it every route but /livez and /docs wants 'Authorization: Bearer <key>'."""
    replicas: PositiveInt = 1
    """Processes that answer; each holds the model and the index."""


class ThroughputConfig(Config):
    """Measure decoding, encoding and the pipeline on this machine: python -m jobs.benchmark throughput."""

    out: str = "out/benchmark"
    """Where corpus, weights, tables and the result go."""
    architecture: str = "ViT-B-32"
    """Any of OpenCLIP's; its weights are random."""
    images: PositiveInt = 2048
    """Rows of the corpus."""
    width_px: PositiveInt = 640
    """Of each image."""
    height_px: PositiveInt = 480
    """Of each image."""
    decode: Literal["exact", "scaled"] = "exact"
    """As in the embed job."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """As in the embed job."""
    passes: PositiveInt = 3
    """Times that the pipeline runs; medians count."""


ConfigType = TypeVar("ConfigType", bound=Config)


def load(model: type[ConfigType], arguments: list[str], program: str) -> ConfigType:
    """Build a config from ``[--config file.toml] [--dotted.key value …]``.

    Raises:
        InputError: an unknown flag or key, a missing or malformed value, an unreadable file.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, flags = first.parse_known_args(arguments)
    keys = _read_toml(known.config) if known.config else {}

    class Flags(model, BaseSettings):  # type: ignore[valid-type, misc]  # the base is only known here
        __doc__ = model.__doc__
        model_config = SettingsConfigDict(
            cli_prog_name=f"{program} [--config file.toml]",
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_implicit_flags=True,
            nested_model_default_partial_update=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return CliSettingsSource(settings_cls, cli_parse_args=flags), init_settings

    try:
        return model.model_validate(Flags(**keys).model_dump())
    except SettingsError as error:
        raise InputError(str(error)) from error
    except ValidationError as error:
        raise InputError("; ".join(_say(problem) for problem in error.errors())) from error


def _read_toml(file: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--config {file}: {error}") from error


def _say(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "missing":
        return f"{where}: wanted a value, got none"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message}" if problem["type"] == "value_error" else f"{where}: {message}, got {problem['input']!r}"
    )
