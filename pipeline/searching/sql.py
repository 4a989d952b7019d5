"""One SELECT over sources, embeddings, rejects and searches in, a stream of Arrow batches out; nothing can be written.

Beside DuckDB's own functions there are:

    cosine(a, b)                       of two vectors
    embed_text(model, text)            a text's vector; a table's name means its model
    vector_mean(v), vector_sum(v)      aggregates, by coordinate
    search(table, query, k)            a relation: rows nearest to a text or a vector, with `similarity`

What a statement names is found in its syntax tree, and nothing else is opened. A search is run before the statement,
so that its arguments are constants, parameters or subqueries.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.searching.sandboxed_sql import Node, brief, locked, nodes, sql_errors, text_of, tree_of

BATCH_ROWS = 1 << 16  # of the stream
MACROS = (
    "CREATE MACRO cosine(a, b) AS list_cosine_similarity(a::FLOAT[], b::FLOAT[])",
    "CREATE MACRO vector_sum(v) AS _vector_sum(list(v::FLOAT[]))",
    "CREATE MACRO vector_mean(v) AS _vector_mean(list(v::FLOAT[]))",
)
SEARCH = "search"
ARGUMENTS = ("table", "query", "k", "row_id", "filter")  # of search; the first three in this order too

Relation = Callable[[str, str | None], ds.Dataset | None]  # name and schema to what is scanned
Embed = Callable[[str, list[str]], NDArray[np.float32]]  # model and texts to vectors (n, d)
Search = Callable[[dict[str, Any]], pa.Table]  # ARGUMENTS to rows


def run_sql(
    statement: str, parameters: Mapping[str, Any] | None, relation: Relation, embed: Embed, search: Search
) -> pa.RecordBatchReader:
    """Run a SELECT; its rows are computed as the reader is read.

    Args:
        parameters: of ``$name`` in the statement.

    Raises:
        InputError: it is no SELECT, names what there is not, or asks for what it may not.
    """
    tree = tree_of(statement, functions=(SEARCH,))
    connection = _prepared(embed)
    _register(connection, tree, relation)
    for number, node in enumerate(list(nodes(tree, "TABLE_FUNCTION"))):
        if node["function"]["function_name"] == SEARCH:
            name = f"_search_{number}"
            connection.register(name, search(_arguments(connection, node, parameters)))
            _replace_by_table(node, name)
    with sql_errors(f"SQL {brief(statement)}"):
        found = connection.sql(text_of(tree), params=_used(tree, parameters))
        reader: pa.RecordBatchReader = found.to_arrow_reader(BATCH_ROWS)
    return pa.RecordBatchReader.from_batches(reader.schema, _streamed(connection, reader, statement))


def _prepared(embed: Embed) -> duckdb.DuckDBPyConnection:
    """Open a database with our functions in it."""
    connection = locked()
    floats = duckdb.list_type("FLOAT")

    def embed_text(models: pa.ChunkedArray, texts: pa.ChunkedArray) -> pa.Array:
        found = np.empty(len(texts), object)
        asked = list(zip(models.to_pylist(), texts.to_pylist(), strict=True))
        for model in {model for model, text in asked if model is not None and text is not None}:
            distinct = list(dict.fromkeys(text for one, text in asked if one == model and text is not None))
            vectors = dict(zip(distinct, embed(model, distinct).tolist(), strict=True))
            for place, (one, text) in enumerate(asked):
                if one == model and text is not None:
                    found[place] = vectors[text]
        return pa.array(found.tolist(), pa.list_(pa.float32()))

    functions: list[tuple[str, Callable[..., pa.Array], list[Any]]] = [  # types as DuckDB's stubs take them
        ("embed_text", embed_text, [duckdb.string_type(), duckdb.string_type()]),
        ("_vector_sum", _by_coordinate(np.sum), [duckdb.list_type(floats)]),
        ("_vector_mean", _by_coordinate(np.mean), [duckdb.list_type(floats)]),
    ]
    for name, function, arguments in functions:
        connection.create_function(  # type: ignore[call-overload]  # its stubs know only enums
            name, function, arguments, floats, type="arrow", null_handling="special"
        )
    for macro in MACROS:
        connection.execute(macro)
    return connection


def _by_coordinate(over: Callable[..., NDArray[np.float64]]) -> Callable[[pa.ChunkedArray], pa.Array]:
    """Make a function of lists of vectors, which must be of one width, that sums up in float64."""

    def summed(groups: pa.ChunkedArray) -> pa.Array:
        found: list[NDArray[np.float32] | None] = []
        for vectors in (group.values for group in groups):
            if vectors is None:
                found.append(None)
                continue
            widths = np.unique(vectors.value_lengths().drop_null().to_numpy())
            if len(widths) > 1:
                raise InputError(f"vectors: wanted one width, got {widths.tolist()}")
            flat = vectors.drop_null().flatten().to_numpy().astype(np.float64)
            found.append(over(flat.reshape(-1, int(widths[0])), axis=0).astype(np.float32) if len(widths) else None)
        return pa.array(found, pa.list_(pa.float32()))

    return summed


def _register(connection: duckdb.DuckDBPyConnection, tree: Node, relation: Relation) -> None:
    """Let the database see what a statement names, where it is ours."""
    names = {(node["schema_name"] or None, node["table_name"]) for node in nodes(tree, "BASE_TABLE")}
    for number, (folder, name) in enumerate(sorted(names, key=str)):
        found = relation(name, folder)
        if found is None:  # a common table expression, or nothing: DuckDB will say
            continue
        if folder is None:
            connection.register(name, found)
        else:
            connection.register(f"_relation_{number}", found)
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{folder}"')
            quoted = name.replace('"', '""')
            connection.execute(f'CREATE VIEW "{folder}"."{quoted}" AS SELECT * FROM _relation_{number}')


def _arguments(
    connection: duckdb.DuckDBPyConnection, node: Node, parameters: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Compute what a search is called with."""
    given = node["function"]["arguments"]
    names = [argument["name"] or (ARGUMENTS[place] if place < 3 else "") for place, argument in enumerate(given)]
    if not set(names) <= set(ARGUMENTS) or len(set(names)) < len(names) or "table" not in names:
        raise InputError(f"SQL: search: wanted (table, query, k), or by name of {', '.join(ARGUMENTS)}; got {names}")
    select = tree_of("SELECT 1")
    select["statements"][0]["node"]["select_list"] = [argument["expression"] for argument in given]
    with sql_errors("SQL: search: its arguments"):
        found = connection.sql(text_of(select), params=_used(select, parameters))
        (values,) = found.fetchall()
    return dict(zip(names, values, strict=True))


def _used(tree: Node, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the parameters that a tree names: DuckDB takes no others.

    Raises:
        InputError: one has no value.
    """
    names = {node["identifier"] for node in nodes(tree, "VALUE_PARAMETER")}
    if missing := sorted(names - set(parameters or {})):
        raise InputError(f"SQL: no value for {', '.join(f'${name}' for name in missing)}")
    return {name: (parameters or {})[name] for name in names}


def _replace_by_table(node: Node, name: str) -> None:
    """Put a table in the place of a function's call in the tree."""
    (table,) = nodes(tree_of(f"SELECT * FROM {name}"), "BASE_TABLE")
    alias, names = node.get("alias") or SEARCH, node.get("column_name_alias", [])
    node.clear()
    node.update(table, alias=alias, column_name_alias=names)


def _streamed(
    connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader, statement: str
) -> Iterator[pa.RecordBatch]:
    """Yield batches for as long as the database lives, which is here."""
    with sql_errors(f"SQL {brief(statement)}"):
        yield from reader
    connection.close()
