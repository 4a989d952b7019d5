from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.flags import load
from pipeline.config import (
    BackfillConfig,
    Config,
    EmbedConfig,
    IndexConfig,
    PlanConfig,
    QueryConfig,
    VacuumConfig,
)
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


def flags_of(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Name the flags of a job that have an underscore."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from flags_of(field.annotation, f"{prefix}{name}.")
        elif "_" in f"{prefix}{name}":
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    ("hyphens", "underscores"),
    [
        (["--source.key-column", "a-b_c"], ["--source.key_column", "a-b_c"]),
        (["--source.key-column=a-b_c"], ["--source.key_column=a-b_c"]),
        (["--source.key-column=--a-b=c-d"], ["--source.key_column=--a-b=c-d"]),
        (["--source.keep-columns", '["a-b"]', "--partition-by", '["a-b"]'],
         ["--source.keep_columns", '["a-b"]', "--partition_by", '["a-b"]']),
        (["--index.recall-target", "0.5"], ["--index.recall_target", "0.5"]),
        (["--allow-pickle-weights"], ["--allow_pickle_weights"]),
        (["--table", "a-b"], ["--table=a-b"]),
        (["--store", "s3://a--b/c-d"], ["--store=s3://a--b/c-d"]),
        (["--store", "-"], ["--store=-"]),
    ],
)  # fmt: skip
def test_hyphens_in_a_flag_are_underscores_and_in_a_value_they_are_hyphens(hyphens: list[str], underscores: list[str]):
    config = load(BackfillConfig, [*EMBED, *hyphens], "jobs.backfill")
    assert config == load(BackfillConfig, [*EMBED, *underscores], "jobs.backfill")
    assert config != load(BackfillConfig, EMBED, "jobs.backfill")
    values = [value for argument in underscores for value in argument.split("=", 1)[1:]]
    assert all(value in str(config) for value in values)


@pytest.mark.parametrize("flag", sorted(flags_of(BackfillConfig)))
def test_every_flag_may_have_hyphens(flag: str):
    said = []
    for spelled in (flag, flag.replace("_", "-")):
        with pytest.raises(InputError) as error:
            load(BackfillConfig, [*EMBED, f"--{spelled}", "--no-such-flag"], "jobs.backfill")
        said.append(str(error.value))
    assert said[0] == said[1]
    assert f"unrecognized arguments: --{flag}" not in said[0]


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_needs_no_value(flag: str):
    assert load(VacuumConfig, ["--store", "s", flag], "jobs.vacuum").dry_run is True
    assert load(VacuumConfig, ["--store", "s", flag, "--keep-runs", "7"], "jobs.vacuum").keep_runs == 7
    assert load(VacuumConfig, ["--store", "s"], "jobs.vacuum").dry_run is False


def test_a_toml_file_is_named_as_ever(tmp_path: Path):
    file = tmp_path / "my-job--2.toml"
    file.write_text('store = "a-b"\n')
    for arguments in (["--config", str(file)], [f"--config={file}"]):
        assert load(VacuumConfig, arguments, "jobs.vacuum").store == "a-b"


@pytest.mark.parametrize(
    ("model", "needed", "name"),
    [(PlanConfig, EMBED, "trial"), (VacuumConfig, ["--store", "s"], "dry_run")],
)
@pytest.mark.parametrize("join", ["-", "_"])
def test_what_a_job_would_do_can_be_switched_off(model: type[Config], needed: list[str], name: str, join: str):
    config = load(model, [*needed, f"--{name}", f"--no-{name.replace('_', join)}"], "jobs")
    assert getattr(config, name) is False
