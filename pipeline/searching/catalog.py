"""What a store has, and what has been opened of it: sources, tables, versions, encoders, each found by its name.

In: names as people say them, of sources, tables or models. Out: the one thing that is meant, loaded once.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow.dataset as ds

from pipeline.config import FetchConfig, ModelConfig, SourceConfig, checked
from pipeline.embedding.fetch import FetchSpec, fetch_spec
from pipeline.embedding.sources import read_source, source_names
from pipeline.errors import InputError
from pipeline.indexing.publish import read_current
from pipeline.searching.encoder import Encoder, encoder_of, open_encoder
from pipeline.searching.opened import OpenTable, open_table
from pipeline.searching.relations import relation, source_relation
from pipeline.store import Store
from pipeline.table import TableRecord, read_record, table_folder


class Catalog:
    """A store's names.

    Args:
        models: where models are now that have moved, by what a table's record calls them.
        allow_pickle_weights: as in the embed job.
    """

    def __init__(self, store: Store, models: Mapping[str, str], *, allow_pickle_weights: bool = False) -> None:
        self.store = store
        self.models = models
        self.allow_pickle_weights = allow_pickle_weights
        self._encoders: dict[str, Encoder] = {}
        self._opened: dict[str, OpenTable] = {}

    def close(self) -> None:
        """End the processes that decode queries."""
        for encoder in self._encoders.values():
            encoder.close()

    def source(self, name: str) -> SourceConfig:
        """Give a source.

        Raises:
            InputError: the store knows none of this name.
        """
        source = read_source(self.store, name)
        if source is None:
            known = ", ".join(source_names(self.store)) or "none"
            raise InputError(f"source {name!r}: the store knows {known}; name it with add_source(name, url)")
        return source

    def relation(self, name: str) -> ds.Dataset:
        """Give the rows of a source, or else the embedded rows of a table.

        Raises:
            InputError: there is neither.
        """
        found = relation(self.store, name)
        return source_relation(self.source(name)) if found is None else found

    def records(self) -> dict[str, TableRecord]:
        """Give the records of all tables, by name."""
        records = ((name, read_record(self.store, name)) for name in self.store.folders("embeddings"))
        return {name: record for name, record in records if record is not None}

    def record(self, table: str) -> TableRecord:
        """Give a table's record.

        Raises:
            InputError: there is no such table.
        """
        record = read_record(self.store, table)
        if record is None:
            raise InputError(f"table {table}: has no table.json")
        return record

    def table_of(self, name: str, table: str | None = None, image_column: str | None = None) -> str:
        """Name the one table that is meant by a source's name or its own."""
        records = self.records()
        if (named := table or name) in records and image_column is None:
            return named
        if table is not None:
            raise InputError(f"table {table!r}: there are {', '.join(records) or 'none'}")
        found = [
            each
            for each, record in records.items()
            if record.source == name and image_column in (None, record.image_column)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            choices = ", ".join(f"{each} (image_column {records[each].image_column!r})" for each in found)
            raise InputError(f"source {name!r}: wanted table= or image_column= to choose one of {choices}")
        of = "" if image_column is None else f" of its column {image_column!r}"
        raise InputError(f"{name!r}: no table{of}; there are {', '.join(records) or 'none'}")

    def open(self, table: str) -> OpenTable:
        """Open the version that is published now, unless it is open already."""
        opened = self._opened.get(table)
        if opened is None or opened.index.card.version != read_current(self.store, table):
            record = self.record(table)
            encoder = self._encoder_of(record)
            opened = self._opened[table] = open_table(
                self.store, table, record, self._fetch_spec(table, record), encoder
            )
        return opened

    def encoder(self, model: str, options: Mapping[str, Any]) -> Encoder:
        """Give the encoder that a model's name and options ask for."""
        allow = {"allow_pickle_weights": self.allow_pickle_weights}
        config = checked(ModelConfig, {"model": self.models.get(model, model), **allow, **options})
        asked = config.model_dump_json()
        if asked not in self._encoders:
            self._encoders[asked] = encoder_of(config)
        return self._encoders[asked]

    def encoder_named(self, name: str) -> Encoder:
        """Give the encoder of a table, a source's only table, or a model."""
        records = self.records()
        if name in records or any(record.source == name for record in records.values()):
            return self._encoder_of(records[self.table_of(name)])
        return self.encoder(name, {})

    def _encoder_of(self, record: TableRecord) -> Encoder:
        """Give the encoder of a table's queries, loaded once for all tables of its space."""
        if record.space not in self._encoders:
            model = self.models.get(record.model, record.model)
            allow = self.allow_pickle_weights
            self._encoders[record.space] = open_encoder(record, model, allow_pickle_weights=allow)
        return self._encoders[record.space]

    def _fetch_spec(self, table: str, record: TableRecord) -> FetchSpec:
        try:
            asked = self.store.read_json(f"{table_folder(table)}/config.json").get("fetch", {})
        except FileNotFoundError:  # of vectors that were made elsewhere
            asked = {}
        return fetch_spec(FetchConfig.model_validate(asked), record.preprocess.limits.max_image_bytes)
