import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import model
from pipeline.errors import InputError
from tests.conftest import DEMO_MODEL


def pad(checkpoint: model.Checkpoint, **fields: object) -> model.PreprocessSpec:
    return checkpoint.preprocess_spec(
        **{"fit": "pad", "decode": "exact", "max_image_bytes": 1, "max_image_pixels": 1, **fields}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


def edit(folder: Path, part: str, **fields: object) -> model.Checkpoint:
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config[part].update(fields)
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    return model.resolve(str(folder))


def test_sizes_and_colours_are_the_configs(folder: Path):
    spec = pad(edit(folder, "preprocess_cfg", mean=[0.1, 0.2, 0.3]))
    assert (spec.height_px, spec.width_px, spec.mean, spec.std) == (64, 64, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    (folder / model.CONFIG_FILE).write_text(json.dumps({"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}))
    spec = pad(model.resolve(str(folder)))
    assert (spec.height_px, spec.mean, spec.std) == (224, model.OPENAI_MEAN, model.OPENAI_STD)


def test_the_space_changes_with_all_that_changes_a_vector_and_with_nothing_else(folder: Path):
    before = model.resolve(str(folder))
    space = before.space(pad(before), None)
    renamed = Path(shutil.copytree(folder, folder.parent / "renamed"))
    same = model.resolve(f"local-dir:{renamed}")
    assert same.space(pad(same, max_image_bytes=99, max_image_pixels=99), 64) == space
    assert before.space(pad(before), 32) != space
    assert before.space(pad(before, decode="scaled"), None) != space
    other_mean = edit(folder, "preprocess_cfg", mean=[0.4, 0.5, 0.5])
    assert other_mean.space(pad(other_mean), None) != space
    other_model = edit(renamed, "model_cfg", quick_gelu=True)
    assert other_model.space(pad(other_model), None) != space
    with (renamed / model.WEIGHTS_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    other_weights = model.resolve(str(renamed))
    assert other_weights.model_id != before.model_id
    assert other_weights.space(pad(other_weights), None) != other_model.space(pad(other_model), None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "no such folder"),
        ("local-dir:/nowhere", "no such folder"),
        ("ViT-B-32/no_such_tag", "has no tag 'no_such_tag'; it has .*laion2b_s34b_b79k"),
        ("ViT-B-32-quickgelu/metaclip_400m", "hub|offline|cache"),
        ("someone/no-such-model", "nor found on"),
        ("not a name at all", "nor found on"),
    ],
)
def test_an_unknown_model_is_an_input_error_that_names_it(name: str, said: str):
    with pytest.raises(InputError, match=said) as error:
        model.resolve(name)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", [model.CONFIG_FILE, model.WEIGHTS_FILE])
def test_a_folder_without_config_or_weights_is_refused(folder: Path, missing: str):
    (folder / missing).unlink()
    with pytest.raises(InputError, match=f"has no {missing}"):
        model.resolve(str(folder))


def test_a_config_that_is_not_open_clips_is_refused(folder: Path):
    (folder / model.CONFIG_FILE).write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(InputError, match="not OpenCLIP's"):
        model.resolve(str(folder))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its own client asks for: one repository, one commit, its files."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/demo/tiny/"):
            what, _, revision = path.removeprefix("/api/models/demo/tiny/").partition("/")
            if revision not in ("main", "v1", COMMIT):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            sizes = {file.name: file.stat().st_size for file in DEMO_MODEL.iterdir()}
            sizes["pytorch_model.bin"] = 10  # not to be asked for
            if what == "tree":
                files = [{"type": "file", "path": name, "size": sizes[name], "oid": "0" * 40} for name in sizes]
                return self._send(200, json.dumps(files).encode(), {})
            about = {"id": "demo/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
            return self._send(200, json.dumps(about).encode(), {})
        file = DEMO_MODEL / path.rpartition("/")[2]
        if path.startswith("/demo/tiny/resolve/") and file.is_file():
            return self._send(200, file.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"'})
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The real client of the hub, pointed at a server on loopback, with an empty cache."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield address
    server.shutdown()


@pytest.mark.parametrize("name", ["demo/tiny", "hf-hub:demo/tiny", "demo/tiny@v1"])
def test_a_name_on_the_hub_is_pinned_to_its_commit(hub: str, name: str):
    checkpoint = model.resolve(name)
    assert checkpoint.revision == COMMIT
    assert checkpoint.name == f"hf-hub:demo/tiny@{COMMIT}"
    assert checkpoint.model_id == f"demo/tiny@{COMMIT[:12]}"
    assert checkpoint.sha256 == model.resolve(str(DEMO_MODEL)).sha256


def test_other_frameworks_weights_stay_on_the_hub(hub: str):
    assert sorted(path.name for path in model.resolve("demo/tiny").folder.iterdir()) == [
        model.CONFIG_FILE,
        model.WEIGHTS_FILE,
    ]


def test_an_unknown_revision_is_an_input_error(hub: str):
    with pytest.raises(InputError, match="demo/tiny@v9"):
        model.resolve("demo/tiny@v9")


def test_a_pinned_model_is_found_offline(hub: str, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    name = model.resolve("demo/tiny").name
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model.resolve(name).revision == COMMIT
