"""Draw the demo's corpus: `python -m jobs.demo --out out/demo/figures`, Parquet shards of pictures with captions.

JPEG, PNG and WebP of many sizes and shapes; some rows are broken on purpose, as every real corpus is. A third of the
pictures show compositions that the demo's model never saw.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.figures import COMPOSITIONS, HELD_OUT, caption, draw

FORMATS = ("JPEG", "PNG", "WEBP")
BROKEN_EVERY = 40  # one row in forty: null, cut short, or not an image
ROW_GROUP_ROWS = 100


def main() -> None:
    """Write the shards; the same arguments give the same pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo/figures"))
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(figures(args.rows, np.random.default_rng(args.seed)))
    for number, part in enumerate(np.array_split(np.arange(args.rows), args.shards)):
        table = pa.Table.from_pylist([rows[int(i)] for i in part])
        path = args.out / f"figures-{number:03d}.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS)
        print(f"{path}: {table.num_rows} rows")


def figures(count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:  # a row of several types
    """Yield rows of the corpus: key, image, caption, and the fields of what is shown."""
    unseen = sorted(HELD_OUT, key=repr)
    for i in range(count):
        shown = (
            unseen[int(rng.integers(len(unseen)))] if i % 3 == 0 else COMPOSITIONS[int(rng.integers(len(COMPOSITIONS)))]
        )
        width, height = (int(edge) for edge in rng.integers(64, 200, 2))
        encoded = io.BytesIO()
        draw(shown, rng, width, height).save(encoded, FORMATS[i % len(FORMATS)], quality=90)
        image = encoded.getvalue() if i % BROKEN_EVERY else _broken(encoded.getvalue(), i // BROKEN_EVERY)
        yield {
            "key": f"figure-{i:06d}",
            "image": image,
            "caption": caption(shown),
            "colour": shown.colour,
            "shape": shown.shape,
            "width": width,
            "height": height,
        }


def _broken(encoded: bytes, number: int) -> bytes | None:
    return (None, encoded[: len(encoded) // 2], b"This is a text file and not a picture.\n")[number % 3]


if __name__ == "__main__":
    main()
