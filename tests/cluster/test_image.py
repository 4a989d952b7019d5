"""The Dockerfile copies what exists, and what both share, the smoke script, is green here and red where it must be."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.manifests import ROOT

CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"
LOCKED = re.compile(r"^([a-z0-9][^ ;]*==[^ ;\\]+)", re.MULTILINE)


def smoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, CLUSTER / "smoke.py", *arguments], capture_output=True, text=True)


def stages() -> dict[str, str]:
    """Give what each stage of the Dockerfile does, by name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    _, *parts = re.split(r"^FROM ", text, flags=re.MULTILINE)
    return {part.partition("\n")[0].split()[-1]: part.partition("\n")[2] for part in parts}


def test_smoke_is_green_here_and_says_versions() -> None:
    ran = smoke()
    assert ran.returncode == 0, ran.stderr
    said = dict(word.split("=") for word in ran.stdout.split() if "=" in word)
    assert {"python", "ray", "torch", "faiss", "space", "cosine"} <= set(said)
    assert ran.stdout.endswith("ok\n")


def test_smoke_is_red_in_one_line_where_weights_are_damaged(tmp_path: Path) -> None:
    model = shutil.copytree(ROOT / "jobs" / "demo" / "model", tmp_path / "model")
    weights = model / "open_clip_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    ran = smoke("--model", str(model))
    assert ran.returncode == 1
    assert re.fullmatch(r"smoke: SmokeError: model .* damaged ones\n", ran.stderr)
    assert "ok" not in ran.stdout.split()


def test_smoke_is_red_without_a_model(tmp_path: Path) -> None:
    ran = smoke("--model", str(tmp_path / "none"))
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)


def test_the_health_check_is_green_and_loads_nothing_that_takes_long() -> None:
    script = f"""
import runpy, sys
sys.argv = ["smoke.py", "--quick"]
try:
    runpy.run_path({str(CLUSTER / "smoke.py")!r}, run_name="__main__")
finally:
    print(sorted({{"torch", "ray", "faiss"}} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "ok\n[]\n"), ran.stderr


def test_the_dockerfile_is_one_that_hadolint_likes() -> None:
    tool = Path(sys.executable).with_name("hadolint")  # of the dev extra
    ran = subprocess.run([tool, DOCKERFILE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_copied_exists_and_is_not_left_out() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", stages()["packages"], re.MULTILINE):
        copied |= set(line.split())
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in ignored  # what is not named, as stores and keys, never reaches the builder


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_is_not_roots_and_expects_a_root_that_is_read_only(target: str) -> None:
    steps = stages()[target]
    assert re.findall(r"^USER (.+)$", steps, re.MULTILINE) == ["1000:100"]
    assert re.search(r"HOME=/tmp\b", steps)
    assert re.search(r"RAY_AUTH_MODE=token\b", steps)
    assert 'CMD ["python", "/opt/rayclip/smoke.py", "--quick"]' in steps
    assert "RUN" not in steps  # what is installed is installed once, for both
    assert "org.opencontainers.image.licenses" in steps


def test_both_images_take_the_same_steps() -> None:
    cpu, gpu = stages()["cpu"], stages()["gpu"]
    assert (
        cpu.replace("-py311-cpu", "-py311-gpu").replace('title="rayclip"', 'title="rayclip-gpu"').strip() == gpu.strip()
    )


def test_labels_say_what_the_stages_are_made_of() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    version = re.search(r"^ARG RAY_VERSION=(\S+)", text, re.MULTILINE)[1]
    for target in ("cpu", "gpu"):
        assert f'base.name="rayproject/ray:{version}-py311-{target}"' in stages()[target]
    import pipeline

    assert text.count(f'image.version="{pipeline.__version__}"') == 2


def test_what_an_image_installs_is_locked_with_hashes_and_is_what_tests_run_with() -> None:
    text = (CLUSTER / "requirements.lock").read_text(encoding="utf-8")
    installed = set(LOCKED.findall(text))
    tested = set(LOCKED.findall((ROOT / "requirements.lock").read_text(encoding="utf-8")))
    assert installed <= tested
    assert not {name for name in installed if name.startswith(("pytest==", "ruff==", "mypy==", "moto=="))}
    assert {name.partition("==")[0] for name in installed} >= {"ray", "torch", "kubernetes", "boto3", "setuptools"}
    assert not re.search(r"https?://", text)
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
