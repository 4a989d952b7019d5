"""cluster/compose.yaml is what docker-compose takes, keeps to this machine, and mounts what is there."""

import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from jobs.flags import load
from pipeline.compute import MIN_LOGICAL_CPUS
from pipeline.config import BackfillConfig
from tests.cluster.manifests import ROOT

FOLDER = ROOT / "cluster"
FILE = FOLDER / "compose.yaml"
MADE = {"RAY_AUTH_TOKEN": "one", "GRAFANA_PASSWORD": "two"}


def services() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


def composed(text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Have docker-compose read a file in the place of ours."""
    tool = shutil.which("docker-compose")
    if tool is None and "CI" not in os.environ:
        pytest.skip("docker-compose is not installed")
    command = [tool or "docker-compose", "--file", "-", "--project-directory", str(FOLDER), "config"]
    bare = {name: value for name, value in os.environ.items() if name not in MADE}
    return subprocess.run(command, input=text, capture_output=True, text=True, env={**bare, **environment})


def test_docker_compose_takes_it() -> None:
    ran = composed(FILE.read_text(encoding="utf-8"), MADE)
    assert ran.returncode == 0, ran.stderr
    assert set(yaml.safe_load(ran.stdout)["services"]) == {"head", "worker", "prometheus", "grafana"}


def test_it_does_not_start_without_a_token_and_a_password() -> None:
    for left_out in MADE:
        ran = composed(FILE.read_text(encoding="utf-8"), {k: v for k, v in MADE.items() if k != left_out})
        assert ran.returncode != 0
        assert left_out in ran.stderr


@pytest.mark.parametrize("name", ["head", "worker", "prometheus", "grafana"])
def test_a_misspelt_field_is_caught(name: str) -> None:
    misspelt = FILE.read_text(encoding="utf-8").replace(f"\n  {name}:\n", f"\n  {name}:\n    pors: []\n")
    ran = composed(misspelt, MADE)
    assert ran.returncode != 0
    assert "pors" in ran.stderr


@pytest.mark.parametrize("name", ["head", "worker", "prometheus", "grafana"])
def test_ports_are_this_machines_only_and_nobody_gains_rights(name: str) -> None:
    service = services()[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "user"} & set(service)


def test_what_is_mounted_and_built_is_there() -> None:
    for service in services().values():
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                assert (FOLDER / volume.partition(":")[0]).exists(), volume
    build = services()["head"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).is_file()


def test_nodes_are_started_with_flags_that_ray_takes() -> None:
    from ray.scripts.scripts import start

    cpus = {}
    for name in ("head", "worker"):
        words = services()[name]["command"].split()
        assert words[:2] == ["ray", "start"]
        cpus[name] = start.make_context("start", words[2:]).params["num_cpus"]
    assert cpus["head"] == 0
    assert cpus["worker"] >= MIN_LOGICAL_CPUS


def test_the_demos_config_loads() -> None:
    config = load(BackfillConfig, ["--config", str(FOLDER / "compose.toml")], "jobs.backfill")
    shared = next(volume.split(":")[1] for volume in services()["worker"]["volumes"] if volume.startswith("shared:"))
    assert config.store.startswith(shared)
    assert str(config.source.path).startswith(shared)
