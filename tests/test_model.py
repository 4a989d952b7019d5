import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import model
from pipeline.errors import InputError
from tests.conftest import DEMO_MODEL, ROOT


def pad(checkpoint: model.Checkpoint, decode: str = "exact", **limits: object) -> model.PreprocessSpec:
    return checkpoint.preprocess_spec("pad", decode, model.Limits(**limits))


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


def test_pad_is_ours_and_model_is_the_configs(folder: Path):
    checkpoint = edit(
        folder, "preprocess_cfg", mean=0.5, resize_mode="longest", interpolation="bilinear", fill_color=[1, 2, 3]
    )
    ours, its = checkpoint.preprocess_spec("pad"), checkpoint.preprocess_spec("model")
    assert (ours.resize_mode, ours.interpolation, ours.fill) == ("pad", "bicubic", (255, 255, 255))
    assert (its.resize_mode, its.interpolation, its.fill) == ("longest", "bilinear", (1, 2, 3))
    assert its.mean == ours.mean == (0.5, 0.5, 0.5)
    assert checkpoint.space(ours, None) != checkpoint.space(its, None)
    defaults = edit(folder, "preprocess_cfg", resize_mode=None, interpolation="random", fill_color=None)
    its = defaults.preprocess_spec("model")
    assert (its.resize_mode, its.interpolation, its.fill) == ("shortest", "bicubic", (0, 0, 0))


@pytest.mark.parametrize("fields", [{"resize_mode": "stretch"}, {"resize_mode": "pad"}, {"interpolation": "lanczos"}])
def test_a_way_of_resizing_that_open_clip_does_not_have_is_refused(folder: Path, fields: dict):
    checkpoint = edit(folder, "preprocess_cfg", **fields)
    with pytest.raises(InputError, match=f"{next(iter(fields.values()))}.*OpenCLIP has shortest"):
        checkpoint.preprocess_spec("model")
    assert checkpoint.preprocess_spec("pad").resize_mode == "pad"


def test_the_space_changes_with_all_that_changes_a_vector_and_with_nothing_else(folder: Path):
    before = model.resolve(str(folder))
    space = before.space(pad(before), None)
    renamed = Path(shutil.copytree(folder, folder.parent / "renamed"))
    same = model.resolve(f"local-dir:{renamed}")
    assert same.space(pad(same, max_image_bytes=99, max_image_pixels=99), 64) == space
    assert before.space(pad(before), 32) != space
    assert before.space(pad(before, decode="scaled"), None) != space
    (folder / "README.md").write_text("words")
    assert model.resolve(str(folder)).sha256 == before.sha256
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


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["CLIPModel"]},
        {"model_cfg": {"embed_dim": "wide", "vision_cfg": {}}},
        {"model_cfg": {"embed_dim": 8, "vision_cfg": {}}, "preprocess_cfg": {"mean": "grey"}},
        {"model_cfg": {"embed_dim": 8, "vision_cfg": None}},
        [],
    ],
)
def test_a_config_that_is_not_open_clips_is_refused(folder: Path, config: object):
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match="not OpenCLIP's"):
        model.resolve(str(folder))


def test_a_config_without_a_word_on_pixels_means_open_clips_own(folder: Path):
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    (folder / model.CONFIG_FILE).write_text(json.dumps({**config, "preprocess_cfg": None}))
    assert pad(model.resolve(str(folder))).mean == model.OPENAI_MEAN


def with_text_tower(folder: Path, where: str) -> Path:
    """The same model, its text tower one of transformers."""
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = where
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    return folder


def test_the_config_of_a_text_tower_of_transformers_is_part_of_the_space_and_runs_no_code(folder: Path, tmp_path: Path):
    (tmp_path / "text").mkdir()
    about = tmp_path / "text" / "config.json"
    about.write_text('{"model_type": "roberta", "hidden_act": "gelu"}')
    one = model.resolve(str(with_text_tower(folder, str(tmp_path / "text"))))
    assert one.text_folder == tmp_path / "text"
    assert "config.json" not in one.tokenizer_sha256
    about.write_text('{"model_type": "roberta", "hidden_act": "relu"}')
    other = model.resolve(str(folder))
    assert one.space(pad(one), None) != other.space(pad(other), None)
    about.write_text('{"model_type": "trap", "auto_map": {"AutoConfig": "trap.Trap"}}')
    with pytest.raises(InputError, match="wants auto_map; such code is never run"):
        model.resolve(str(folder))
    about.unlink()
    with pytest.raises(InputError, match=r"no config\.json of its text tower"):
        model.resolve(str(folder))


def test_the_tokenizer_is_part_of_the_space_where_the_config_names_one(folder: Path):
    (folder / "tokenizer.json").write_text("{}")
    unused = model.resolve(str(folder))
    assert unused.sha256["tokenizer.json"]
    assert unused.tokenizer_sha256 == {}
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    used = model.resolve(str(folder))
    assert used.tokenizer_sha256.keys() == {"tokenizer.json"}
    (folder / "tokenizer.json").write_text('{"other": 1}')
    other = model.resolve(str(folder))
    assert other.space(pad(other), None) != used.space(pad(used), None)


