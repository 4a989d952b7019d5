"""The benchmarks run and can fail; what they measure is in jobs/BENCHMARKS.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.benchmark import hostile
from pipeline.config import HostileConfig
from pipeline.errors import IncompleteError
from tests.conftest import DEMO_MODEL, encoded


def test_bad_images_and_mutations_come_out_as_rows(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "images").mkdir()
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
    for i in range(14):
        (tmp_path / "images" / f"{i}").write_bytes(encoded(i, kind=kinds[i % 7]))
    (tmp_path / "images" / "text").write_bytes(b"no image at all")
    for bound in ("MAX_EXTRA_BYTES", "MAX_GIANT_BYTES"):  # workers of other tests come and go meanwhile
        monkeypatch.setattr(hostile, bound, 16 << 30)
    monkeypatch.setattr(hostile, "_giants", lambda: [encoded(99, 900, 900)])  # real ones take half a minute
    config = HostileConfig(
        images=str(tmp_path / "images"), out=str(tmp_path), model=str(DEMO_MODEL), good=7, mutations=400
    )
    hostile.hostile(config)
    measured = json.loads((tmp_path / "hostile.json").read_text())
    assert [measured[name]["rows"] for name in ("good", "folder", "mutations", "giants")] == [15, 15, 400, 1]
    assert (measured["good"]["embedded"], measured["folder"]["embedded"]) == (15, 14)
    assert 50 < measured["mutations"]["embedded"] < 350
    assert "workers lost: 0" in capsys.readouterr().out
    monkeypatch.setattr(hostile, "MAX_EXTRA_BYTES", -(1 << 40))
    with pytest.raises(IncompleteError, match="bytes beyond good pictures"):
        hostile.hostile(config)


def test_mutations_are_seeded_and_of_every_kind():
    good = [encoded(i) for i in range(3)]
    made = [[hostile._mutated(good, np.random.default_rng(seed)) for seed in range(60)] for _ in range(2)]
    assert made[0] == made[1]
    assert any(len(image) < len(good[0]) // 2 for image in made[0])
    assert sum(image in good for image in made[0]) < 5
