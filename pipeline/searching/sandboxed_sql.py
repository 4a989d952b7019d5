"""A DuckDB that can compute and nothing else: no file, no network, no extension, no variable of Python, no setting.

In: SQL from people. Out: its syntax tree, and values and masks over rows. What it names is found in its tree, so that
only what it needs is read. Knows nothing of tables or sources.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import InputError

LOCKS = (
    "SET temp_directory = ''",  # what does not fit into memory fails; nothing is spilled to a disk
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)
# Of DuckDB's table functions those that only compute: others read files, or memory at addresses (arrow_scan).
TABLE_FUNCTIONS = ("unnest", "range", "generate_series")
PLACE = "_place"  # a column that is always there, so that a table has rows whatever a condition names

Node = dict[str, Any]  # of DuckDB's syntax tree: every JSON type


def locked() -> duckdb.DuckDBPyConnection:
    """Open a database in memory that nothing can be let out of, or into, but what is registered from Python."""
    connection = duckdb.connect(
        ":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    for lock in LOCKS:
        connection.execute(lock)
    return connection


@contextmanager
def sql_errors(what: str) -> Iterator[None]:
    """Turn DuckDB's errors inside ``with`` into one that names the SQL; its message says what and where."""
    try:
        yield
    except duckdb.Error as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}") from error


def tree_of(statement: str, functions: Sequence[str] = ()) -> Node:
    """Parse one SELECT to its tree.

    Args:
        functions: table functions that it may call beside those of TABLE_FUNCTIONS.

    Raises:
        InputError: it is no SQL, more than one statement, another one than SELECT, or calls another table function.
    """
    connection = locked()
    # Through a parameter, so that a quote in the SQL ends nothing.
    (text,) = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [statement]).fetchone() or ("{}",)
    tree: Node = json.loads(text)
    if tree.get("error"):
        raise InputError(f"SQL: {tree.get('error_message', 'not one SELECT')}, in {brief(statement)}")
    if len(tree["statements"]) != 1:
        raise InputError(f"SQL: wanted one SELECT, got {len(tree['statements'])} statements in {brief(statement)}")
    allowed = (*TABLE_FUNCTIONS, *functions)
    for node in nodes(tree, "TABLE_FUNCTION"):
        if (name := node["function"]["function_name"]) not in allowed:
            raise InputError(f"SQL: no table function {name}; there are {', '.join(allowed)}, in {brief(statement)}")
    return tree


def text_of(tree: Node) -> str:
    """Write a tree as SQL again."""
    (text,) = locked().execute("SELECT json_deserialize_sql($1::JSON)", [json.dumps(tree)]).fetchone() or ("",)
    return str(text)


def nodes(tree: Any, kind: str) -> Iterator[Node]:
    """Yield all nodes of a kind in a tree, as BASE_TABLE or COLUMN_REF."""
    if isinstance(tree, dict):
        if tree.get("type") == kind:
            yield tree
        for part in tree.values():
            yield from nodes(part, kind)
    elif isinstance(tree, list):
        for part in tree:
            yield from nodes(part, kind)


def names_in(expression: str) -> set[str] | None:
    """Give what an expression names that may be columns; None if it asks for all of them.

    Raises:
        InputError: it is no expression.
    """
    tree = tree_of(f"SELECT {expression}")
    if next(nodes(tree, "STAR"), None) is not None:
        return None
    return {part for node in nodes(tree, "COLUMN_REF") for part in node["column_names"]}


def alike(names: set[str] | None, known: Sequence[str]) -> list[str]:
    """Say which known columns some names mean, as DuckDB does in any case, but the exact one first; None: all."""
    if names is None:
        return list(known)
    meant = {name for name in names if name in known}
    lower = {name.lower() for name in names - meant}
    return [name for name in known if name in meant or name.lower() in lower]


def computed(rows: pa.Table, expression: str, what: str = "expression") -> pa.ChunkedArray:
    """Compute an expression of columns for every row, in their order.

    Args:
        what: how errors call it.

    Raises:
        InputError: it is no expression, or not of these columns.
    """
    return _computed(rows, expression, f"({expression})", what)


def met(rows: pa.Table, condition: str) -> pa.ChunkedArray:
    """Tell for every row whether it meets a condition; where that is null it does not.

    Raises:
        InputError: it is no condition, or not on these columns.
    """
    return _computed(rows, condition, f"coalesce(CAST(({condition}) AS BOOLEAN), false)", "condition")


def _computed(rows: pa.Table, written: str, expression: str, what: str) -> pa.ChunkedArray:
    wanted = rows.select(alike(names_in(written), rows.column_names))
    wanted = wanted.append_column(PLACE, pa.array(np.arange(rows.num_rows)))
    connection = locked()
    with sql_errors(f"{what} {brief(written)} on {', '.join(rows.column_names)}"):
        connection.register("rows", wanted)
        # DuckDB keeps the order of what it scans (preserve_insertion_order).
        found: pa.Table = connection.sql(f"SELECT {expression} AS value FROM rows").to_arrow_table()
    if found.num_rows != rows.num_rows:
        raise InputError(f"{what} {brief(written)}: gives {found.num_rows} values for {rows.num_rows} rows")
    return found["value"]


def brief(text: str) -> str:
    """Quote SQL in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else f"{line[:200]} …")
