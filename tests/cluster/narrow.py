"""KubeRay's four CRDs in, tests/cluster/kuberay.json out: what its kinds may hold, small enough to keep.

    git clone --branch v1.7.0 https://github.com/ray-project/kuberay
    python tests/cluster/narrow.py v1.7.0 kuberay/ray-operator/config/crd/bases/ray.io_ray*.yaml

The CRDs have 4 MB, nearly all of it Kubernetes' own types, written out at each place. Here these are names, which the
tests look up in Kubernetes' own schemas; descriptions, defaults and status are left out; and where a CRD says which
fields there are, others are refused, as `kubectl apply` does and a schema by itself does not.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).with_name("kuberay.json")
KUBERNETES = "https://kubernetes.io/api/_definitions.json#/$defs/"  # as the PyPI package kubernetes-validate names them
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength")
# Fields of KubeRay's that hold a type of Kubernetes' (ray-operator/apis/ray/v1/*_types.go).
FOREIGN = {
    "metadata": "apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "template": "api.core.v1.PodTemplateSpec",
    "submitterPodTemplate": "api.core.v1.PodTemplateSpec",
    "headService": "api.core.v1.Service",
    "serveService": "api.core.v1.Service",
    "securityContext": "api.core.v1.SecurityContext",
    "valueFrom": "api.core.v1.EnvVarSource",
    "env": "api.core.v1.EnvVar",
    "envFrom": "api.core.v1.EnvFromSource",
    "volumeMounts": "api.core.v1.VolumeMount",
    "ingressRules": "api.networking.v1.NetworkPolicyIngressRule",
    "egressRules": "api.networking.v1.NetworkPolicyEgressRule",
    "resources": "api.core.v1.ResourceRequirements",  # but of a group of nodes, where it is a map of Ray's
}


def main() -> None:
    """Write what the tests read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("crds", nargs="+", type=Path)
    arguments = parser.parse_args()
    crds = {crd.name: crd.read_bytes() for crd in arguments.crds}
    kinds = {}
    for text in crds.values():
        spec = yaml.load(text, yaml.CSafeLoader)["spec"]
        kinds[spec["names"]["kind"]] = narrowed_crd(spec)
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in crds.items()}
    known = {"kuberay": arguments.version, "sha256": digests, "kinds": kinds}
    OUT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def narrowed_crd(spec: dict[str, Any]) -> dict[str, Any]:
    """Narrow the schema of version v1, without what only the operator writes."""
    schema = next(v for v in spec["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    fields = {name: field for name, field in schema["properties"].items() if name != "status"}
    fields["apiVersion"] = {"type": "string", "enum": [f"{spec['group']}/v1"]}
    fields["kind"] = {"type": "string", "enum": [spec["names"]["kind"]]}
    return narrowed({**schema, "properties": fields, "required": ["apiVersion", "kind", "metadata", "spec"]})


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """Keep what can be wrong about a field."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    small = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        small["properties"] = {name: field(name, of) for name, of in sorted(schema["properties"].items())}
        small["additionalProperties"] = False
    elif "additionalProperties" in schema:
        small["additionalProperties"] = narrowed(schema["additionalProperties"])
    if "items" in schema:
        small["items"] = narrowed(schema["items"])
    return small


def field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Narrow a field; where it is Kubernetes', to its type's name."""
    if name not in FOREIGN or (name == "resources" and "additionalProperties" in schema):
        return narrowed(schema)
    reference = {"$ref": f"{KUBERNETES}io.k8s.{FOREIGN[name]}"}
    return {"type": "array", "items": reference} if schema["type"] == "array" else reference


if __name__ == "__main__":
    main()
