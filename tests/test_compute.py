import time
from typing import Any

import pytest
import ray

from pipeline import compute
from pipeline.compute import BLOCKS_IN_FLIGHT, Request
from pipeline.errors import IncompleteError, InputError

ROW_BYTES = 3 * 224 * 224 + 1024
REQUEST = Request(
    row_bytes=ROW_BYTES,
    written_bytes=3072,
    unit_rows=8192,
    picture_bytes=1600 << 20,
    image_bytes=100_000,
    fetches=False,
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_nodes(*nodes: dict[str, float]) -> None:
        alive = [{"Alive": True, "Resources": {"object_store_memory": 64e9, **node}} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: alive)
        monkeypatch.setattr(compute, "available_cpus", lambda: 2)

    return set_nodes


def pools(**fields: Any) -> compute.Pools:
    return compute.pools(Request(**{**vars(REQUEST), **fields}))


def test_a_small_machine_encodes_with_all_its_cores_in_small_blocks(cluster: Any):
    cluster({"CPU": 4})  # claimed: it has two
    made = pools()
    assert (made.encoders, made.encoder_threads, made.encoder_gpus) == (1, 2, 0.0)
    assert (made.preprocessors, made.readers, made.fetchers, made.block_rows) == (1, 2, 0, 128)
    assert made.write_rows == 1024  # half a minute's


def test_large_images_and_those_of_unknown_size_get_a_decoder_for_every_core(cluster: Any):
    cluster({"CPU": 4})
    assert pools(image_bytes=5_000_000).preprocessors == 2
    assert pools(image_bytes=None, fetches=True).preprocessors == 2


def test_large_nodes_have_several_encoders_and_larger_blocks(cluster: Any):
    cluster({"CPU": 64}, {"CPU": 64}, {"CPU": 0.0})
    made = pools()
    assert (made.encoders, made.encoder_threads, made.preprocessors, made.block_rows) == (8, 16, 32, 1024)
    assert pools(threads=8).encoders == 16


def test_with_gpus_all_cpus_but_one_in_eight_decode(cluster: Any):
    cluster({"CPU": 16, "GPU": 1}, {"CPU": 16, "GPU": 1})
    made = pools()
    assert (made.encoders, made.encoder_gpus, made.encoder_threads) == (2, 1.0, None)
    assert (made.preprocessors, made.block_rows, made.write_rows) == (28, 1024, 8192)
    assert made.preprocessors * made.preprocessor_cpus <= 32 - 2


def test_what_is_in_flight_fits_into_rays_store(cluster: Any):
    cluster({"CPU": 4, "object_store_memory": 256 << 20})
    made = pools()
    assert made.block_rows < 128
    assert made.in_flight_bytes <= 128 << 20
    blocks, files = (2 + 1 + 1) * made.block_rows * ROW_BYTES, made.write_rows * 3072
    assert made.in_flight_bytes == BLOCKS_IN_FLIGHT * (blocks + files)
    with pytest.raises(InputError, match="memory_budget leaves"):
        pools(memory_budget=8 << 20, picture_bytes=1 << 20)


def test_rows_that_are_large_when_written_are_gathered_into_smaller_files(cluster: Any):
    cluster({"CPU": 4, "object_store_memory": 1 << 30})
    assert pools().write_rows == 1024
    made = pools(row_bytes=ROW_BYTES + 100_000, written_bytes=103_000)  # a kept column of thumbnails
    assert made.write_rows < 1024
    assert BLOCKS_IN_FLIGHT * made.write_rows * 103_000 <= 256 << 20
    assert made.in_flight_bytes <= 512 << 20


def test_all_cores_of_a_node_compute(cluster: Any):
    cluster({"CPU": 24}, {"CPU": 24})
    assert (pools().encoders, pools().encoder_threads) == (4, 12)


def test_a_memory_budget_takes_decoders_away_then_rows(cluster: Any):
    cluster({"CPU": 16, "GPU": 1})
    made = pools(memory_budget=16 << 30)
    assert made.preprocessors == 5
    assert made.preprocessors * REQUEST.picture_bytes + made.in_flight_bytes <= 16 << 30
    less = pools(memory_budget=4 << 30)
    assert (less.preprocessors, less.block_rows < made.block_rows) == (1, True)
    assert less.preprocessors * REQUEST.picture_bytes + less.in_flight_bytes <= 4 << 30
    with pytest.raises(InputError, match="lower that"):
        pools(memory_budget=2 << 30)
    cluster({"CPU": 4}, {"CPU": 4}, {"CPU": 4})  # a picture is decoded on one node, whatever the others have
    with pytest.raises(InputError, match="lower that"):
        pools(memory_budget=2 << 30)


def test_a_plan_that_could_never_move_is_refused(cluster: Any):
    cluster({"CPU": 1})
    assert pools().preprocessors == 1
    with pytest.raises(InputError, match=r"cluster: 1 CPUs; .* at least 1\.5"):
        pools(fetches=True)
    cluster({"CPU": 0.5})
    with pytest.raises(InputError, match="no node has a whole CPU"):
        pools()


def test_a_run_that_asks_for_more_than_comes_says_what_there_is_and_leaves_nothing_asked(local_ray: None):
    before = ray.available_resources()["CPU"]
    compute.await_resources(0, 2, timeout_s=60)
    with pytest.raises(IncompleteError, match=r"cluster: 0 GPUs and \d CPUs are free after 0.5 s; wanted 1 and 64"):
        compute.await_resources(1, 64, timeout_s=0.5)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == before
