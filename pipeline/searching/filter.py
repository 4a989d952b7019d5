"""Conditions on kept columns in, the vector ids that meet them out.

Conditions have types and no text that is ever run: columns, operators and values, put together by all, any and not. A
null meets no condition but is_null. Knows nothing of HTTP.
"""

from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from pipeline.errors import InputError
from pipeline.indexing.exact import Selection
from pipeline.schema import CONTENT_HASH
from pipeline.searching.columns import Columns

MAX_DEPTH = 8
MAX_CONDITIONS = 64
MAX_VALUES = 1000  # of one "in"
Text = Annotated[StrictStr, Field(max_length=10_000)]
Value = StrictBool | StrictInt | StrictFloat | Text
COMPARISONS = {
    "eq": pc.equal,
    "ne": pc.not_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
    "gt": pc.greater,
    "gte": pc.greater_equal,
}
OPERATORS = (*COMPARISONS, "in_", "contains", "is_null")


class Filter(BaseModel):
    """One of all, any, not; or a column with one operator."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    all: tuple["Filter", ...] | None = Field(default=None, min_length=1, max_length=MAX_CONDITIONS)
    any: tuple["Filter", ...] | None = Field(default=None, min_length=1, max_length=MAX_CONDITIONS)
    not_: "Filter | None" = Field(default=None, alias="not")
    column: Text | None = None
    eq: Value | None = None
    ne: Value | None = None
    lt: Value | None = None
    lte: Value | None = None
    gt: Value | None = None
    gte: Value | None = None
    in_: tuple[Value, ...] | None = Field(default=None, alias="in", min_length=1, max_length=MAX_VALUES, fail_fast=True)
    contains: Text | None = None
    is_null: StrictBool | None = None

    @model_validator(mode="after")
    def _is_one_condition(self) -> Self:
        kinds = [name for name in ("all", "any", "not_", "column") if getattr(self, name) is not None]
        operators = [name for name in OPERATORS if getattr(self, name) is not None]
        if len(kinds) != 1 or len(operators) != (kinds == ["column"]):
            raise ValueError("wanted one of all, any, not; or a column with one operator such as eq, in or is_null")
        if self.depth > MAX_DEPTH or self.conditions > MAX_CONDITIONS:
            raise ValueError(f"wanted at most {MAX_DEPTH} levels and {MAX_CONDITIONS} conditions")
        return self

    def __eq__(self, other: object) -> bool:
        """Compare as written: to Python, true is 1, and to a column of text it is not."""
        return isinstance(other, Filter) and self.model_dump_json() == other.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def parts(self) -> tuple["Filter", ...]:
        """The conditions below this one."""
        return self.all or self.any or (() if self.not_ is None else (self.not_,))

    @property
    def depth(self) -> int:
        """How many levels there are."""
        return 1 + max((part.depth for part in self.parts), default=0)

    @property
    def conditions(self) -> int:
        """How many conditions there are in all."""
        return 1 + sum(part.conditions for part in self.parts)


def select(wanted: Filter, columns: Columns) -> Selection:
    """Find the vector ids whose columns meet a filter.

    Raises:
        InputError: there is no such column, or one of another type than the condition.
    """
    masks = [pc.fill_null(_mask(wanted, batch), False) for batch in columns.batches]
    return Selection(np.concatenate([np.asarray(mask.to_numpy(zero_copy_only=False), np.bool_) for mask in masks]))


def _mask(wanted: Filter, batch: pa.RecordBatch) -> pa.BooleanArray:
    """Tell for every row whether it meets a filter; null where a null leaves it open (Kleene's logic)."""
    if wanted.not_ is not None:
        return pc.invert(_mask(wanted.not_, batch))
    if wanted.column is not None:
        return _compared(wanted, wanted.column, batch)
    first, *others = (_mask(part, batch) for part in wanted.parts)
    for other in others:
        first = pc.and_kleene(first, other) if wanted.all else pc.or_kleene(first, other)
    return first


def _compared(wanted: Filter, name: str, batch: pa.RecordBatch) -> pa.BooleanArray:
    known = [each for each in batch.schema.names if each != CONTENT_HASH]
    if name not in known:
        raise InputError(f"filter: no column {name!r}; there are {', '.join(known)}")
    column = batch[name]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if wanted.is_null is not None:
        return pc.is_null(column) if wanted.is_null else pc.is_valid(column)
    try:
        if wanted.contains is not None:
            return pc.match_substring(column, wanted.contains)
        if wanted.in_ is not None:
            values = [_cast(value, column.type) for value in wanted.in_]
            return pc.is_in(column, value_set=pa.array([value.as_py() for value in values], column.type))
        ((compare, value),) = (
            (compare, getattr(wanted, operator))
            for operator, compare in COMPARISONS.items()
            if getattr(wanted, operator) is not None
        )
        return compare(column, _cast(value, column.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"filter: column {name!r} is of type {column.type}: {error}") from error


def _cast(value: Value, kind: pa.DataType) -> pa.Scalar:
    """Take a value for one of a column's type: numbers for numbers, text for text and times, as ISO 8601 has them.

    Raises:
        ArrowInvalid: it is of another kind.
    """
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    wanted = bool if pa.types.is_boolean(kind) else (int, float) if numeric else str
    if not isinstance(value, wanted) or isinstance(value, bool) != pa.types.is_boolean(kind):
        raise pa.ArrowInvalid(f"got {value!r}")
    return pa.scalar(value).cast(kind)
