"""How good a table is, asked in three ways: golden queries, its pictures' captions, and classes by their names.

In: an open table. Out: what `evaluate`, `retrieval` and `zero_shot` measure of it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analysis.evaluate import Evaluation, evaluate
from pipeline.analysis.golden import Golden
from pipeline.analysis.retrieval import Retrieval, retrieval
from pipeline.analysis.zero_shot import TEMPLATES, Block, ZeroShot, class_vectors, zero_shot
from pipeline.errors import InputError
from pipeline.indexing.exact import Selection
from pipeline.searching.nearest import Kind, Nearest
from pipeline.searching.opened import OpenTable

ENCODED_AT_ONCE = 256  # queries
KINDS: dict[str, Kind] = {"text": "text", "image": "image", "vector": "query"}


def golden_quality(table: OpenTable, golden: Golden, k: int = 10, seed: int = 0) -> Evaluation:
    """Ask a table golden queries.

    Raises:
        InputError: a query cannot be encoded, or is of another space.
    """
    parts = []
    for first in range(0, len(golden), ENCODED_AT_ONCE):
        asked = Nearest(lambda: table, KINDS[golden.kind], golden.queries[first : first + ENCODED_AT_ONCE], True, k)
        parts.append(np.asarray(asked.vectors(table)))
    return evaluate(golden, np.concatenate(parts), table.index, k, seed)


def caption_quality(table: OpenTable, column: str) -> Retrieval:
    """Find captions by pictures and pictures by captions; vectors of all that have one are in memory meanwhile.

    Args:
        column: the captions; rows without one are left out.

    Raises:
        InputError: there is no such column, or no caption in it.
    """
    captions = table.column(column, table.numbers)
    known = np.asarray(captions.is_valid().to_numpy(), np.bool_)
    if not known.any():
        raise InputError(f"table {table.name}: column {column!r} has no captions")
    coded = captions.filter(pa.array(known)).cast(pa.string()).combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    parts = [
        table.encoder.texts(texts[first : first + ENCODED_AT_ONCE]) for first in range(0, len(texts), ENCODED_AT_ONCE)
    ]
    vectors = np.concatenate([np.asarray(part) for part in parts])
    images = table.index.index.exact.take(table.numbers[known])
    return retrieval(images, vectors, coded.indices.to_numpy().astype(np.int64))


def class_quality(
    table: OpenTable, column: str, classes: Sequence[str] | None = None, templates: Sequence[str] = TEMPLATES
) -> ZeroShot:
    """Classify a table's pictures by the names of classes.

    Args:
        column: the class of each row.
        classes: None: all that the column has.
        templates: prompts, with {} where the class's name goes.

    Raises:
        InputError: there is no such column, no row of these classes, or a template without a place for the name.
    """
    labels = table.column(column, table.numbers).cast(pa.string())
    names = sorted(labels.unique().drop_null().to_pylist()) if classes is None else list(classes)
    vectors = class_vectors(names, templates, lambda prompts: np.asarray(table.encoder.texts(prompts)))
    place = {name: number for number, name in enumerate(names)}
    right = np.full(table.index.card.end, -1, np.int64)
    right[table.numbers] = [place.get(label, -1) for label in labels.to_pylist()]
    return zero_shot(_blocks(table, right), names, vectors)


def _blocks(table: OpenTable, right: NDArray[np.int64]) -> Iterator[Block]:
    within = Selection.of(table.numbers, table.index.card.end)
    for ids, rows in table.index.index.exact.blocks(within):
        yield rows, right[ids]
