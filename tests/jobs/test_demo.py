"""The committed weights, measured: search by text over pictures of compositions that training never saw."""

import hashlib
from dataclasses import fields

import numpy as np
import pytest

from jobs.demo.__main__ import figures
from jobs.demo.figures import COMPOSITIONS, HELD_OUT, Composition, caption, draw
from pipeline import model
from pipeline.embedding.encode import Encode
from pipeline.embedding.fit import fitted
from pipeline.model import EncodeSpec
from tests.conftest import DEMO_MODEL

NAMES = [field.name for field in fields(Composition)]


@pytest.fixture(scope="module")
def gallery() -> tuple[Encode, list[Composition], np.ndarray]:
    """Twelve pictures each of sixty held-out compositions among 1,200 others, and their vectors."""
    checkpoint = model.resolve(str(DEMO_MODEL))
    spec = checkpoint.preprocess_spec("pad")
    encoder = Encode(EncodeSpec(checkpoint.name, checkpoint.space(spec, None), spec, precision="fp32"))
    rng = np.random.default_rng(7)
    unseen = sorted(HELD_OUT, key=repr)
    shown = [unseen[int(i)] for i in rng.choice(len(unseen), 60, replace=False) for _ in range(12)]
    shown += [COMPOSITIONS[int(i)] for i in rng.integers(len(COMPOSITIONS), size=1200)]
    sizes = rng.integers(64, 200, (len(shown), 2)).tolist()
    pixels = np.stack([fitted(draw(one, rng, *size), spec) for one, size in zip(shown, sizes, strict=True)])
    return encoder, shown, encoder.encode_images(pixels)


def describes(query: Composition, shown: Composition) -> bool:
    """Tell whether every part that the query names is as shown."""
    return all(getattr(query, name) in (None, getattr(shown, name)) for name in NAMES)


def precision_at_10(gallery: tuple, queries: list[Composition]) -> float:
    encoder, shown, vectors = gallery
    scores = encoder.encode_texts([caption(query) for query in queries]) @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([[describes(query, shown[i]) for i in row] for query, row in zip(queries, best, strict=True)]))


def test_full_captions_of_held_out_compositions_find_them(gallery: tuple):
    queries = list(dict.fromkeys(gallery[1][:720]))
    assert len(queries) == 60
    assert HELD_OUT.issuperset(queries)
    assert precision_at_10(gallery, queries) >= 0.9


@pytest.mark.parametrize("named", [("colour",), ("colour", "shape"), ("shape", "position"), ("colour", "ground")])
def test_partial_captions_find_what_they_name(gallery: tuple, named: tuple[str, ...]):
    parts = {tuple(getattr(one, name) if name in named else None for name in NAMES) for one in COMPOSITIONS}
    queries = [Composition(*values) for values in sorted(parts, key=repr)]
    queries = [query for query in queries if sum(describes(query, one) for one in gallery[1]) >= 10]
    assert len(queries) >= 8
    assert precision_at_10(gallery, queries) >= 0.85


def test_a_fifth_of_the_compositions_is_held_out_and_every_part_of_them_is_known():
    assert len(HELD_OUT) * 5 == len(COMPOSITIONS)
    known = set(COMPOSITIONS) - HELD_OUT
    for name in NAMES:
        assert {getattr(one, name) for one in HELD_OUT} == {getattr(one, name) for one in known}


def test_the_corpus_is_the_same_every_time_and_broken_where_it_should_be():
    rows, again = (list(figures(200, np.random.default_rng(1))) for _ in range(2))
    assert rows == again
    broken = [row["image"] for row in rows[::40]]
    assert broken[0] is None
    assert broken[2].startswith(b"This is a text file")
    assert len({hashlib.sha256(row["image"]).hexdigest() for row in rows if row["image"]}) == 199 - 1


def test_captions_read_as_english():
    assert caption(Composition("red", None, None, "at the top left", None)) == "a red shape at the top left"
    assert caption(Composition(None, "star", "small", None, "grey")) == "a small star on a grey background"
