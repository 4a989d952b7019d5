from pathlib import Path

import pytest

from pipeline.config import EmbedConfig, IndexConfig, QueryConfig, load
from pipeline.errors import InputError

EMBED = ["--store", "s", "--model", "m", "--source.name", "n", "--source.path", "p"]


def test_flags_override_toml_and_leave_the_rest_of_it(tmp_path: Path):
    file = tmp_path / "job.toml"
    file.write_text('store = "a"\nmodel = "m"\n[source]\nname = "n"\npath = "p"\nkeep_columns = ["x"]\n')
    config = load(EmbedConfig, ["--config", str(file), "--store", "b", "--source.name", "o"], "jobs.embed")
    assert (config.store, config.source.name, config.source.path) == ("b", "o", "p")
    assert config.source.keep_columns == ("x",)


def test_lists_are_json_and_sizes_have_units():
    config = load(EmbedConfig, [*EMBED, "--source.keep_columns", '["a", "b"]'], "jobs.embed")
    assert config.source.keep_columns == ("a", "b")
    assert load(IndexConfig, ["--store", "s", "--memory_budget", "2GiB"], "jobs.build_index").memory_budget == 2 << 30


def test_several_source_paths_are_a_list():
    config = load(EmbedConfig, [*EMBED[:-1], '["a/*.parquet", "b.parquet"]'], "jobs.embed")
    assert config.source.path == ("a/*.parquet", "b.parquet")


def test_k_is_a_short_flag_and_json_needs_no_value():
    config = load(QueryConfig, ["--store", "s", "--text", "a star", "-k", "3", "--json"], "jobs.query")
    assert (config.k, config.json_output) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stroe", "s"], "--stroe"),
        ([*EMBED, "--unit_rows", "none"], "unit_rows"),
        ([*EMBED, "--unit_rows", "0"], "unit_rows"),
        ([*EMBED, "--encode.precision", "int4"], "encode.precision"),
        ([*EMBED, "--max_reject_fraction", "2"], "max_reject_fraction"),
        ([*EMBED, "--partition_by", '["label"]'], "partition_by"),
        ([*EMBED[:-4], "--source.name", "../up", "--source.path", "p"], "source.name"),
        (["--store", "s"], "model: wanted a value"),
        (["--config", "no-such.toml"], "no-such.toml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_it(arguments: list[str], said: str):
    with pytest.raises(InputError) as error:
        load(EmbedConfig, arguments, "jobs.embed")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_of_a_toml_file_are_refused(tmp_path: Path):
    file = tmp_path / "job.toml"
    file.write_text('store = "a"\nmodel = "m"\nunit_row = 3\n[source]\nname = "n"\npath = "p"\n')
    with pytest.raises(InputError, match="unit_row: unknown key"):
        load(EmbedConfig, ["--config", str(file)], "jobs.embed")


@pytest.mark.parametrize("arguments", [[], ["--text", "a", "--id", "b"]])
def test_a_query_is_exactly_one_thing(arguments: list[str]):
    with pytest.raises(InputError, match="exactly one of --text, --image, --id"):
        load(QueryConfig, ["--store", "s", *arguments], "jobs.query")
