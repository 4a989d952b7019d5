import json
from pathlib import Path

import pytest
from PIL import Image

from jobs import query
from jobs.launch import launch
from pipeline.config import QueryConfig


def ask(store: str, *arguments: str) -> int:
    return launch(QueryConfig, query.run, "jobs.query", ["--store", store, *arguments])


def test_json_is_for_programs(demo_store: str, capsys: pytest.CaptureFixture[str]):
    assert ask(demo_store, "--text", "a green star", "-k", "4", "--json") == 0
    reply = json.loads(capsys.readouterr().out)
    assert len(reply["hits"]) == 4
    assert reply["hits"][0]["colour"] == "green"


def test_an_image_finds_itself_and_the_sheet_shows_it(demo_store: str, demo_rows: list[dict], tmp_path: Path, capsys):
    row = demo_rows[10]
    (tmp_path / "asked.jpg").write_bytes(row["image"])
    sheet = tmp_path / "sheet" / "found.png"
    assert ask(demo_store, "--image", str(tmp_path / "asked.jpg"), "-k", "7", "--sheet", str(sheet)) == 0
    table = capsys.readouterr().out
    assert row["key"] in table.splitlines()[4]
    with Image.open(sheet) as image:
        assert image.width > 800
        assert image.height > 350  # two rows of pictures


def test_a_row_is_asked_by_its_id(demo_store: str, demo_rows: list[dict], capsys: pytest.CaptureFixture[str]):
    assert ask(demo_store, "--id", demo_rows[4]["key"], "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == demo_rows[4]["key"]
