import io
import random
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError
from pipeline.exchange.tars import MAX_TEXT_BYTES, scalars, tar_rows
from pipeline.store import Store
from tests.exchange.tarring import write_tar

GOOD = {
    "a/0001.jpg": b"first picture",
    "a/0001.txt": "a caption, é".encode(),
    "a/0001.json": b'{"width": 3, "nsfw": false, "url": "http://x", "nothing": null, "list": [1], "score": 0.5}',
    "a/0002.txt": b"no picture",
    "b/0003.PNG": b"",
    "b/0003.cls": b"7",
    "README": b"no key",
    ".hidden": b"nor here",
    "b/0004.left.jpeg": b"left",
    "b/0004.right.jpeg": b"right",
}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_rows_say_where_pictures_lie_and_what_is_said_of_them(tmp_path: Path, kind: int):
    long_name = "c/" + "x" * 150 + ".jpg"  # of more than a header holds
    extra = {} if kind == tarfile.USTAR_FORMAT else {long_name: b"long"}
    tar = write_tar(tmp_path / "a.tar", {**GOOD, **extra}, kind)
    rows = {row.key: row for row in tar_rows(str(tar))}
    content = tar.read_bytes()
    found = {key: row.span and content[row.span[0] : sum(row.span)] for key, row in rows.items()}
    wanted = {"a/0001": b"first picture", "a/0002": None, "b/0003": b"", "b/0004": b"left"}
    assert found == wanted | {name.removesuffix(".jpg"): data for name, data in extra.items()}
    assert rows["a/0001"].text == "a caption, é"
    assert rows["a/0001"].fields == {"width": "3", "nsfw": "false", "url": "http://x", "score": "0.5"}
    assert (rows["a/0002"].text, rows["b/0003"].text, rows["b/0003"].fields) == ("no picture", None, {})


def test_a_far_tar_is_read_alike(tmp_path: Path, s3: str):
    tar = write_tar(tmp_path / "a.tar", GOOD)
    Store(f"{s3}/tars").replace("a.tar", tar.read_bytes())
    assert tar_rows(f"{s3}/tars/a.tar") == tar_rows(str(tar))


def test_a_tar_without_members_has_no_rows(tmp_path: Path):
    assert tar_rows(str(write_tar(tmp_path / "a.tar", {}))) == []


def test_no_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes(1 << 20) for i in range(5)})
    read = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            content = super().read(size)
            read.append(len(content))
            return content

    monkeypatch.setattr(LocalFileSystem, "open", lambda _, path, mode, **options: Counting(path, mode))
    assert len(tar_rows(str(tmp_path / "a.tar"))) == 5
    assert 0 < sum(read) < 20_000


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


HOSTILE = {
    "link": ({"a.jpg": entry("a.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")}, "no plain file"),
    "hard link": ({"b.jpg": b"x", "a.jpg": entry("a.jpg", tarfile.LNKTYPE, linkname="b.jpg")}, "no plain file"),
    "device": ({"a.jpg": entry("a.jpg", tarfile.CHRTYPE)}, "no plain file"),
    "absolute": ({"/etc/a.jpg": b"x"}, "leads out of its folder"),
    "dots": ({"a/../../b.jpg": b"x"}, "leads out of its folder"),
    "huge claim": ({"a.jpg": entry("a.jpg", size=1 << 60)}, "claims 1152921504606846976 bytes|unexpected end"),
    "keys apart": ({"a.jpg": b"x", "b.jpg": b"y", "a.txt": b"z"}, "lie apart"),
    "long text": ({"a.txt": bytes(MAX_TEXT_BYTES + 1)}, "texts have at most"),
}


@pytest.mark.parametrize("way", list(HOSTILE))
def test_what_no_webdataset_has_is_refused_with_the_name_of_the_tar(tmp_path: Path, way: str):
    members, why = HOSTILE[way]
    tar = write_tar(tmp_path / "bad.tar", members, tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match=rf"tar .*/bad\.tar: .*({why})"):
        tar_rows(str(tar))


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path):
    name = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=5 << 30)
    (tmp_path / "bad.tar").write_bytes(name.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(InputError, match="a header of 5368709120 bytes"):
        tar_rows(str(tmp_path / "bad.tar"))


def test_a_tar_cut_at_any_place_is_found(tmp_path: Path):
    content = write_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes(700) for i in range(3)}).read_bytes()
    end = 3 * (512 + 1024)  # headers and padded pictures; zeros are behind
    for place in sorted({0, 1, 511, 512, 600, end - 1, end, end + 511, *range(0, end, 512)}):
        (tmp_path / "cut.tar").write_bytes(content[:place])
        with pytest.raises(InputError, match=r"cut\.tar"):
            tar_rows(str(tmp_path / "cut.tar"))
    (tmp_path / "cut.tar").write_bytes(content[: end + 512])
    assert len(tar_rows(str(tmp_path / "cut.tar"))) == 3


def test_several_tars_in_one_file_are_refused(tmp_path: Path):
    one = write_tar(tmp_path / "a.tar", {"1.jpg": b"x"}).read_bytes()
    for behind in (one, bytes(2 << 20), bytes(600) + b"x"):
        (tmp_path / "bad.tar").write_bytes(one + behind)
        with pytest.raises(InputError, match=r"bad\.tar: it ends at byte 1024, but more is behind"):
            tar_rows(str(tmp_path / "bad.tar"))
    (tmp_path / "padded.tar").write_bytes(one + bytes(1 << 19))
    assert len(tar_rows(str(tmp_path / "padded.tar"))) == 1


def test_a_damaged_tar_ends_with_an_error_or_whole_and_nothing_else(tmp_path: Path):
    content = write_tar(tmp_path / "a.tar", GOOD, tarfile.PAX_FORMAT).read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "bad.tar").write_bytes(bytes(damaged))
        with suppress(InputError):
            rows = tar_rows(str(tmp_path / "bad.tar"))
            assert all(row.span is None or sum(row.span) <= len(content) for row in rows)


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "1", '{"a": ' + "[" * 9999])
def test_what_is_no_object_has_no_fields(text: str | None):
    assert scalars(text) == {}


def test_halves_of_surrogates_are_replaced():
    assert scalars('{"a": "\\ud800b"}') == {"a": "?b"}
