from dataclasses import replace

import numpy as np
import pytest

from pipeline.embedding.encode import Encode
from pipeline.embedding.texts import encode_texts
from pipeline.errors import InputError
from pipeline.model import EncodeSpec
from pipeline.store import Store
from pipeline.table import find_table, read_record

TEXTS = ["a red star", "a blue circle at the top"]


def test_texts_are_encoded_in_the_tables_space(demo_store: str):
    store = Store(demo_store)
    record = read_record(store, find_table(store, None))
    found = encode_texts(record, TEXTS)
    spec = EncodeSpec(record.model, record.space, record.preprocess, record.precision, record.d)
    np.testing.assert_allclose(found, Encode(spec).encode_texts(TEXTS), atol=1e-5)
    with pytest.raises(InputError, match=r"is of space \w+, wanted other"):
        encode_texts(replace(record, space="other"), TEXTS)
    with pytest.raises(InputError, match="nowhere"):
        encode_texts(record, TEXTS, model="nowhere/to-be-found")
