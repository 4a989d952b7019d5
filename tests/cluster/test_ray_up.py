"""cluster/aws/cluster.yaml is what `ray up` takes, and its machines what Amazon's API does; neither is asked."""

import copy
import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.compute import MIN_LOGICAL_CPUS
from tests.cluster.manifests import ROOT

FILE = ROOT / "cluster" / "aws" / "cluster.yaml"


def written() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """Do to a config what `ray up` does before it asks Amazon for anything."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    schema["properties"]["provider"]["additionalProperties"] = False  # the one part in which Ray lets anything pass
    jsonschema.validate(prepared, schema)
    return prepared


def test_ray_up_takes_it() -> None:
    prepared = checked(written())
    assert prepared["available_node_types"]["cpu"]["max_workers"] == 4
    assert prepared["setup_commands"] == []  # Ray's defaults would install another Ray


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("provider",),
        ("auth",),
        ("docker",),
        ("available_node_types", "cpu"),
        ("available_node_types", "gpu", "docker"),
    ],
)
def test_a_misspelt_field_is_caught(place: tuple[str, ...]) -> None:
    config = written()
    holder = config
    for step in place:
        holder = holder[step]
    holder["misspelt"] = next(iter(holder.values()))
    with pytest.raises((jsonschema.ValidationError, ValueError), match="misspelt"):
        checked(config)


@functools.cache
def amazon() -> Any:  # botocore's description of EC2, which has no types
    return botocore.session.get_session().get_service_model("ec2")


def run_instances_faults(node_config: dict[str, Any]) -> str:
    """Say what the API that Ray gives a node's config to has against it."""
    shape = amazon().operation_model("RunInstances").input_shape
    return ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, shape).generate_report()


@pytest.mark.parametrize("kind", ["head", "cpu", "gpu"])
def test_machines_are_what_amazon_takes_and_a_misspelt_field_is_caught(kind: str) -> None:
    node_config = written()["available_node_types"][kind]["node_config"]
    assert run_instances_faults(node_config) == ""
    assert "IamInstanceProfil" in run_instances_faults({**node_config, "IamInstanceProfil": {}})
    node_config["BlockDeviceMappings"][0]["Ebs"]["VolumSize"] = 1
    assert "VolumSize" in run_instances_faults(node_config)


def test_the_head_stays_and_workers_are_spot() -> None:
    types = written()["available_node_types"]
    assert "InstanceMarketOptions" not in types[written()["head_node_type"]]["node_config"]
    for kind, node in types.items():
        is_spot = node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert node["labels"]["ray.io/market-type"] == ("spot" if is_spot else "on-demand")
        assert is_spot == (kind != "head")
        assert kind == "head" or node["resources"]["CPU"] >= MIN_LOGICAL_CPUS
    assert [types[kind]["resources"].get("GPU", 0) for kind in ("head", "cpu", "gpu")] == [0, 0, 1]
    assert sum(types[kind]["max_workers"] for kind in ("cpu", "gpu")) == written()["max_workers"]


def test_nobody_comes_in_but_as_said_and_no_key_is_in_the_file() -> None:
    text = FILE.read_text(encoding="utf-8")
    for node in written()["available_node_types"].values():
        # Ray leaves a group alone that is named, and opens port 22 to everybody in one that it makes
        # (ray/autoscaler/_private/aws/config.py, _create_default_ssh_inbound_rules).
        assert node["node_config"]["SecurityGroupIds"] == ["sg-CHANGE-ME"]
        assert node["node_config"]["IamInstanceProfile"]["Name"].startswith("rayclip-")
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    assert "ssh_private_key" not in written()["auth"]
    assert not re.search(r"AKIA|aws_secret|BEGIN .*PRIVATE", text)
    assert "--dashboard-host=127.0.0.1" in text


@pytest.mark.parametrize("field", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_takes_its_flags(field: str) -> None:
    from ray.scripts.scripts import start

    words = shlex.split(written()[field][-1])
    assert words[:2] == ["ray", "start"]
    start.make_context("start", words[2:])


def test_images_are_those_of_the_dockerfile() -> None:
    config = written()
    named = {config["docker"]["head_image"], config["docker"]["worker_image"]}
    assert named == {"rayclip:0.1.0"}
    assert config["available_node_types"]["gpu"]["docker"] == {"worker_image": "rayclip-gpu:0.1.0"}
