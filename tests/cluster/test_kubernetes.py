"""The manifests hold what Kubernetes, KubeRay and our own code want of them; nothing here needs a cluster."""

import ast
import copy
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants
from ray.serve.schema import ServeDeploySchema

from jobs.flags import load
from pipeline.compute import MIN_LOGICAL_CPUS
from pipeline.config import BackfillConfig, ServeConfig, SubmitRayJobConfig, checked
from pipeline.errors import InputError, LeaseHeldError
from pipeline.serving.app import REQUEST_TIMEOUT_S
from pipeline.submitting.kubernetes import _copy
from tests.cluster.manifests import (
    BUILT,
    KUBERNETES,
    ROOT,
    by_kind,
    clusters,
    everything,
    faults,
    groups,
    manifests,
    rejections,
    templates,
)

ALL = (*BUILT, "alternatives/raycronjob.yaml")
# Secrets are made by hand: cluster/README.md, and the comments of endpoint.yaml and redis.yaml, say how.
SECRETS = {"rayclip-redis": {"password"}, "rayclip-api-keys": {"api_keys"}, "rayclip-store": set()}
TALKS_TO_KUBERNETES = {"rayclip-head", "rayclip-schedule"}
MODULE = re.compile(r"python -m (\S+)")


@pytest.mark.parametrize(("name", "index"), everything())
def test_every_manifest_passes_its_schema_with_unknown_fields_refused(name: str, index: int) -> None:
    assert faults(manifests(name)[index]) == []


@pytest.mark.parametrize(("name", "index"), everything())
def test_a_misspelt_field_of_any_manifest_is_caught(name: str, index: int) -> None:
    original = manifests(name)[index]
    top = copy.deepcopy(original)
    spec = top.get("spec", top)
    field = sorted(spec)[0]
    spec[f"{field}x"] = spec[field]
    assert any(f"{field}x" in fault for fault in faults(top))
    for number in range(len(list(templates(original)))):
        for place in ("pod", "container", "security"):
            deep = copy.deepcopy(original)
            pod = list(templates(deep))[number]["spec"]
            inside = {
                "pod": pod,
                "container": pod["containers"][0],
                "security": pod["containers"][0]["securityContext"],
            }
            inside[place]["runAsNonRoott"] = True
            assert any("runAsNonRoott" in fault for fault in faults(deep)), (number, place)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob/backfill", ("submissionMode",), 7),
        ("RayJob/backfill", ("deletionStrategy", "deletionRules", 0, "policy"), "DeleteAll"),
        ("RayJob/backfill", ("deletionStrategy", "deletionRules", 0, "condition", "ttlSeconds"), -1),
        ("RayJob/backfill", ("preRunningDeadlineSeconds",), 0),
        ("RayCluster/rayclip", ("authOptions", "mode"), "password"),
        ("RayCluster/rayclip", ("autoscalerOptions", "version"), "v3"),
        ("RayCluster/rayclip", ("workerGroupSpecs", 0, "replicas"), "two"),
        ("RayService/endpoint", ("rayClusterDeletionDelaySeconds",), -1),
    ],
)
def test_a_value_that_a_schema_excludes_is_caught(kind: str, path: tuple[Any, ...], value: Any) -> None:
    manifest = by_kind("base")[kind]
    holder = manifest["spec"]
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    assert faults(manifest) != []


@pytest.mark.parametrize("name", BUILT)
def test_nights_do_not_overlap_and_have_a_time_zone(name: str) -> None:
    spec = by_kind(name)["CronJob/backfill"]["spec"]
    # Kubernetes' published schemas leave its enums out, so that a misspelt one passes them.
    assert (spec["concurrencyPolicy"], spec["timeZone"], spec["suspend"]) == ("Forbid", "Etc/UTC", False)


def submitted(job: dict[str, Any]) -> dict[str, Any]:
    """Give what jobs.submit_rayjob makes of the template, as it does."""
    made = _copy(job, "backfill-29384720")
    assert made["spec"]["suspend"] is False
    return made


@pytest.mark.parametrize("name", ALL)
def test_kuberay_rejects_none_of_its_kinds(name: str) -> None:
    for manifest in manifests(name):
        if manifest["apiVersion"] == "ray.io/v1":
            assert rejections(submitted(manifest) if manifest["kind"] == "RayJob" else manifest) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suspend": True}, "suspend without"),
        ({"shutdownAfterJobFinishes": True}, "exclude each other"),
        ({"managedBy": "somebody"}, "managedBy"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
        ({"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}}, "exactly one"),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [{"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}]
                }
            },
            "DeleteWorkers",
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}] * 2
                }
            },
            "two deletion rules",
        ),
    ],
)
def test_what_kuberay_rejects_is_known_here(change: dict[str, Any], said: str) -> None:
    job = submitted(by_kind("base")["RayJob/backfill"])
    job["spec"].update(change)
    assert [rejection for rejection in rejections(job) if said in rejection]


