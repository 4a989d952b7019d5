"""What a notebook holds: one store, its sources and tables, and every verb on them.

    db = pipeline.connect("out/demo/store")
    db.add_source("figures", "out/demo/figures/*.parquet", key="key", keep=["caption"])
    db.generate_image_embeddings(source="figures", model="jobs/demo/model")
    db.search("figures", text="a red star").filter("width > 100").to_pandas()

Everything is what the jobs do, by the same code, on the same files: what a notebook begins, a scheduled run goes on
with. Ray is started when a verb first needs it, or joined where an address says.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import compute
from pipeline.analysis.evaluate import Evaluation, Way, compare
from pipeline.analysis.golden import read_golden
from pipeline.analysis.quality import caption_quality, class_quality, golden_quality
from pipeline.analysis.retrieval import Retrieval
from pipeline.analysis.sheet import contact_sheet
from pipeline.analysis.significance import Difference
from pipeline.analysis.zero_shot import TEMPLATES, ZeroShot
from pipeline.config import (
    BackfillConfig,
    DedupConfig,
    ImportConfig,
    IndexConfig,
    ManifestConfig,
    SourceConfig,
    StatusConfig,
    checked,
)
from pipeline.dedup.record import Duplicates, read_groups
from pipeline.dedup.run import find_duplicates
from pipeline.embedding.record import space_of
from pipeline.embedding.run import Report
from pipeline.embedding.sources import read_source, source_names, write_source
from pipeline.errors import InputError
from pipeline.exchange.atlas import export_atlas
from pipeline.exchange.clip_retrieval import clip_retrieval_source, export_clip_retrieval
from pipeline.exchange.huggingface import load_dataset
from pipeline.exchange.lance import export_lance
from pipeline.exchange.manifest import Manifest, manifest
from pipeline.exchange.target import Exported
from pipeline.exchange.vectors_in import import_embeddings
from pipeline.indexing.publish import Card, read_card, read_current
from pipeline.searching.catalog import Catalog
from pipeline.searching.encoder import Picture, Vectors
from pipeline.searching.nearest import Kind, Nearest
from pipeline.searching.opened import OpenTable
from pipeline.searching.query import Search, Surroundings
from pipeline.searching.relations import REJECTS, relation, source_relation
from pipeline.searching.sql import run_sql
from pipeline.store import Store
from pipeline.table import find_table, table_folder
from pipeline.upkeep.backfill import backfill, build_only, embed_only
from pipeline.upkeep.status import status


@dataclass(frozen=True)
class Embedded:
    """What became of a source's rows."""

    table: str
    rows: int
    embedded: int
    rejected: dict[str, int]  # by reason
    dimensions: int
    space: str
    seconds: float
    index: str | None  # the version that was published


@dataclass(frozen=True)
class Table:
    """A table, as a list of them shows it."""

    table: str
    source: str
    image_column: str
    model: str
    space: str
    dimensions: int
    rows: int | None  # that the published index finds; None: nothing is published
    index: str | None


