from pathlib import Path

import numpy as np
import pytest

from pipeline.dedup.pieces import RECEIPT, Job, digest, made, make_piece, mapped, read_piece
from pipeline.store import Store


def squares(store_url: str, upto: int, shared: np.ndarray) -> tuple[dict, dict]:
    return {"squares": np.arange(upto) ** 2 + shared[0]}, {"rows": upto}


def job(number: int, asked: str = "x") -> Job:
    return Job(f"work/{number}", (number,), asked)


@pytest.mark.usefixtures("local_ray")
def test_pieces_come_in_order_and_are_made_once(tmp_path: Path):
    store, shared = Store(str(tmp_path)), np.array([7])
    pieces = made(store, [job(3), job(1), job(2)], squares, shared)
    assert [piece.counts["rows"] for piece in pieces] == [3, 1, 2]
    assert mapped(store, pieces[0], "squares", tmp_path).tolist() == [7, 8, 11]
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in store.files("")}
    assert made(store, [job(3), job(1), job(2)], squares, shared) == pieces
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in store.files("")} == before
    assert made(store, [], squares, shared) == []


@pytest.mark.parametrize("harm", ["damaged", "missing", "no receipt", "cut receipt", "of something else"])
def test_a_piece_that_is_not_whole_is_made_again(tmp_path: Path, harm: str):
    store, shared = Store(str(tmp_path)), np.array([0])
    piece = make_piece(store.url, job(4), squares, shared)
    file, receipt = tmp_path / "work/4/squares.npy", tmp_path / f"work/4/{RECEIPT}"
    assert read_piece(store, job(4)) == piece
    if harm == "damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    elif harm == "missing":
        file.unlink()
    elif harm == "no receipt":
        receipt.unlink()
    elif harm == "cut receipt":
        receipt.write_bytes(receipt.read_bytes()[:-30])
    asked = "y" if harm == "of something else" else "x"
    assert read_piece(store, job(4, asked)) is None
    [again] = made(store, [job(4, asked)], squares, shared)
    assert again.sha256 == piece.sha256
    assert read_piece(store, job(4, asked)) == again


def test_a_digest_tells_arrays_and_values_apart():
    one = np.arange(4)
    assert len({digest(one), digest(one[::-1].copy()), digest([0, 1, 2, 3]), digest(0.5, one), digest(one, one)}) == 5