def test_the_template_sleeps_until_it_is_copied() -> None:
    spec = by_kind("base")["RayJob/backfill"]["spec"]
    # KubeRay leaves alone what others manage, before it validates anything (rayjob_controller.go).
    assert (spec["suspend"], spec["managedBy"]) == (True, "kueue.x-k8s.io/multikueue")


@pytest.mark.parametrize("name", BUILT)
def test_the_schedule_tries_again_what_a_try_may_mend(name: str) -> None:
    kinds = by_kind(name)
    job = kinds["CronJob/backfill"]["spec"]["jobTemplate"]["spec"]
    moved, rule = job["podFailurePolicy"]["rules"]
    assert moved == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    finals = [InputError.exit_status, LeaseHeldError.exit_status]
    assert rule["action"] == "FailJob"
    assert (rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"]) == ("In", finals)
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes takes no podFailurePolicy
    assert job["backoffLimit"] >= 3
    assert kinds["RayJob/backfill"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("name", BUILT)
def test_a_backfill_runs_on_what_the_cluster_says(name: str) -> None:
    kinds = by_kind(name)
    cluster = kinds["RayCluster/rayclip"]["spec"]
    assert kinds["RayJob/backfill"]["spec"]["rayClusterSpec"] == {k: v for k, v in cluster.items() if k != "suspend"}


@pytest.mark.parametrize("name", ALL)
def test_no_pod_is_root_can_become_root_or_writes_to_its_image(name: str) -> None:
    for manifest in manifests(name):
        contexts = [cluster["autoscalerOptions"] for cluster in clusters(manifest) if "autoscalerOptions" in cluster]
        for template in templates(manifest):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            contexts += pod["containers"]
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            claims = {claim["metadata"]["name"]: claim for claim in manifest["spec"].get("volumeClaimTemplates", [])}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | set(claims)
                if "rayclip" in container["image"]:
                    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                    assert "emptyDir" in volumes[mounted["/tmp"]]  # HOME of the image
        for container in contexts:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("name", ALL)
def test_memory_is_what_was_asked_for_and_every_node_has_its_cpus(name: str) -> None:
    for manifest in manifests(name):
        for template in templates(manifest):
            for container in template["spec"]["containers"]:
                resources = container["resources"]
                assert resources["requests"]["memory"] == resources["limits"]["memory"]
                assert "cpu" not in resources["limits"]  # or decoders are held up in the middle of a picture
        for group in groups(manifest):
            resources = group["template"]["spec"]["containers"][0]["resources"]
            cpus = group["rayStartParams"].get("num-cpus", resources["requests"]["cpu"])
            assert cpus == "0" or int(cpus) >= MIN_LOGICAL_CPUS


@pytest.mark.parametrize("name", BUILT)
def test_gpus_are_one_a_node_and_have_the_image_for_them(name: str) -> None:
    for group in by_kind(name)["RayCluster/rayclip"]["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        is_gpu = group["groupName"] == "gpu"
        assert container["image"].startswith("rayclip-gpu") == is_gpu
        for side in ("requests", "limits"):
            assert container["resources"][side].get("nvidia.com/gpu") == ("1" if is_gpu else None)
        assert any(one["key"] == "nvidia.com/gpu" for one in pod.get("tolerations", [])) == is_gpu
        assert group["labels"]["rayclip/pool"] == group["groupName"]
        is_spot = group["labels"]["ray.io/market-type"] == "spot"
        assert (pod.get("nodeSelector") == {"karpenter.sh/capacity-type": "spot"}) == is_spot
        assert any(one["key"] == "rayclip/spot" for one in pod.get("tolerations", [])) == is_spot


@pytest.mark.parametrize("name", [*BUILT[1:], "alternatives/raycronjob.yaml"])
def test_images_have_a_tag_and_no_host(name: str) -> None:
    for manifest in manifests(name):
        for template in templates(manifest):
            for container in template["spec"]["containers"]:
                assert re.fullmatch(r"[a-z-]+:[0-9]+(\.[0-9]+)+", container["image"]), container["image"]


@pytest.mark.parametrize("name", ALL)
def test_secrets_are_only_referred_to_and_all_that_is_referred_to_exists(name: str) -> None:
    kinds = by_kind(name) if name in BUILT else {**by_kind("base"), **by_kind(name)}
    assert not any(kind.startswith("Secret/") for kind in kinds)
    for manifest in manifests(name):
        for template in templates(manifest):
            pod = template["spec"]
            account = pod.get("serviceAccountName")
            assert account is None or f"ServiceAccount/{account}" in kinds
            assert pod["automountServiceAccountToken"] == (account in TALKS_TO_KUBERNETES)
            for volume in pod.get("volumes", []):
                assert "configMap" not in volume or f"ConfigMap/{volume['configMap']['name']}" in kinds
                assert "secret" not in volume or volume["secret"]["secretName"] in SECRETS
        for path, value in walked(manifest):
            if path and path[-1] == "secretKeyRef":
                assert value["key"] in SECRETS[value["name"]]
            if path and path[-1] == "secretRef":
                assert value["name"] in SECRETS
            if path and isinstance(value, dict) and set(value) == {"name", "value"}:
                assert not re.search("password|secret|token|key", value["name"], re.IGNORECASE)


@pytest.mark.parametrize("name", BUILT)
def test_everything_is_in_one_namespace(name: str) -> None:
    for kind, manifest in by_kind(name).items():
        assert kind == "Namespace/rayclip" or manifest["metadata"]["namespace"] == "rayclip"
    (subject,) = by_kind(name)["RoleBinding/rayclip-schedule"]["subjects"]
    assert (subject["name"], subject["namespace"]) == ("rayclip-schedule", "rayclip")


@pytest.mark.parametrize("name", BUILT)
def test_the_schedule_may_look_for_rayjobs_and_make_them_and_nothing_else(name: str) -> None:
    (rule,) = by_kind(name)["Role/rayclip-schedule"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert set(rule["verbs"]) == {"get", "list", "create"}


@pytest.mark.parametrize("name", BUILT)
def test_network_policies_name_pods_that_exist_and_leave_none_out(name: str) -> None:
    pods = [template["metadata"]["labels"] for one in manifests(name) for template in templates(one)]
    parts = {labels["rayclip/part"] for labels in pods}
    assert parts == {"batch", "submitter", "schedule", "endpoint", "redis"}
    assert by_kind(name)["NetworkPolicy/deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for kind, manifest in by_kind(name).items():
        if not kind.startswith(("NetworkPolicy/", "PodDisruptionBudget/", "Service/")):
            continue
        for path, value in walked(manifest["spec"]):
            if path and path[-1] in ("matchLabels", "selector") and isinstance(value, dict):
                assert value.get("rayclip/part", "batch") in parts, kind
            if path and path[-1] == "matchExpressions":
                assert {part for one in value for part in one["values"]} <= parts, kind


@pytest.mark.parametrize("name", BUILT)
def test_ports_that_are_let_in_are_ports_that_somebody_listens_on(name: str) -> None:
    listening: dict[str, set[int]] = {}
    for manifest in manifests(name):
        for template in templates(manifest):
            ports = {port["containerPort"] for one in template["spec"]["containers"] for port in one.get("ports", [])}
            listening.setdefault(template["metadata"]["labels"]["rayclip/part"], set()).update(ports)
    for part in ("batch", "endpoint", "redis"):
        policy = by_kind(name)[f"NetworkPolicy/{part}"]["spec"]
        let_in = {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])}
        assert let_in <= listening[part]
        # Whoever reaches these runs code: with a port they are for pods of their own part only, without one for all.
        assert not let_in & {6379, 10001} or part == "redis"


@pytest.mark.parametrize("name", ALL)
def test_what_is_run_are_modules_that_exist_with_flags_that_they_take(name: str) -> None:
    for manifest in manifests(name):
        spec = manifest["spec"].get("jobTemplate", manifest["spec"]) if "spec" in manifest else {}
        if entrypoint := spec.get("entrypoint"):
            (module,) = MODULE.findall(entrypoint)
            assert importlib.util.find_spec(module)
            words = shlex.split(entrypoint)
            config = Path(words[words.index("--config") + 1])
            mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
            assert str(config.parent) in {mount["mountPath"] for mount in mounts}
            assert config.name in by_kind(name if name in BUILT else "base")["ConfigMap/rayclip-config"]["data"]
        if manifest["kind"] == "CronJob":
            (container,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            assert container["command"] == ["python", "-m", "jobs.submit_rayjob"]
            assert importlib.util.find_spec("jobs.submit_rayjob")
            made = {"JOB_NAME": "backfill-29384720", "NAMESPACE": "rayclip"}
            assert {variable["name"] for variable in container["env"]} == set(made)
            words = [
                word.replace("$(JOB_NAME)", made["JOB_NAME"]).replace("$(NAMESPACE)", made["NAMESPACE"])  # the kubelet
                for word in container["args"]
            ]
            config = load(SubmitRayJobConfig, words, "jobs.submit_rayjob")
            assert (config.template, config.id, config.namespace) == ("backfill", "run-backfill-29384720", "rayclip")
            # KubeRay gives the Job that submits the RayJob's own name: with that of this Job it would submit nothing.
            assert config.id != made["JOB_NAME"]
            assert f"RayJob/{config.template}" in by_kind(name)


@pytest.mark.parametrize("name", BUILT)
def test_the_config_of_the_backfill_loads_and_ends_before_kubernetes_ends_it(name: str) -> None:
    kinds = by_kind(name)
    file = KUBERNETES / name / "backfill.toml"
    assert kinds["ConfigMap/rayclip-config"]["data"]["backfill.toml"] == file.read_text(encoding="utf-8")
    config = load(BackfillConfig, ["--config", str(file)], "jobs.backfill")
    assert config.deadline_s is not None
    assert config.deadline_s < kinds["RayJob/backfill"]["spec"]["activeDeadlineSeconds"]


@pytest.mark.parametrize("name", BUILT)
def test_serve_takes_its_config_and_our_endpoint_its_arguments(name: str) -> None:
    service = by_kind(name)["RayService/endpoint"]["spec"]
    serve = yaml.safe_load(service["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(serve)
    (application,), (parsed,) = serve["applications"], schema.applications
    # The schema takes any key; what it does not know it would pass on to nobody.
    assert set(serve) <= set(ServeDeploySchema.model_fields)
    assert set(serve["http_options"]) <= set(type(schema.http_options).model_fields)
    assert set(application) <= set(type(parsed).model_fields)
    for deployment, known in zip(application["deployments"], parsed.deployments, strict=True):
        assert set(deployment) <= set(type(known).model_fields)
        assert deployment["name"] == "Endpoint"
        assert deployment["max_replicas_per_node"] == 1
    module, _, function = application["import_path"].partition(":")
    source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    assert function in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    config = checked(ServeConfig, application["args"])
    assert config.host == serve["http_options"]["host"] == "0.0.0.0"
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    assert config.replicas == workers["replicas"] == workers["minReplicas"] >= 2
    for group in (service["rayClusterConfig"]["headGroupSpec"], workers):
        (mount,) = [m for m in group["template"]["spec"]["containers"][0]["volumeMounts"] if m["name"] == "keys"]
        assert Path(config.api_key_file or "") == Path(mount["mountPath"]) / "api_keys"
    redis = by_kind(name)["Service/rayclip-redis"]
    (port,) = redis["spec"]["ports"]
    address = service["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
    assert address == f"redis://{redis['metadata']['name']}:{port['port']}"


@pytest.mark.parametrize("name", BUILT)
def test_nodes_are_drained_in_the_time_that_they_have(name: str) -> None:
    variable = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, variable)  # or Ray calls it something else now
    drained = []
    for manifest in manifests(name):
        for cluster in clusters(manifest):
            for group in cluster["workerGroupSpecs"]:
                pod = group["template"]["spec"]
                (value,) = [one["value"] for one in pod["containers"][0]["env"] if one["name"] == variable]
                assert 5 < pod["terminationGracePeriodSeconds"] - float(value) < 30
                drained.append((manifest["kind"], float(value)))
    assert all(seconds > REQUEST_TIMEOUT_S for kind, seconds in drained if kind == "RayService")
    assert by_kind(name)["RayService/endpoint"]["spec"]["rayClusterDeletionDelaySeconds"] >= REQUEST_TIMEOUT_S


@pytest.mark.parametrize("name", BUILT)
def test_replicas_may_go_one_at_a_time_and_no_more(name: str) -> None:
    kinds = by_kind(name)
    (workers,) = kinds["RayService/endpoint"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    budget = kinds["PodDisruptionBudget/endpoint"]["spec"]
    assert budget["minAvailable"] == workers["replicas"] - 1
    # The label of nodes is KubeRay's (ray-operator/controllers/ray/utils/constant.go), the other that of the template.
    part = workers["template"]["metadata"]["labels"]["rayclip/part"]
    assert budget["selector"]["matchLabels"] == {"rayclip/part": part, "ray.io/node-type": "worker"}


def test_versions_of_ray_are_one() -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "cluster/requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    image = re.search(
        r"^ARG RAY_VERSION=(\S+)", (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {cluster["rayVersion"] for name in ALL for one in manifests(name) for cluster in clusters(one)}
    assert named == {locked[1]} == {image[1]}


def walked(value: Any, path: tuple[Any, ...] = ()) -> Any:  # pairs of a path and what is there
    """Yield every part of a manifest with its path."""
    yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from walked(part, (*path, name))
