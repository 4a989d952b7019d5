"""Kubernetes as a place for jobs: each is a RayJob, copied from a suspended one that says what to run and on what.

In a pod the service account's token is used, elsewhere the current context of ~/.kube/config. KubeRay makes a cluster
for each job and takes it away again; names are the RayJobs'.
"""

import logging
import os
import re
import time
from typing import Any

from pipeline.config import SubmitRayJobConfig
from pipeline.errors import IncompleteError, InputError, RunError
from pipeline.submitting.once import INCOMPLETE, Found

try:
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError
except ImportError as error:
    raise ImportError("jobs.submit_rayjob needs Kubernetes' client: pip install 'rayclip[kubernetes]'") from error

logger = logging.getLogger(__name__)

KIND = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
TEMPLATE_LABEL = "rayclip/template"
# Ray's words in the status of a RayJob whose entrypoint failed (JobInfo.message in Ray's job manager).
EXIT_CODE = re.compile(r"exit code (\d+)")
TIMEOUT_S = 30.0
LOST_S = 300.0  # without an answer, after which nothing is known of the job
MAX_NAME = 47  # letters, which KubeRay 1.7 takes (ValidateRayJobMetadata)


class RayJobs:
    """The RayJobs of a namespace."""

    def __init__(self, settings: SubmitRayJobConfig) -> None:
        self.settings = settings
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:  # Kubernetes sets it in every pod
                config.load_incluster_config()
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"))
        except config.ConfigException as error:
            raise InputError(f"kubernetes: neither a pod's service account nor a kubeconfig: {error}") from error
        self.api = client.CustomObjectsApi()
        self.namespace = {"namespace": settings.namespace, **KIND}

    def find(self, name: str) -> Found | None:
        """Look how a job stands; None: there is none."""
        rayjob = self._get(name)
        return None if rayjob is None else _found(rayjob.get("status") or {})

    def start(self, name: str) -> None:
        """Create a copy of the template; nothing if there is one of that name by now.

        Raises:
            InputError: no such template, or Kubernetes refuses the copy.
            IncompleteError: Kubernetes cannot be reached.
        """
        if len(name) > MAX_NAME:
            raise InputError(f"id {name}: {len(name)} letters; KubeRay takes {MAX_NAME} at most")
        template = self._get(self.settings.template)
        if template is None:
            raise InputError(f"template: no RayJob {self.settings.template} in namespace {self.settings.namespace}")
        try:
            self.api.create_namespaced_custom_object(
                **self.namespace, body=_copy(template, name), _request_timeout=TIMEOUT_S
            )
        except (ApiException, HTTPError) as error:
            if getattr(error, "status", None) != 409:
                raise _failure(name, error) from error

    def follow(self, name: str) -> Found:
        """Look every few seconds until the job is over.

        Raises:
            IncompleteError: the RayJob is gone, or Kubernetes cannot be reached any more; the job may go on.
        """
        heard, state = time.monotonic(), ""
        while True:
            try:
                found = self.find(name)
                heard = time.monotonic()
            except IncompleteError as error:
                if time.monotonic() - heard > LOST_S:
                    raise IncompleteError(f"{name}: not heard of for {LOST_S:.0f} s: {error}") from error
                time.sleep(self.settings.poll_s)
                continue
            if found is None:
                raise IncompleteError(f"{name}: the RayJob is gone: somebody, or its own deletion rules, removed it")
            if found.said != state:
                state = found.said
                logger.info("job=%s %s", name, state)
            if found.is_over:
                return found
            time.sleep(self.settings.poll_s)

    def _get(self, name: str) -> dict[str, Any] | None:  # a RayJob, as KubeRay's schema has it
        try:
            found: dict[str, Any] = self.api.get_namespaced_custom_object(
                **self.namespace, name=name, _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise _failure(name, error) from error
        except HTTPError as error:
            raise _failure(name, error) from error
        return found


def _failure(name: str, error: Exception) -> RunError:
    """Tell what Kubernetes refuses, which no next try mends, from what may pass."""
    status = getattr(error, "status", None) or 0
    if 400 <= status < 500 and status not in (408, 429):
        return InputError(f"{name}: refused by Kubernetes: {' '.join(str(error).split())}")
    return IncompleteError(f"{name}: Kubernetes does not answer as it should: {' '.join(str(error).split())}")


def _copy(template: dict[str, Any], name: str) -> dict[str, Any]:  # as _get
    """Make a RayJob that runs, of one that waits: its name is also the id of Ray's job.

    KubeRay leaves alone what somebody else manages: that keeps a template asleep.
    """
    meta = template["metadata"]
    spec = {name: value for name, value in template["spec"].items() if name != "managedBy"}
    labels = {**(meta.get("labels") or {}), TEMPLATE_LABEL: meta["name"]}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": name, "labels": labels},
        "spec": {**spec, "suspend": False, "jobId": name},
    }


def _found(status: dict[str, Any]) -> Found:  # RayJobStatus
    """Read what KubeRay says of a job (rayjob_types.go: Complete and Failed are the ends, ValidationFailed another)."""
    deployment, job = status.get("jobDeploymentStatus") or "New", status.get("jobStatus") or ""
    has_succeeded = deployment == "Complete" and job == "SUCCEEDED"
    is_over = deployment in ("Complete", "Failed", "ValidationFailed")
    said = " ".join(part for part in (deployment, job, status.get("reason") or "", status.get("message") or "") if part)
    code = EXIT_CODE.search(status.get("message") or "")
    was_stopped = job == "STOPPED"
    exit_status = int(code[1]) if code else INCOMPLETE if was_stopped else None
    return Found(is_over, has_succeeded, " ".join(said.split()), exit_status if is_over else None, was_stopped)
