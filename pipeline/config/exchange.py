"""What was made elsewhere, taken in."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipeline.config.base import Config, RunConfig
from pipeline.config.embedding import FetchConfig, PreprocessConfig, SourceConfig
from pipeline.schema import ROW_ID, VECTOR


class VectorsConfig(SourceConfig):
    """Where vectors are that were made elsewhere: rows of an id and a vector."""

    image_column: str = ROW_ID
    """Names the picture of a row, for people to look at; by default its id does."""
    key_column: str = ROW_ID
    """Unique and without nulls: what _row_id says."""


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