class Session:
    """A store and what has been opened of it.

    Args:
        store: the folder or URL below which everything is kept.
        ray_address: of a cluster to join, as ``auto`` or ``host:6379``; None: RAY_ADDRESS's, or one that is started on
            this machine when it is needed.
        models: where models are now that have moved, by what a table's record calls them.
        allow_pickle_weights: as in the embed job.
    """

    def __init__(
        self,
        store: str,
        *,
        ray_address: str | None = None,
        models: Mapping[str, str] | None = None,
        allow_pickle_weights: bool = False,
    ) -> None:
        self.store = Store(str(store))
        self._catalog = Catalog(self.store, dict(models or {}), allow_pickle_weights=allow_pickle_weights)
        if ray_address is not None:
            compute.start_ray(ray_address)

    def __repr__(self) -> str:
        return f"Session({self.store.url!r})"

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that decode queries; the session goes on if it is asked again."""
        self._catalog.close()

    def add_source(
        self,
        name: str,
        url: str | Sequence[str],
        *,
        image_column: str = "image",
        key: str | None = None,
        keep: Sequence[str] = (),
        **options: Any,  # of SourceConfig
    ) -> SourceConfig:
        """Name a source.

        Args:
            url: a folder, glob or Parquet file, or a list of them, on any filesystem.
            key: a column that is unique and without nulls; None: shard and row number.
            keep: columns that tables of it carry beside the vectors, which conditions are fastest on.
            options: others of the embed job's ``source``.

        Raises:
            InputError: there are no such files, or an option is none.
        """
        fields = {"name": name, "path": url, "image_column": image_column, "key_column": key, "keep_columns": keep}
        source = checked(SourceConfig, {**fields, **options})
        source_relation(source)
        write_source(self.store, source)
        return source

    def add_pictures(
        self, name: str, url: str, kind: Literal["folder", "webdataset"] = "folder", **options: Any
    ) -> Manifest:  # of ManifestConfig
        """Name a source of pictures that do not lie in Parquet; none of them is copied. Again, it sees what is new.

        Args:
            url: a folder of picture files, labelled by the folders they are in; or of webdataset tars, with their
                ``.txt`` as caption and the fields of ``.json`` as columns.

        Raises:
            InputError: there are no pictures, or a tar cannot be read.
        """
        fields = {"store": self.store.url, "name": name, "path": url, "kind": kind, **options}
        made = manifest(checked(ManifestConfig, fields))
        self.store.replace_json(_roots_file(name), {"roots": list(made.roots)})
        return made

    def sources(self) -> dict[str, SourceConfig]:
        """Give the sources that the store knows, by name."""
        return {name: self._catalog.source(name) for name in source_names(self.store)}

    def generate_image_embeddings(
        self,
        source: str,
        model: str,
        *,
        image_column: str | None = None,
        key: str | None = None,
        table: str | None = None,
        index: bool = True,
        **options: Any,  # of EmbedConfig or BackfillConfig
    ) -> Embedded:
        """Embed every image of a source that is not embedded yet, and index them.

        Args:
            source: its name.
            model: a folder, architecture/tag, org/name or hf-hub:org/name[@revision].
            image_column, key: in place of the source's own.
            table: None: ``<source>__<space>``, with the column in it where it is not the source's own.
            index: no: leave the index as it is.
            options: of the embed job, as ``preprocess={"fit": "model"}`` or ``unit_rows=1000``.

        Raises:
            RunError: as the job says; what was committed stays, and the same call goes on.
        """
        known = self._catalog.source(source)
        own = {"image_column": image_column or known.image_column, "key_column": key or known.key_column}
        followed = {"fetch": self._roots(source)}
        fields = {"model": model, "source": {**known.model_dump(), **own}, **self._common(), **followed, **options}
        config = checked(BackfillConfig, fields)
        if table is None and own["image_column"] != known.image_column:
            column = re.sub(r"[^A-Za-z0-9._-]", "-", str(own["image_column"]))
            table = f"{source}.{column}__{space_of(config).name}"
        return self._embed(checked(BackfillConfig, {**fields, "table": table}), index=index)

    def import_embeddings(
        self,
        source: str,
        vectors: str | Sequence[str],
        dimensions: int,
        *,
        table: str | None = None,
        index: bool = True,
        **options: Any,  # of ImportConfig
    ) -> Embedded:
        """Make a table of vectors that were made elsewhere: verified, normalised, and indexed.

        Args:
            source: a name for where they come from.
            vectors: Parquet of ``_row_id`` and ``vector``, as `add_source` takes it; or, with
                ``layout="clip-retrieval"``, the folder that has ``img_emb`` and ``metadata``.
            dimensions: numbers in each vector.
            options: ``model``, the checkpoint that made them, so that texts and pictures can be asked for; ``keep``,
                columns to carry along; others of `ImportConfig`.

        Raises:
            RunError: as the embed job says; a vector that is null or has no direction is a reject.
        """
        keep = options.pop("keep", None)
        if options.get("layout") == "clip-retrieval":
            where: Any = clip_retrieval_source(source, str(vectors), keep)
        else:
            where = {"name": source, "path": vectors, "keep_columns": keep or ()}
        fields = {**self._common(), "source": where, "dimensions": dimensions, "table": table, **options}
        return self._import(checked(ImportConfig, fields), index=index)

    def refresh(self, table: str | None = None) -> Embedded:
        """Embed what a table's source has new, let go what is gone if it was asked to, and update the index.

        Args:
            table: its name, or its source's; None: the store's only one.

        Raises:
            RunError: as `generate_image_embeddings` says.
        """
        name = find_table(self.store, None) if table is None else self._catalog.table_of(table)
        asked = {**self.store.read_json(f"{table_folder(name)}/config.json"), **self._common(), "table": name}
        if "dimensions" in asked:  # of vectors that were made elsewhere
            return self._import(checked(ImportConfig, asked), index=True)
        return self._embed(checked(BackfillConfig, asked), index=True)

    def build_index(self, table: str | None = None, **options: Any) -> Card:  # of IndexConfig
        """Build, measure and publish a table's index; its card says what was measured.

        Raises:
            RunError: as the job says.
        """
        name = find_table(self.store, None) if table is None else self._catalog.table_of(table)
        return build_only(checked(IndexConfig, {**self._common(), **options, "table": name}))

    def tables(self) -> list[Table]:
        """List the store's tables."""
        found = []
        for name, record in self._catalog.records().items():
            version = read_current(self.store, name)
            rows = None if version is None else read_card(self.store, name, version).ntotal
            found.append(
                Table(name, record.source, record.image_column, record.model_id, record.space, record.d, rows, version)
            )
        return found

    def describe(self, name: str) -> dict[str, Any]:  # JSON's types
        """Say of a table how it stands, with its record; of a source, its columns and rows."""
        source = read_source(self.store, name)
        if source is None or name in self._catalog.records():
            table = self._catalog.table_of(name)
            standing = asdict(status(StatusConfig(store=self.store.url, table=table)))
            return {**standing, "record": asdict(self._catalog.record(table))}
        rows = source_relation(source)
        columns = {field.name: str(field.type) for field in rows.schema}
        tables = [table for table, record in self._catalog.records().items() if record.source == name]
        return {**source.model_dump(mode="json"), "columns": columns, "rows": rows.count_rows(), "tables": tables}

    def rejects(self, table: str) -> pa.Table:
        """Give the rows that could not be embedded: `_row_id`, shard, row, and why."""
        found = relation(self.store, self._catalog.table_of(table), REJECTS)
        if found is None:
            raise InputError(f"table {table}: there is none of that name")
        return found.to_table()

    def encode_image_query(self, model: str, image: Picture, **options: Any) -> Vectors:  # of ModelConfig
        """Encode a picture: encoded bytes, a picture of Pillow, or a path. Gives float32 (d,) of norm 1.

        Args:
            model: as the embed job takes it.
            options: of the embed job, as ``preprocess={"fit": "model"}``: vectors of other ways are not compared.

        Raises:
            InputError: the model cannot be used, or this is no picture.
        """
        vector: Vectors = self.encode_image_queries(model, [image], **options)[0]
        return vector

    def encode_image_queries(self, model: str, images: Sequence[Picture], **options: Any) -> Vectors:  # likewise
        """Encode pictures: (n, d)."""
        return self._catalog.encoder(model, options).images(images)

    def encode_text_query(self, model: str, text: str, **options: Any) -> Vectors:  # likewise
        """Encode a text: (d,).

        Raises:
            InputError: the model cannot be used, or came without its tokenizer.
        """
        vector: Vectors = self.encode_text_queries(model, [text], **options)[0]
        return vector

    def encode_text_queries(self, model: str, texts: Sequence[str], **options: Any) -> Vectors:  # likewise
        """Encode texts: (n, d)."""
        return self._catalog.encoder(model, options).texts(texts)

    def search(
        self,
        source: str,
        *,
        query: Sequence[float] | NDArray[np.floating] | None = None,
        text: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        row_id: str | Sequence[str] | None = None,
        k: int = 10,
        table: str | None = None,
        image_column: str | None = None,
    ) -> Search:
        """Describe a search for the k rows nearest to a query; `Search.run` runs it.

        Several of vector, text, image and row are ranked each and fused by reciprocal rank. A list of any of them, or
        vectors (n, d), is a batch: its rows say of which query they are.

        Args:
            source: a source's name, or a table's.
            query: a vector (d,) or several (n, d); one that was encoded here is refused by tables of another space.
            image: encoded bytes, a picture of Pillow, or a path.
            row_id: a row of the table, which is not among its own hits.
            table, image_column: which of several tables of the source.

        Raises:
            InputError: no query, no such source or table, or more than one to choose from.
        """
        opened = partial(self._catalog.open, self._catalog.table_of(source, table, image_column))
        asked: dict[Kind, Any] = {"query": query, "text": text, "image": image, "row_id": row_id}
        around = Surroundings(self._catalog.relation, self._catalog.encoder_named, contact_sheet)
        searches = [
            Search(Nearest(opened, kind, *_batch(kind, value), k), around, (opened,))
            for kind, value in asked.items()
            if value is not None
        ]
        if not searches:
            raise InputError("search: wanted at least one of query, text, image, row_id")
        return searches[0] if len(searches) == 1 else searches[0].fuse(*searches[1:])

    def sql(self, statement: str, **parameters: Any) -> pa.RecordBatchReader:  # of whatever type SQL has
        """Run one SELECT, and give its rows as they come: ``.read_all()`` for all of them.

        Sources and tables go by their names, rejects by ``rejects."<table>"``; where a source and a table have one
        name, ``sources.`` and ``embeddings.`` before it tell. Beside DuckDB's functions there are ``cosine(a, b)``,
        ``embed_text(model or table, text)``, ``vector_mean``, ``vector_sum`` and ``search(table, query, k)``.

        Args:
            parameters: of ``$name``.

        Raises:
            InputError: it is no SELECT, or asks for what there is not or what it may not.
        """
        return run_sql(statement, parameters, partial(relation, self.store), self._embed_texts, self._search_of)

    def find_duplicates(self, table: str | None = None, **options: Any) -> Duplicates:  # of DedupConfig
        """Find rows that show the same picture, put them into groups, and choose which of each to keep.

        By equal bytes, by looks and by vectors. The card says how many there are and where the report is, which shows
        pairs above and below the threshold; asked the same again, it is read.

        Args:
            table: its name, or its source's; None: the store's only one.
            options: of the job, as ``threshold=0.9``, ``stages=["exact"]`` or ``keep="column:width"``.

        Raises:
            RunError: as the job says; the same call goes on.
        """
        name = find_table(self.store, None) if table is None else self._catalog.table_of(table)
        return find_duplicates(checked(DedupConfig, {"store": self.store.url, **options, "table": name}))

    def duplicate_groups(self, found: Duplicates) -> pa.Table:
        """Give the rows that have duplicates: group, `_row_id`, whether it is the one to keep, similarity to that.

        Raises:
            IncompleteError: the file is missing or damaged.
        """
        return read_groups(self.store, found)

    def export(
        self, table: str, target: str, layout: Literal["lance", "clip-retrieval", "atlas"] = "lance", **options: Any
    ) -> Exported:  # of the export's own
        """Write a table's rows for others: the rows that its receipts name, counted.

        Args:
            target: a folder (lance: what `lancedb.connect` takes; clip-retrieval), or a Parquet file (atlas, for
                Embedding Atlas).
            options: ``overwrite``; of lance ``name`` and ``columns``, of clip-retrieval ``file_rows``, of atlas
                ``vectors`` and ``project``.

        Raises:
            InputError: there is no such table or layout, or something is in the place.
            IncompleteError: a file of the table is missing or damaged.
        """
        exports: dict[str, Callable[..., Exported]] = {
            "lance": export_lance,
            "clip-retrieval": export_clip_retrieval,
            "atlas": export_atlas,
        }
        if layout not in exports:
            raise InputError(f"export: wanted a layout of {', '.join(exports)}, got {layout!r}")
        return exports[layout](self.store, self._catalog.table_of(table), target, **options)

    def load_dataset(self, table: str, **options: Any) -> Any:  # datasets.Dataset, which is untyped
        """Give a table's rows as a Dataset of Hugging Face's ``datasets``, in the order of vector ids.

        Raises:
            ImportError: datasets is not installed.
        """
        return load_dataset(self.store, self._catalog.table_of(table), **options)

    def evaluate(
        self,
        golden: Any,
        table: str | None = None,
        *,
        k: int = 10,
        cohorts: Sequence[str] = (),
        seed: int = 0,
    ) -> Evaluation:
        """Ask golden queries, by an exact search and by the index, and measure both.

        Args:
            golden: a path or URL of Parquet, an Arrow table, a DataFrame or a list of dicts: ``query_id``; one of
                ``query_text``, ``query_image``, ``query_vector``; ``relevant_id``; and perhaps ``relevance_grade``.
            table: its name, or its source's; None: the store's only one.
            k: at which metrics are cut.
            cohorts: columns of the golden queries to state results by.

        Raises:
            InputError: the golden queries cannot be used; a query cannot be encoded, or is of another space.
        """
        return golden_quality(self._opened(table), read_golden(golden, cohorts), k, seed)

    def compare(
        self, tables: Sequence[str], golden: Any, *, k: int = 10, way: Way = "indexed", seed: int = 0
    ) -> dict[str, dict[str, Difference]]:
        """Compare tables on the same golden queries with the first of them: by table, the differences by metric.

        Args:
            way: whether what the indexes find is compared, or exact searches.

        Raises:
            InputError: as `evaluate` says, or there is nothing to compare.
        """
        if len(tables) < 2:
            raise InputError(f"compare: wanted a baseline and another table, got {list(tables)}")
        asked = read_golden(golden)
        baseline, *others = (golden_quality(self._opened(table), asked, k, seed) for table in tables)
        return dict(zip(tables[1:], compare(baseline, others, way, seed), strict=True))

    def evaluate_retrieval(self, captions: str, table: str | None = None) -> Retrieval:
        """Find a table's pictures by their captions, and captions by pictures: recall at 1, 5 and 10.

        Args:
            captions: the column; pictures of equal captions share it.

        Raises:
            InputError: there is no such column, or no caption in it.
        """
        return caption_quality(self._opened(table), captions)

    def evaluate_zero_shot(
        self,
        labels: str,
        table: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        templates: Sequence[str] = TEMPLATES,
    ) -> ZeroShot:
        """Classify a table's pictures by the names of classes alone.

        Args:
            labels: the column with the class of each row.
            classes: None: all that the column has.
            templates: prompts, with {} where a class's name goes.

        Raises:
            InputError: there is no such column, or no row of these classes.
        """
        return class_quality(self._opened(table), labels, classes, templates)

    def _opened(self, table: str | None) -> OpenTable:
        name = find_table(self.store, None) if table is None else self._catalog.table_of(table)
        return self._catalog.open(name)

    def _common(self) -> dict[str, Any]:
        return {"store": self.store.url, "allow_pickle_weights": self._catalog.allow_pickle_weights}

    def _roots(self, source: str) -> dict[str, Any]:  # of FetchConfig
        """Say where a source's references may lead, where it is one of references that were made here."""
        try:
            return self.store.read_json(_roots_file(source))
        except FileNotFoundError:
            return {}

    def _import(self, config: ImportConfig, *, index: bool) -> Embedded:
        imported, version = import_embeddings(config), None
        if index:
            texts = "none" if config.model is None else "ours"
            fields = {**self._common(), "table": imported.table, "text_queries": texts}
            version = build_only(checked(IndexConfig, fields)).version
        return Embedded(**asdict(imported), index=version)

    def _embed(self, config: BackfillConfig, *, index: bool) -> Embedded:
        version = None
        if index:
            report, card = backfill(config)
            version = card.version
        else:
            report = embed_only(config, "session")
        return _embedded(report, version)

    def _embed_texts(self, model: str, texts: list[str]) -> NDArray[np.float32]:
        return self._catalog.encoder_named(model).texts(texts)

    def _search_of(self, asked: dict[str, Any]) -> pa.Table:
        """Run what SQL calls search."""
        query, condition = asked.get("query"), asked.get("filter")
        kind = {"text": query} if isinstance(query, str) else {"query": query}
        if "row_id" in asked:
            kind["row_id"] = asked["row_id"]
        found = self.search(asked["table"], k=int(asked.get("k", 10)), **kind)
        return (found if condition is None else found.filter(condition)).run()


def _roots_file(source: str) -> str:
    return f"sources/{source}/roots.json"


def _embedded(report: Report, version: str | None) -> Embedded:
    return Embedded(
        table=report.table,
        rows=report.rows_in,
        embedded=report.embedded,
        rejected=report.reasons,
        dimensions=report.d,
        space=report.space,
        seconds=report.seconds,
        index=version,
    )


def _batch(kind: Kind, value: Any) -> tuple[Any, bool]:  # whatever `Session.search` takes
    """Give queries as a list, and whether they were one."""
    if kind == "query":
        vectors = np.asanyarray(value, np.float32)
        if vectors.ndim not in (1, 2):
            raise InputError(f"query: wanted a vector (d,) or several (n, d), got {vectors.shape}")
        return np.atleast_2d(vectors), vectors.ndim == 2
    is_batch = isinstance(value, list | tuple)
    return (list(value) if is_batch else [value]), is_batch
