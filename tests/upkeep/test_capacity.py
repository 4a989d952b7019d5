"""Estimates on paper, against sums done by hand."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config import CapacityConfig
from pipeline.errors import InputError
from pipeline.upkeep.capacity import Capacity, capacity
from pipeline.upkeep.figures import Figures, read_figures
from tests.conftest import ROOT

FILE = ROOT / "cluster" / "capacity.json"


def because(value: float) -> dict[str, object]:
    return {"value": value, "source": "made up for a test"}


@pytest.fixture
def figures() -> Figures:
    """Round numbers: a GPU encodes 1,000 a second, a core decodes 100."""
    machine = {"cpus": 16, "memory_gib": 64, "network_gbit": because(10), "usd_per_hour": because(1)}
    return Figures.model_validate(
        {
            "note": "made up",
            "models": {"ViT-B-32": {"d": 512, "edge_px": 224}},
            "decode_images_per_s": {"exact": {"640x480": because(100)}, "scaled": {"640x480": because(200)}},
            "encode_images_per_s": {"G": {"ViT-B-32": because(2000)}},
            "ratio_steady": because(1),
            "driver_images_per_s": because(10_000),
            "footers_per_s": because(10_000),
            "receipts_per_s": because(20_000),
            "receipt_bytes": because(2500),
            "multiply_adds_per_s": because(1e9),
            "disk_bytes_per_s": because(1e9),
            "gpu_node": {**machine, "gpus": 1, "gpu": "G"},
            "cpu_node": {**machine, "cpus": 32, "usd_per_hour": because(2)},
            "index_node": machine,
            "prices": {
                "gigabyte_month": because(0.02),
                "thousand_puts": because(0.005),
                "thousand_gets": because(1e-3),
            },
        }
    )


def estimate(figures: Figures, images: int = 72_000_000, **fields: object) -> Capacity:
    return capacity(CapacityConfig(cluster="", images=images, **{"hours": 5.0, **fields}), figures)


def test_nodes_follow_from_the_hours_and_from_what_gpu_nodes_cannot_decode(figures: Figures):
    embedding = estimate(figures).embedding
    # 72e6 / 18,000 s = 4,000 a second: two GPUs of 2,000. 14 of 16 CPUs decode 1,400 a second on each node; the other
    # 1,200 take 12 cores, and a CPU node has 28 that decode.
    assert (embedding.gpu_nodes, embedding.cpu_nodes, embedding.images_per_s) == (2, 1, 4000.0)
    assert (embedding.hours, embedding.gpu_hours, embedding.decode_cores_per_gpu) == (5.0, 10.0, 20.0)
    # Into a GPU node: 1,400 JPEGs of 100 kB and 600 times 150,528 bytes of pixels, every second.
    assert embedding.network_gbit == pytest.approx((1400 * 100_000 + 600 * 150_528) * 8 / 1e9, abs=0.005)
    assert estimate(figures, decode="scaled").embedding.cpu_nodes == 0


def test_hours_are_kept_by_whole_nodes(figures: Figures):
    embedding = estimate(figures, hours=4.0).embedding
    assert embedding.gpu_nodes == 3
    assert embedding.hours == pytest.approx(72e6 / 6000 / 3600, abs=0.005)


def test_more_than_one_driver_can_feed_is_several_tables(figures: Figures):
    assert estimate(figures, hours=2.0).embedding.tables == 1
    assert estimate(figures, images=720_000_000, hours=10.0).embedding.tables == 2


def test_planning_counts_footers_receipts_and_memory(figures: Figures):
    planning = estimate(figures, images=1_000_000_000, hours=50.0).planning
    assert (planning.shards, planning.units) == (100_000, 200_000)
    assert planning.seconds == 10.0 + 10.0
    assert planning.bytes == 200_000 * 2500
    assert estimate(figures, images=1_000_000_000, hours=50.0, shard_rows=80_000).planning.units == 12_500 * 10


def test_money_is_hours_times_prices_and_what_rests(figures: Figures):
    found = estimate(figures)
    assert found.money.embedding == 5.0 * (2 * 1 + 1 * 2)
    assert found.table_bytes == 72_000_000 * (4 * 512 + 100 + 120)
    units = found.planning.units
    assert found.money.requests == round((2 * units * 0.005 + (units + 7200) * 1e-3) / 1e3, 2)
    at_rest = found.table_bytes + found.indexing.bytes + found.indexing.vectors_bytes
    assert found.money.storage_a_month == pytest.approx(at_rest / 1e9 * 0.02, abs=0.01)


def test_an_index_is_trained_and_merged_on_one_machine_and_filled_on_all(figures: Figures):
    indexing = estimate(figures, index={"factory": "IVF65536_HNSW32,SQ8"}, index_nodes=4).indexing
    assert indexing.key == "IVF65536_HNSW32,SQ8"
    assert indexing.filling_hours == pytest.approx(72e6 * 65_536 * 512 / 16e9 / 4 / 3600, rel=1e-3)
    points = round(1.25 * 39 * 65_536)
    trained = 512 * (10 * points * 65_536 + 1500 * 72e6)
    assert indexing.training_hours == pytest.approx(trained / 16e9 / 3600, rel=1e-3)
    with pytest.raises(InputError, match="not known to merge"):
        estimate(figures, index={"factory": "IVF16,ITQ,LSH"})


def test_what_breaks_first_comes_first_and_has_an_answer(figures: Figures):
    limits = estimate(figures, images=10_000_000_000, hours=1000.0).limits
    assert [limit.share for limit in limits] == sorted((limit.share for limit in limits), reverse=True)
    passed = {limit.what for limit in limits if limit.share > 1}
    assert {"seconds to plan and resume", "bytes of the driver to plan and resume", "hours to index"} <= passed
    assert "images/s of one driver" not in passed
    assert all(len(limit.answer) > 20 for limit in limits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "ViT-H-14"}, "model: no figure for 'ViT-H-14', only for ViT-B-32"),
        ({"image_size": "1x1"}, "no figure for '1x1', only for 640x480"),
    ],
)
def test_what_nobody_measured_is_not_guessed(figures: Figures, fields: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        estimate(figures, **fields)


def test_figures_are_refused_without_their_source_or_with_a_misspelt_name(tmp_path: Path):
    content = json.loads(FILE.read_text())
    del content["ratio_steady"]["source"]
    content["footer_per_s"] = content.pop("footers_per_s")
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_figures(str(tmp_path / "f.json"))
    assert "ratio_steady.source: wanted a value" in str(caught.value)
    assert "footer_per_s: unknown key" in str(caught.value)
    with pytest.raises(InputError, match=r"none\.json"):
        read_figures(str(tmp_path / "none.json"))


def test_our_own_figures_say_whether_they_were_measured():
    for figure in sources(json.loads(FILE.read_text())):
        assert figure.split()[0].strip(":") in ("measured", "published", "assumed"), figure


def sources(content: object) -> list[str]:
    if not isinstance(content, dict):
        return []
    if "source" in content:
        return [content["source"]]
    return [source for value in content.values() for source in sources(value)]


def test_one_command_recomputes_the_estimate_for_a_billion_images(
    run_job: Callable[..., subprocess.CompletedProcess[str]],
):
    flags = ("--cluster", "cluster/capacity.json", "--images", "1000000000")
    done = run_job("jobs.plan", *flags, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    found = capacity(CapacityConfig(cluster=str(FILE), images=10**9), read_figures(str(FILE)))
    assert {name: said[name] for name in asdict(found) if name != "limits"} == {
        name: value for name, value in asdict(found).items() if name != "limits"
    }
    assert run_job("jobs.plan", "--cluster=none.json", "--images", "5").returncode == 2


def test_for_people_there_are_tables():
    command = [sys.executable, "-m", "jobs.plan", "--cluster", str(FILE), "--images", "1000000000"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "what breaks first" in said
    assert "gpu_nodes" in said
