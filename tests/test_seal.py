import hashlib
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pipeline.seal import FORMAT, seal, unseal

RECEIPT = {
    "unit": "a-00000000-0123456789ab",
    "shard": "s3://bucket/ä/a.parquet",
    "rows_in": 10,
    "reasons": {"null": 2},
    "encoders": ["cpu fp32"],
    "data": [{"path": "data/unit=a/1.parquet", "rows": 8, "sha256": "0f" * 32}],
    "rejects": [],
    "seconds": 0.25,
    "state": None,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=8,
)


def is_refused(content: bytes) -> bool:
    try:
        unseal(content)
    except ValueError:
        return True
    return False


@given(st.dictionaries(st.text().filter(lambda name: name not in ("format", "seal")), JSON, max_size=5))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_fields_come_back_as_they_went_in(fields: dict):
    assert unseal(seal(fields)) == fields


def test_a_sealed_file_is_json_whose_last_field_is_the_digest_of_what_is_before_it():
    content = seal(RECEIPT)
    read = json.loads(content)
    assert list(read) == ["format", *RECEIPT, "seal"]
    assert read["seal"] == hashlib.sha256(content[: content.rindex(b',\n "seal"')]).hexdigest()


def test_one_changed_bit_anywhere_is_found():
    content = seal(RECEIPT)
    unnoticed = [
        (place, bit)
        for place in range(len(content))
        for bit in range(8)
        if not is_refused(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    ]
    assert unnoticed == []


def test_a_file_that_was_cut_short_anywhere_is_found():
    content = seal(RECEIPT)
    assert [length for length in range(len(content)) if not is_refused(content[:length])] == []


def test_one_byte_too_many_or_too_few_anywhere_is_found():
    content = seal(RECEIPT)
    for place in range(len(content) + 1):
        assert is_refused(content[:place] + b" " + content[place:]), f"a space at {place}"
        assert place == len(content) or is_refused(content[:place] + content[place + 1 :]), f"without byte {place}"


def test_the_seal_of_another_file_is_found():
    ours, other = seal(RECEIPT), seal({**RECEIPT, "rows_in": 11})
    place = ours.rindex(b',\n "seal"')
    assert is_refused(ours[:place] + other[other.rindex(b',\n "seal"') :])


def test_files_of_the_first_format_are_read_as_they_are():
    assert unseal(json.dumps(RECEIPT).encode()) == RECEIPT


def test_whatever_says_its_format_and_has_no_seal_is_refused():
    with pytest.raises(ValueError, match="its seal is missing"):
        unseal(json.dumps({"format": FORMAT, **RECEIPT}).encode())


@pytest.mark.parametrize("number", [FORMAT + 1, str(FORMAT), None])
def test_another_format_is_refused_though_its_seal_is_whole(number: object):
    body = json.dumps({"format": number, **RECEIPT}, indent=1).removesuffix("\n}")
    content = f'{body},\n "seal": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}'
    with pytest.raises(ValueError, match="newer rayclip"):
        unseal(content.encode())


@pytest.mark.parametrize("content", [b"", b"[]", b'"text"', b"7", b"null", b"\xff\xfe", b"PAR1"])
def test_what_is_no_json_object_is_a_value_error(content: bytes):
    assert is_refused(content)
