"""The benchmarks run and can fail; what they measure is in jobs/BENCHMARKS.md."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.benchmark import hostile, index, scaling, throughput
from jobs.benchmark.config import HostileConfig, IndexBenchmarkConfig, ThroughputConfig
from jobs.benchmark.peering import _reached
from jobs.benchmark.peers import measured
from jobs.benchmark.vectors import MadeUp
from pipeline.errors import IncompleteError
from tests.conftest import DEMO_MODEL, ROOT, encoded


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
        images=str(tmp_path / "images"), out=str(tmp_path), model=str(DEMO_MODEL), good=7, mutations=150
    )
    hostile.hostile(config)
    measured = json.loads((tmp_path / "hostile.json").read_text())
    assert [measured[name]["rows"] for name in ("good", "folder", "mutations", "giants")] == [15, 15, 150, 1]
    assert (measured["good"]["embedded"], measured["folder"]["embedded"]) == (15, 14)
    assert 20 < measured["mutations"]["embedded"] < 130
    assert "workers lost: 0" in capsys.readouterr().out
    monkeypatch.setattr(hostile, "_run", lambda config, folder, name, count: hostile.Hostile(**measured[name]))
    monkeypatch.setattr(hostile, "MAX_EXTRA_BYTES", -(1 << 40))  # the same figures, held to another bound
    with pytest.raises(IncompleteError, match="bytes beyond good pictures"):
        hostile.hostile(config)


def test_mutations_are_seeded_and_of_every_kind():
    good = [encoded(i) for i in range(3)]
    made = [[hostile._mutated(good, np.random.default_rng(seed)) for seed in range(60)] for _ in range(2)]
    assert made[0] == made[1]
    assert any(len(image) < len(good[0]) // 2 for image in made[0])
    assert sum(image in good for image in made[0]) < 5


def test_throughput_measures_ceilings_and_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("DECODE_SECONDS", "ENCODE_SECONDS", "SHARED_SECONDS"):
        monkeypatch.setattr(throughput, name, 0.5)
    monkeypatch.setattr(throughput, "CPU_BATCH_SIZES", (32,))
    monkeypatch.setitem(throughput.DISTINCT, "png-512", 4)
    monkeypatch.setattr(throughput, "available_cpus", lambda: 1)  # one layout: each starts processes of its own
    config = ThroughputConfig(out=str(tmp_path), model=str(DEMO_MODEL), corpora=("png-512",), images=384, passes=1)
    throughput.throughput(config)
    measured = json.loads((tmp_path / "throughput.json").read_text())
    assert measured["corpora"]["png-512"].items() <= measured.items()
    assert measured["decode_per_core"] > 1
    assert measured["shared_ceiling"] <= min(measured["decode_ceiling"], measured["encode_ceiling"]) + 0.1
    assert measured["ratio_steady"] == pytest.approx(measured["steady"][0] / measured["shared_ceiling"], abs=0.01)
    assert 0 < measured["whole"][0] < measured["steady"][0]
    assert {"driver", "encode", "preprocess"} <= measured["busy"].keys()
    assert measured["peak_rss_bytes"] > 500 << 20
    assert 0.01 < measured["gflop_per_image"] < 1


def test_scaling_runs_the_jobs_own_graph_and_commits_for_real(tmp_path: Path):
    """In a process of its own: it starts clusters, and here Ray runs already."""
    flags = ["--encoders", "[2]", "--seconds", "15", "--images_per_s", "1000", "--shards", "40", "--commits", "5"]
    flags += ["--merged_rows", "20000"]
    subprocess.run(
        [sys.executable, "-m", "jobs.benchmark", "scaling", "--out", str(tmp_path), *flags], cwd=ROOT, check=True
    )
    measured = json.loads((tmp_path / "scaling.json").read_text())
    planning, (point,) = measured["planning"], measured["points"]
    assert (planning["shards"], planning["rows"], planning["units"], planning["receipts"]) == (40, 400_000, 80, 79)
    assert min(planning["status_s"], planning["estimate_s"]) > 0
    assert measured["sharded"]["rss_bytes"] <= planning["rss_bytes"] * 1.2
    assert measured["compacted"]["receipts"] == 79  # and each of them came back as it was
    assert measured["ranged"]["bytes"] > 20_000 * (512 + 8)
    assert point["rows"] == 30_000
    assert 0.2 < point["of_linear"] <= 1.0
    assert point["images_per_s_per_encoder"] == pytest.approx(1000 * point["of_linear"], rel=0.2)


def test_the_window_is_when_all_encoders_compute():
    spans = {"1 0.0 10.0 100", "1 12.0 20.0 80", "2 5.0 15.0 100", "2 15.0 16.0 10"}
    assert scaling._window(spans) == (5.0, 16.0, 5.0 + 4.0 + 11.0, 50.0 + 40.0 + 110.0)


def test_an_index_of_each_key_is_built_and_asked_by_fresh_queries(tmp_path: Path):
    config = IndexBenchmarkConfig(out=str(tmp_path), rows=3000, dimensions=16, factories=("IVF32,SQ8", "IVF4,PQ1"))
    index.index(config)
    found = json.loads((tmp_path / "index.json").read_text())
    good, bad = found["keys"]
    assert (good["published"], bad["published"]) == (True, False)
    assert min(good["recall_image"], good["recall_text"]) >= 0.95
    for kind in ("image", "text"):
        assert abs(good[f"recall_{kind}"] - good[f"fresh_{kind}"]) < 0.03
    assert bad["recall_text"] < good["recall_text"]
    assert good["bytes_per_vector"] > 16 + 2 * 16
    assert min(good["filtered"].values()) >= 0.95
    changed = found["changed"]
    assert changed["deleted_found"] == 0
    for kind in ("image", "text"):
        assert abs(changed["updated"][kind] - changed["rebuilt"][kind]) < 0.03
    assert 0 < changed["update_s"] < 60


def test_an_index_is_compared_with_what_others_reach_at_the_same_recall():
    curve = [
        {"setting": 16, "image": 0.93, "qps_image": 900.0, "text": 0.80, "qps_text": 800.0},
        {"setting": 32, "image": 0.96, "qps_image": 500.0, "text": 0.94, "qps_text": 450.0},
        {"setting": 64, "image": 0.99, "qps_image": 600.0, "text": 0.949, "qps_text": 300.0},
    ]
    reached = _reached("other", 3.0, curve, 0.95)
    assert (reached.qps_image, reached.qps_text) == (600.0, None)  # a dial turned up may be no slower
    assert reached.settings == {"image": 64, "text": None}


def test_recall_and_speed_are_measured_at_every_setting_of_a_dial(tmp_path: Path):
    vectors = MadeUp(500, 8, 0).images(500, 0)
    np.save(tmp_path / "image.npy", vectors[:60])
    np.save(tmp_path / "text.npy", vectors[60:120])
    exact = np.argsort(-(vectors[:120] @ vectors.T), axis=1)[:, :10]
    np.save(tmp_path / "image-exact.npy", exact[:60])
    np.save(tmp_path / "text-exact.npy", exact[60:])

    def search(xq: np.ndarray, setting: int) -> np.ndarray:  # of a tenth of the rows, half, all
        return np.argsort(-(xq @ vectors[: 500 * setting // 10].T), axis=1)[:, :10]

    points = list(measured(search, tmp_path, (1, 5, 10, 10)))
    assert [point["setting"] for point in points] == [1, 5, 10]  # once enough is found, it ends
    assert points[0]["image"] < points[1]["image"] < points[2]["image"] == 1.0
    assert all(point["qps_text"] > 0 for point in points)


def test_made_up_vectors_are_hard_and_texts_lie_elsewhere():
    made = MadeUp(4000, 32, seed=1)
    images, texts = made.images(500, 1), made.texts(500, 2)
    np.testing.assert_array_equal(images, made.images(500, 1))
    assert not np.array_equal(images, made.images(500, 2))
    for vectors in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert images.mean(axis=0) @ texts.mean(axis=0) < 0.5 * np.linalg.norm(texts.mean(axis=0)) ** 2
