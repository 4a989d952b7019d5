"""The manifests of cluster/kubernetes as kubectl builds them, and what Kubernetes and KubeRay would say to them.

Schemas: Kubernetes' own kinds from the PyPI package kubernetes-validate, in their strict form; KubeRay's from
kuberay.json (narrow.py). Unknown fields are refused everywhere.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "cluster" / "kubernetes"
BUILT = ("base", "overlays/small", "overlays/large")
VERSION = "1.37"  # of Kubernetes' schemas: the newest that kubernetes-validate has
Manifest = dict[str, Any]


@functools.cache
def _built(name: str) -> str:
    """Build a folder, or read a file, of cluster/kubernetes."""
    place = KUBERNETES / name
    if place.is_file():
        return place.read_text(encoding="utf-8")
    kubectl = Path(sys.executable).with_name("kubectl")  # of the dev extra
    ran = subprocess.run([kubectl, "kustomize", str(place)], capture_output=True, text=True, env={**os.environ})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def manifests(name: str) -> list[Manifest]:
    """Give what a folder or file holds; every call has its own."""
    return [one for one in yaml.load_all(_built(name), yaml.CSafeLoader) if one]


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def everything() -> list[Any]:  # of pytest.param
    """Every resource of every set, with a name for pytest."""
    import pytest

    return [
        pytest.param(name, index, id=f"{name}:{title(manifest)}")
        for name in (*BUILT, "alternatives/raycronjob.yaml")
        for index, manifest in enumerate(manifests(name))
    ]


def by_kind(name: str) -> dict[str, Manifest]:
    """Give each resource of a set by kind and name, as RayJob/backfill."""
    return {title(manifest): manifest for manifest in manifests(name)}


@functools.cache
def _schema(api_version: str, kind: str) -> Draft202012Validator:
    strict = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    definitions = Resource.from_contents(json.loads((strict / "_definitions.json").read_text(encoding="utf-8")))
    if api_version == "ray.io/v1":
        known = json.loads(Path(__file__).with_name("kuberay.json").read_text(encoding="utf-8"))
        schema = known["kinds"][kind]
    else:
        group, _, version = api_version.rpartition("/")
        name = "-".join(part for part in (kind.lower(), group.partition(".")[0], version) if part)
        schema = json.loads((strict / f"{name}.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema, registry=definitions @ Registry())


def faults(manifest: Manifest) -> list[str]:
    """Say what its schema has against a manifest, each with its place."""
    schema = _schema(manifest["apiVersion"], manifest["kind"])
    return [f"{error.json_path}: {error.message}" for error in schema.iter_errors(manifest)]


def clusters(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the Ray clusters that a manifest has in it."""
    spec = manifest.get("spec", {})
    for holder, field in ((manifest, "spec"), (spec, "rayClusterSpec"), (spec, "rayClusterConfig")):
        if "headGroupSpec" in holder.get(field, {}):
            yield holder[field]
    if "rayClusterSpec" in spec.get("jobTemplate", {}):
        yield spec["jobTemplate"]["rayClusterSpec"]


def groups(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the groups of nodes that a manifest has in it, heads among them."""
    for cluster in clusters(manifest):
        yield cluster["headGroupSpec"]
        yield from cluster.get("workerGroupSpecs", [])


def templates(value: Any, field: str = "") -> Iterator[dict[str, Any]]:  # any part of a manifest
    """Yield every template of pods, wherever it is."""
    if isinstance(value, dict):
        if field.lower().endswith("template") and "containers" in value.get("spec", {}):
            yield value
        for name, part in value.items():
            yield from templates(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from templates(part, field)


def rejections(manifest: Manifest) -> list[str]:
    """Say what KubeRay 1.7.0 has against a manifest beyond its schema.

    The first two are CEL rules of the CRD (rayjob_types.go), the others the operator's own
    (ray-operator/controllers/ray/utils/validation.go); those that these files come near.
    """
    job = manifest["spec"].get("jobTemplate", manifest["spec"]) if manifest["kind"] != "CronJob" else {}
    found = [rejection for cluster in clusters(manifest) for rejection in _of_cluster(cluster)]
    manager = manifest["spec"].get("managedBy")
    if manager not in (None, "ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"):
        found.append(f"managedBy: {manager}")
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    if any(("jobStatus" in rule["condition"]) == ("jobDeploymentStatus" in rule["condition"]) for rule in rules):
        found.append("deletion condition: exactly one of jobStatus and jobDeploymentStatus")
    if rules and job.get("shutdownAfterJobFinishes"):
        found.append("deletionRules and shutdownAfterJobFinishes exclude each other")
    if job.get("suspend") and "entrypoint" in job and not job.get("shutdownAfterJobFinishes"):
        found.append("suspend without shutdownAfterJobFinishes")
    if any(rule["policy"] == "DeleteWorkers" for rule in rules) and job["rayClusterSpec"].get(
        "enableInTreeAutoscaling"
    ):
        found.append("DeleteWorkers with an autoscaler")
    keys = [(rule["policy"], *sorted(rule["condition"].items())[:1]) for rule in rules]
    if len(set(keys)) < len(keys):
        found.append("two deletion rules of one policy and condition")
    deadlines = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
    found += [f"{field} is not positive" for field in deadlines if job.get(field, 1) <= 0]
    if len(manifest["metadata"]["name"]) > {"RayCluster": 53, "RayCronJob": 36}.get(manifest["kind"], 47):
        found.append("name is too long")
    return found


def _of_cluster(spec: dict[str, Any]) -> Iterator[str]:
    is_scaled = spec.get("enableInTreeAutoscaling", False)
    version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
    if spec.get("authOptions", {}).get("mode", "token") == "token" and version < (2, 52):
        yield "token authentication with a Ray before 2.52, or of no version"
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        params, pod = group["rayStartParams"], group["template"]["spec"]
        if "labels" in params:
            yield "labels among rayStartParams"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
            yield "resources in two places"
        if is_scaled and pod.get("restartPolicy", "Never") != "Never":
            yield "restartPolicy with autoscaler v2"
        if any(
            variable["name"] in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")
            for variable in pod["containers"][0].get("env", [])
        ):
            yield "Redis by a variable, beside gcsFaultToleranceOptions"
    for group in spec.get("workerGroupSpecs", []):
        if not is_scaled and not {"minReplicas", "maxReplicas"} <= set(group):
            yield "no minReplicas and maxReplicas without an autoscaler"
        if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31):
            yield "minReplicas above maxReplicas"