def pickled(folder: Path) -> Path:
    """The same weights as a pickle, as older checkpoints have them."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / model.WEIGHTS_FILE), folder / "open_clip_pytorch_model.bin")
    (folder / model.WEIGHTS_FILE).unlink()
    return folder


def test_a_pickle_is_refused_unless_it_is_allowed_and_never_preferred(folder: Path):
    safe = model.resolve(str(folder), allow_pickle_weights=True)
    assert safe.weights == model.WEIGHTS_FILE
    pickled(folder)
    with pytest.raises(InputError, match=r"are a pickle, open_clip_pytorch_model.bin; wanted .*allow_pickle_weights"):
        model.resolve(str(folder))
    assert model.resolve(str(folder), allow_pickle_weights=True).weights == "open_clip_pytorch_model.bin"
    (folder / "model.safetensors").write_bytes(b"of transformers")
    assert model.resolve(str(folder), allow_pickle_weights=True).weights == "open_clip_pytorch_model.bin"
    (folder / "open_clip_pytorch_model.safetensors").write_bytes(b"")
    assert model.resolve(str(folder), allow_pickle_weights=True).weights == "open_clip_pytorch_model.safetensors"


def test_other_weights_than_expected_are_refused(folder: Path):
    digest = model.resolve(str(folder)).sha256[model.WEIGHTS_FILE]
    for expected in (digest, digest.upper(), digest[:8]):
        assert model.resolve(str(folder), expected_sha256=expected).sha256[model.WEIGHTS_FILE] == digest
    with pytest.raises(InputError, match=f"has SHA-256 {digest}, wanted 00000000"):
        model.resolve(str(folder), expected_sha256="00000000")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its own client asks for: two repositories, their commits and files.

    demo/tiny has two commits, of which the second, v2, has other weights; demo/old has its weights as a pickle only.
    """

    folders: ClassVar[dict[str, Path]] = {}  # repository/commit -> where its files lie
    revisions: ClassVar[dict[str, str]] = {"main": COMMIT, "v1": COMMIT, "v2": OTHER_COMMIT}
    served: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._about("/".join(parts[2:4]), parts[4], parts[5])
        repository, revision, name = "/".join(parts[:2]), parts[3], parts[-1]
        commit = self.revisions.get(revision, revision)
        file = self.folders.get(f"{repository}/{commit}", Path("/nowhere")) / name
        if not file.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        self.served.append(name)
        return self._send(200, file.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{commit}-{name}"'})

    def _about(self, repository: str, what: str, revision: str) -> None:
        commit = self.revisions.get(revision, revision)
        if f"{repository}/{commit}" not in self.folders:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        sizes = {file.name: file.stat().st_size for file in self.folders[f"{repository}/{commit}"].iterdir()}
        if what == "tree":
            files = [{"type": "file", "path": name, "size": sizes[name], "oid": "0" * 40} for name in sizes]
            return self._send(200, json.dumps(files).encode(), {})
        about = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in sizes]}
        return self._send(200, json.dumps(about).encode(), {})

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

    tiny = Path(shutil.copytree(DEMO_MODEL, tmp_path / "tiny"))
    (tiny / "pytorch_model.bin").write_bytes(b"not to be asked for")
    other = Path(shutil.copytree(DEMO_MODEL, tmp_path / "other"))
    with (other / model.WEIGHTS_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    old = pickled(Path(shutil.copytree(DEMO_MODEL, tmp_path / "old")))
    Hub.folders.update({f"demo/tiny/{COMMIT}": tiny, f"demo/tiny/{OTHER_COMMIT}": other, f"demo/old/{COMMIT}": old})
    Hub.served.clear()
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


def test_the_config_of_a_text_tower_comes_from_the_hub_too(hub: str, folder: Path):
    tower = Hub.folders[f"demo/tiny/{COMMIT}"]
    (tower / "config.json").write_text('{"model_type": "roberta"}')
    found = model.resolve(str(with_text_tower(folder, "demo/tiny")))
    assert found.text_folder.name == COMMIT
    assert sorted(path.name for path in found.text_folder.iterdir()) == ["config.json"]
    with pytest.raises(InputError, match="text tower demo/nobody"):
        model.resolve(str(with_text_tower(folder, "demo/nobody")))


def test_another_revision_with_other_weights_is_another_space(hub: str):
    first, second = model.resolve("demo/tiny@v1"), model.resolve("demo/tiny@v2")
    assert second.revision == OTHER_COMMIT
    assert first.model_id != second.model_id
    assert first.space(pad(first), None) != second.space(pad(second), None)
    copied = model.resolve(str(second.folder))
    assert copied.space(pad(copied), None) == second.space(pad(second), None)


def test_a_pickle_on_the_hub_is_fetched_only_where_it_is_allowed(hub: str):
    with pytest.raises(InputError, match=r"has no open_clip_model\.safetensors"):
        model.resolve("demo/old")
    assert not [name for name in Hub.served if name.endswith(".bin")]
    found = model.resolve("demo/old", allow_pickle_weights=True)
    assert (found.weights, found.revision) == ("open_clip_pytorch_model.bin", COMMIT)
    model.resolve("demo/tiny", allow_pickle_weights=True)
    assert "pytorch_model.bin" not in Hub.served


def test_an_architecture_and_tag_mean_the_repository_that_open_clip_names(hub: str, monkeypatch: pytest.MonkeyPatch):
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED["ViT-B-32"], "tiny", {"hf_hub": "demo/tiny/"})
    assert model.resolve("ViT-B-32/tiny").name == f"hf-hub:demo/tiny@{COMMIT}"


def test_the_hubs_real_client_reads_its_address_and_cache_from_the_environment(hub: str, tmp_path: Path):
    """As a user has it: HF_ENDPOINT, HF_HOME, and after that no network at all."""
    code = "from pipeline.model import resolve; print(resolve('demo/tiny@v2').name)"
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    for offline in ("0", "1"):
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == f"hf-hub:demo/tiny@{OTHER_COMMIT}"
