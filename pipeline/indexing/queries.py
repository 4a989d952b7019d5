"""What an index is asked when it is measured: rows of the table, and texts, ours or the user's.

In: a table's vectors, and a name: ours, none, or a file. Out: `Queries` of either kind. Texts are encoded by a function
that is given; nothing here knows of models.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import InputError
from pipeline.filesystem import STORE_ERRORS, filesystem_of, open_parquet, tried

OURS, NONE = "ours", "none"
MOST = 1000  # rows of a file that are used
MAX_TEXT_BYTES = 16 << 20

# What people look for, in the words that they use: beings, things, places, doings, pictures of other kinds.
SUBJECTS = (
    "a dog", "two cats on a sofa", "a horse in a field", "a bird in flight", "an elephant", "fish under water",
    "a butterfly on a flower", "a spider web", "a child laughing", "an old man", "a woman reading a book",
    "a crowd of people", "a bride and groom", "a baby sleeping", "a football player", "a runner",
    "a dancer on a stage", "a cyclist", "a chef in a kitchen", "a doctor", "a farmer", "a musician with a guitar",
    "a red car", "a yellow taxi", "a truck on a motorway", "a train in a station", "a bicycle against a wall",
    "a sailing boat", "an aeroplane", "a bridge over a river", "a skyscraper", "an old church", "a castle on a hill",
    "a wooden house", "a narrow street", "a market stall", "a supermarket shelf", "an empty office", "a classroom",
    "a hospital corridor", "a living room", "a kitchen table", "a bathroom", "a bed with white sheets", "a chair",
    "a lamp", "a clock", "a laptop on a desk", "a mobile phone", "a keyboard", "a camera", "a wristwatch",
    "running shoes", "a leather handbag", "a blue dress", "a black suit", "a hat", "sunglasses", "jewellery",
    "a pizza", "a bowl of soup", "fresh vegetables", "a birthday cake", "a cup of coffee", "a glass of red wine",
    "bread", "an apple", "ice cream", "a mountain with snow", "a sandy beach", "a waterfall", "a forest path",
    "a desert", "a lake with reflections", "a field of sunflowers", "a thunderstorm", "a rainbow", "a sunset",
    "the night sky with stars", "a full moon", "fog", "heavy rain", "a fire", "smoke", "a map",
    "a handwritten letter", "a newspaper page", "a company logo", "a traffic sign", "a barcode", "a bar chart",
    "a floor plan", "a screenshot of a website", "a cartoon character", "graffiti on a wall", "an oil painting",
    "a marble statue", "a geometric pattern", "a plain white background", "nothing but blur",
)  # fmt: skip
FORMS = ("{}", "a photo of {}", "a close-up of {}", "{} in black and white", "a drawing of {}")
PROMPTS = tuple(form.format(subject) for form, subject in product(FORMS, SUBJECTS))


@dataclass(frozen=True)
class Queries:
    """Vectors to ask by, of one kind."""

    kind: str  # image or text
    xq: NDArray[np.float32]  # (n, d), of norm 1
    own: NDArray[np.int64]  # (n,): the id of each query's row; NO_ID where it is none of the table's


@dataclass(frozen=True)
class Texts:
    """Texts to be encoded, or vectors of texts that are."""

    texts: tuple[str, ...] = ()
    vectors: NDArray[np.float32] | None = None  # (n, d), of norm 1

    @property
    def digest(self) -> str:
        """Tell one set of queries from another."""
        content = json.dumps(self.texts).encode() if self.vectors is None else self.vectors.tobytes()
        return hashlib.sha256(content).hexdigest()


def read_texts(name: str, d: int) -> Texts | None:
    """Give our prompts, a file's texts or vectors of width d, or None where none are wanted.

    A file of text has a query on every line; Parquet has a column ``text``, or ``vector`` of lists of numbers.

    Raises:
        InputError: the file cannot be read, has no query, or vectors of another width.
    """
    if name == NONE:
        return None
    if name == OURS:
        return Texts(PROMPTS)
    try:
        found = _parquet(name, d) if name.endswith(".parquet") else Texts(_lines(name))
    except (*STORE_ERRORS, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"text_queries: {name} cannot be read: {error}") from error
    if not found.texts and (found.vectors is None or not len(found.vectors)):
        raise InputError(f"text_queries: {name} has no query in it")
    return found


def _lines(name: str) -> tuple[str, ...]:
    filesystem, path = filesystem_of(name)
    content = tried(filesystem.cat_file, path, end=MAX_TEXT_BYTES)
    lines = (line.strip() for line in content.decode().splitlines())
    return tuple(line for line in lines if line)[:MOST]


def _parquet(name: str, d: int) -> Texts:
    with open_parquet(name) as file:
        column = next((name for name in (schema.VECTOR, "text") if name in file.schema_arrow.names), None)
        if column is None:
            raise InputError(f"text_queries: {name} has columns {file.schema_arrow.names}; wanted text or vector")
        batch = next(file.iter_batches(MOST, columns=[column]), None)
    rows = [] if batch is None else [row for row in batch.column(0).to_pylist() if row is not None]
    if column == "text":
        return Texts(tuple(str(row) for row in rows))
    if any(len(row) != d for row in rows):
        raise InputError(f"text_queries: {name}: wanted vectors of {d} numbers, as the table has")
    xq = np.array(rows, np.float32).reshape(-1, d)
    norms = np.linalg.norm(xq, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError(f"text_queries: {name}: wanted vectors that have a direction; some are zero or not finite")
    return Texts(vectors=xq / norms)
