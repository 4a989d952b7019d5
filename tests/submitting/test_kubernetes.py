"""RayJobs through Kubernetes' own client, against an HTTP server that keeps objects as an API server does."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from jobs.submit_rayjob import run
from pipeline.config import SubmitRayJobConfig
from pipeline.errors import IncompleteError, InputError, LeaseHeldError

TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "backfill", "uid": "1", "resourceVersion": "7", "labels": {"app": "rayclip"}},
    "spec": {"suspend": True, "managedBy": "kueue.x-k8s.io/multikueue", "entrypoint": "run", "backoffLimit": 1},
    "status": {"jobDeploymentStatus": "Suspended"},
}
FAILED = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n…"


class ApiServer(ThreadingHTTPServer):
    """Keeps RayJobs; a new one is over after so many looks, as its name's place in ``endings`` says."""

    def __init__(self, *endings: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.rayjobs: dict[str, dict] = {"backfill": json.loads(json.dumps(TEMPLATE))}
        self.endings = list(endings)
        self.made: list[dict] = []
        self.lock = threading.Lock()


class Requests(BaseHTTPRequestHandler):
    server: ApiServer
    prefix = "/apis/ray.io/v1/namespaces/rayclip/rayjobs"

    def do_GET(self) -> None:  # http.server's name
        name = self.path.removeprefix(self.prefix).strip("/")
        with self.server.lock:
            found = self.server.rayjobs.get(name)
            if found is None:
                return self._answer(404, {"kind": "Status", "reason": "NotFound"})
            answer = json.dumps(found)
            if found.get("looks"):  # it gets on between looks
                found["looks"] -= 1
                found["status"] = {"jobDeploymentStatus": "Running"} if found["looks"] else self.server.endings.pop(0)
        return self._answer(200, json.loads(answer))

    def do_POST(self) -> None:
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            if made["metadata"]["name"] in self.server.rayjobs:
                return self._answer(409, {"kind": "Status", "reason": "AlreadyExists"})
            self.server.made.append(made)
            self.server.rayjobs[made["metadata"]["name"]] = {**made, "looks": 2}
        return self._answer(201, made)

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ApiServer]]:
    """Start an API server that the client finds by its usual file."""
    started: list[ApiServer] = []

    def start(*endings: dict[str, str]) -> ApiServer:
        server = ApiServer(*endings)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def config(name: str, **fields: object) -> SubmitRayJobConfig:
    return SubmitRayJobConfig(id=name, poll_s=0.01, **fields)


def ending(deployment: str, job: str, message: str = "") -> dict[str, str]:
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}


def test_a_copy_of_the_template_runs_once_under_the_schedules_name(
    api: Callable[..., ApiServer], capsys: pytest.CaptureFixture[str]
):
    server = api(ending("Complete", "SUCCEEDED"))
    run(config("backfill-29384720"))
    (made,) = server.made
    assert made["metadata"] == {
        "name": "backfill-29384720",
        "labels": {"app": "rayclip", "rayclip/template": "backfill"},
    }
    assert made["spec"] == {"suspend": False, "entrypoint": "run", "backoffLimit": 1, "jobId": "backfill-29384720"}
    assert "status" not in made
    assert capsys.readouterr().out == "backfill-29384720 is done: Complete SUCCEEDED\n"
    run(config("backfill-29384720"))
    assert "is already done" in capsys.readouterr().out
    assert len(server.made) == 1


def test_a_jobs_own_status_is_the_submitters(api: Callable[..., ApiServer]):
    server = api(ending("Failed", "FAILED", FAILED.format(4)), ending("Failed", "FAILED", FAILED.format(3)))
    with pytest.raises(LeaseHeldError, match="exit code 4"):
        run(config("night"))
    with pytest.raises(IncompleteError, match="night-2"):
        run(config("night"))
    assert [made["metadata"]["name"] for made in server.made] == ["night", "night-2"]


def test_what_is_incomplete_goes_on_in_a_new_cluster(api: Callable[..., ApiServer], capsys: pytest.CaptureFixture[str]):
    server = api(ending("Failed", "FAILED", FAILED.format(3)), ending("Complete", "SUCCEEDED"))
    run(config("night", tries=2))
    assert len(server.made) == 2
    assert "night-2 is done" in capsys.readouterr().out


def test_gpus_that_never_come_are_no_status_of_the_job(api: Callable[..., ApiServer]):
    api(ending("Failed", "", "the RayJob has passed the preRunningDeadlineSeconds"))
    with pytest.raises(Exception, match="preRunningDeadlineSeconds") as caught:
        run(config("night"))
    assert caught.value.exit_status == 1


def test_what_cannot_be_started_says_why(api: Callable[..., ApiServer]):
    api()
    with pytest.raises(InputError, match="no RayJob nightly in namespace rayclip"):
        run(config("night", template="nightly"))
    with pytest.raises(InputError, match="50 letters; KubeRay takes 47"):
        run(config("n" * 50))


def test_a_job_that_somebody_removes_is_not_taken_for_done(api: Callable[..., ApiServer]):
    server = api()
    server.rayjobs["night"] = {**TEMPLATE, "status": {"jobDeploymentStatus": "Running"}}
    threading.Timer(0.3, lambda: server.rayjobs.pop("night")).start()
    with pytest.raises(IncompleteError, match="is gone"):
        run(config("night"))


def test_without_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="neither a pod's service account nor a kubeconfig"):
        run(config("night"))
