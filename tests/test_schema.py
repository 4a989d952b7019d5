import pyarrow as pa

from pipeline import schema
from pipeline.schema import Reason


def test_the_two_error_texts_that_readers_rely_on():
    assert schema.error_text(Reason.NULL, 7, "no bytes") == "Null or missing image input"
    assert schema.error_text(Reason.TRUNCATED, 7, "OSError: cut") == "Failed to decode image at row 7: OSError: cut"


def test_embeddings_are_our_columns_and_then_the_kept_ones():
    columns = schema.embeddings_schema(3, pa.schema([("label", pa.string())]))
    assert columns.names == ["_row_id", "_source_id", "_model_id", "vector", "_content_hash", "label"]
    first_format = schema.embeddings_schema(3, pa.schema([]), content_hashes=False)
    assert first_format.names == ["_row_id", "_source_id", "_model_id", "vector"]
    assert columns.field("vector").type == pa.list_(pa.float32(), 3)
    assert not columns.field("vector").nullable


def test_replace_columns_puts_new_ones_in_place_of_old_ones_of_the_same_name():
    batch = pa.table({"a": [1], "b": [2], "c": [3]})
    replaced = schema.replace_columns(batch, ["a"], {"b": pa.array([9]), "d": pa.array([4])})
    assert replaced.to_pydict() == {"c": [3], "b": [9], "d": [4]}
