"""Vectors that are a column of Parquet: their width by the footers alone, and a unit's rows.

In: shards and units. Out: nothing or an error, and rows with their vectors. Knows nothing of tables.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from pipeline.config import ImportConfig
from pipeline.embedding.plan import Shard
from pipeline.errors import InputError
from pipeline.filesystem import open_parquet
from pipeline.table import Unit

READ_ROWS = 2048
NUMBERS = (types.is_float16, types.is_float32, types.is_float64)


def check_widths(shard: Shard, config: ImportConfig) -> None:
    """Check the type of a shard's vectors, and their number of numbers as far as its footer tells.

    Raises:
        InputError: there is no such column, or it has other lists than of `dimensions` numbers.
    """
    name, d = config.vector_column, config.dimensions
    where = f"source {config.source.name}: shard {shard.url}"
    with open_parquet(shard.url) as file:
        form, footer = file.schema_arrow, file.metadata
        if name not in form.names:
            raise InputError(f"{where}: no column {name!r}; it has {', '.join(form.names)}")
        kind = form.field(name).type
        if not _is_list(kind) or not any(check(kind.value_type) for check in NUMBERS):
            raise InputError(f"{where}: column {name!r} is {kind}; wanted lists of float")
        if types.is_fixed_size_list(kind) and kind.list_size != d:
            raise InputError(f"{where}: column {name!r} has {kind.list_size} numbers a row; dimensions: {d}")
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            values = _values(group, name)
            if not _may_be(group.num_rows, values, d):
                raise InputError(
                    f"{where}: column {name!r} has {values} numbers in {group.num_rows} rows of row group {number}; "
                    f"dimensions: {d}"
                )


def read_rows(unit: Unit, columns: list[str], config: ImportConfig) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Yield a unit's rows with their vectors, some at a time."""
    groups = list(range(unit.first_group, unit.first_group + unit.groups))
    with open_parquet(unit.shard) as file:
        for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=[*columns, config.vector_column]):
            yield batch.select(columns), batch.column(config.vector_column)


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _values(group: Any, name: str) -> int:  # pyarrow is untyped
    """Count a column's numbers as Parquet does: a null or empty list is one."""
    columns = (group.column(i) for i in range(group.num_columns))
    return int(sum(column.num_values for column in columns if column.path_in_schema.startswith(f"{name}.")))


def _may_be(rows: int, values: int, d: int) -> bool:
    """Tell whether so many numbers can be lists of d and nulls: with d = 1 all counts are alike."""
    lists, rest = divmod(values - rows, d - 1) if d > 1 else (0, values - rows)
    return rest == 0 and 0 <= lists <= rows
