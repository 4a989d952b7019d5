"""What watches over a cluster: every query asks for what a real run exposed; alerts fire when they should; files parse.

promtool is Debian's `prometheus`; where it is missing, tests that need it skip, but not in CI.
"""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.promql import Query, read
from tests.conftest import ROOT

WATCH = ROOT / "cluster" / "watch"
ALERTS = yaml.safe_load((WATCH / "alerts.yaml").read_text())
DASHBOARD = json.loads((WATCH / "dashboard.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]

Exposed = dict[str, dict[str, list[str]]]  # values by metric and label

# Of what prometheus*.yml put on every series.
TARGET_LABELS = {"instance", "job", "namespace", "pod"}
# Which statuses there are depends on what goes wrong.
FREE_VALUES = {"status_code"}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tests.cluster.exposing, which has run."""
    folder = tmp_path_factory.mktemp("exposing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "tests.cluster.exposing", str(folder), str(port)]
        environment = {**os.environ, "RAY_ADDRESS": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=280, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def exposed(run: Path) -> Exposed:
    """What the run exposed, and the metrics of GPUs, which no machine of these tests has: as Ray declares them."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    seen: Exposed = json.loads((run / "exposed.json").read_text())
    gpus = {name: gauge for name, gauge in METRICS_GAUGES.items() if name.startswith(("node_gpu", "node_gram"))}
    assert "node_gpus_utilization" in gpus
    declared = {f"ray_{name}": {label: [] for label in gauge.view.columns} for name, gauge in gpus.items()}
    return {**declared, **seen}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        assert not os.environ.get("CI"), "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is missing: apt-get install prometheus")
    return found


def told(promtool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def plain(expression: str) -> str:
    """Put values for Grafana's variables."""
    return expression.replace("$__rate_interval", "5m").replace("$table", ".*")


def queries(alerts: dict[str, Any], dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield every expression, with where it is and the text that names its labels."""
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    for panel in panels(dashboard):
        for target in panel["targets"]:
            legend = " ".join(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            yield panel["title"], plain(target["expr"]), legend
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            yield variable["name"], f"max by ({label}) ({metric})", label


def faults(alerts: dict[str, Any], dashboard: dict[str, Any], exposed: Exposed) -> list[str]:
    """Name what queries ask for that nothing exposes."""
    found = []
    for place, expression, named in queries(alerts, dashboard):
        query = read(expression)
        assert query.selectors
        found += [f"{place}: {fault}" for fault in _faults(query, exposed)]
        found += [f"{place}: no grouping keeps {label}" for label in named.split() if label not in query.kept]
    return found


def _faults(query: Query, exposed: Exposed) -> Iterator[str]:
    for selector in query.selectors:
        labels = exposed.get(selector.metric)
        if labels is None:
            yield f"no metric {selector.metric}"
            continue
        for label in {*selector.labels, *(label for label, _, _ in selector.matchers)} - TARGET_LABELS:
            if label not in labels:
                yield f"{selector.metric} has no label {label}"
        for label, operator, value in selector.matchers:
            if label in FREE_VALUES or label not in labels or operator not in ("=", "=~"):
                continue
            pattern = re.compile(re.escape(value) if operator == "=" else value)
            if not any(pattern.fullmatch(one) for one in labels[label]):
                yield f"{selector.metric} has no {label}{operator}{value!r}, but {labels[label]}"


def test_every_query_asks_for_what_a_run_exposed(exposed: Exposed):
    assert faults(ALERTS, DASHBOARD, exposed) == []
    asked = {
        selector.metric for _, expression, _ in queries(ALERTS, DASHBOARD) for selector in read(expression).selectors
    }
    of_ours = {name for name in exposed if name.startswith("ray_rayclip_")}
    assert {name for name in of_ours - asked if not name.endswith(("_sum", "_count"))} == set()  # nobody saw them
    assert {code.isdigit() for code in exposed["ray_serve_num_http_requests_total"]["status_code"]} == {True}


@pytest.mark.parametrize(
    ("written", "misspelt", "fault"),
    [
        ("ray_rayclip_rows_done", "ray_rayclip_row_done", "no metric ray_rayclip_row_done"),
        ("ray_node_gpus_utilization", "ray_node_gpu_utilization", "no metric ray_node_gpu_utilization"),
        ("by (table, folder)", "by (table, holder)", "has no label holder"),
        ("on (table, index)", "on (table, indices)", "has no label indices"),
        ('index="published"', 'index="current"', "has no index='current'"),
        ('Location="SPILLED"', 'Place="SPILLED"', "has no label Place"),
        ("{{reason}}", "{{why}}", "no grouping keeps why"),
        ("$labels.queries", "$labels.kind", "no grouping keeps kind"),
        ("/v1/search", "/v2/search", "has no route"),
    ],
)
def test_what_is_misspelt_is_named(exposed: Exposed, written: str, misspelt: str, fault: str):
    as_text = json.dumps([ALERTS, DASHBOARD])
    one, other = (json.dumps(text)[1:-1] for text in (written, misspelt))
    assert one in as_text
    found = faults(*json.loads(as_text.replace(one, other)), exposed)
    assert any(fault in each for each in found), found


def test_what_the_endpoint_counts_is_on_the_port_of_its_node(run: Path, exposed: Exposed):
    for family in text_string_to_metric_families((run / "endpoint.txt").read_text()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                assert {*sample.labels, "replica"} <= exposed[f"ray_{sample.name}"].keys()


def test_what_a_run_says_ends_with_it_and_what_the_endpoint_says_of_it_stays(run: Path, exposed: Exposed):
    last = {
        (sample.name, sample.labels.get("command") or sample.labels.get("queries")): sample.value
        for family in text_string_to_metric_families((run / "last.txt").read_text())
        for sample in family.samples
        if sample.name.startswith("ray_rayclip_")
    }
    for name in ("ray_rayclip_rows_done", "ray_rayclip_rows_planned", "ray_rayclip_lease_since_timestamp_seconds"):
        assert name in exposed
        assert (name, None) not in last
    assert last["ray_rayclip_run_exit_status", "jobs.backfill"] == 0
    assert last["ray_rayclip_run_success_timestamp_seconds", "jobs.backfill"] > 1.7e9
    assert last["ray_rayclip_index_recall", "text"] >= last["ray_rayclip_index_recall_target", None] == 0.95
    assert last["ray_rayclip_index_rows", None] == last["ray_rayclip_table_rows", None] > 100
    rejected = 150 - last["ray_rayclip_table_rows", None]
    assert last["ray_rayclip_reject_fraction", None] == pytest.approx(rejected / 150)


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(promtool: str):
    checked = told(promtool, "test", "rules", WATCH / "alerts_test.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = yaml.safe_load((WATCH / "alerts_test.yaml").read_text())["tests"]
    expected = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test["alert_rule_test"]]
    for rule in RULES:
        assert {(rule["alert"], True), (rule["alert"], False)} <= set(expected)


def test_every_expression_parses(promtool: str, tmp_path: Path):
    rules = [{"record": "x", "expr": expression} for _, expression, _ in queries({"groups": []}, DASHBOARD)]
    for number, rule in enumerate(rules):
        rule["record"] = f"x{number}"
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (WATCH / "alerts.yaml", tmp_path / "dashboard.yaml"):
        checked = told(promtool, "check", "rules", "--lint-fatal", file)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "dashboard.yaml").write_text((tmp_path / "dashboard.yaml").read_text().replace("max by", "max bye", 1))
    assert told(promtool, "check", "rules", tmp_path / "dashboard.yaml").returncode != 0


def test_prometheus_takes_its_configs(promtool: str, tmp_path: Path):
    machines = told(promtool, "check", "config", WATCH / "prometheus.yml")
    assert machines.returncode == 0, machines.stdout + machines.stderr
    # Debian builds Prometheus without Kubernetes: all but how pods are found is put to it.
    config = yaml.safe_load((WATCH / "prometheus-kubernetes.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["rayclip"]}}]
    shutil.copy(WATCH / "alerts.yaml", tmp_path)
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(config))
    pods = told(promtool, "check", "config", tmp_path / "kubernetes.yml")
    assert pods.returncode == 0, pods.stdout + pods.stderr


def test_each_alert_says_how_bad_it_is_what_it_is_and_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) > 20
        assert rule["annotations"]["runbook"] == f"cluster/README.md#{rule['alert'].lower()}"


def test_the_runbook_has_what_alerts_name():
    headings = re.findall(r"^#+ (.+)$", (ROOT / "cluster" / "README.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    wanted = {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES}
    assert wanted - anchors == set()


def lost(written: Any, read_back: Any, place: str = "") -> list[str]:
    """Name what is not in the one as it was in the other."""
    if isinstance(written, dict) and isinstance(read_back, dict):
        gone = [f"{place}.{name}" for name in written if name not in read_back]
        return gone + [each for name in written.keys() & read_back for each in
                       lost(written[name], read_back[name], f"{place}.{name}")]  # fmt: skip
    if isinstance(written, list) and isinstance(read_back, list) and len(written) == len(read_back):
        pairs = enumerate(zip(written, read_back, strict=True))
        return [each for number, (one, other) in pairs for each in lost(one, other, f"{place}[{number}]")]
    return [] if written == read_back else [place]


def through_grafana(dashboard: dict[str, Any]) -> dict[str, Any]:
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(copy.deepcopy(dashboard)), cls=JSONEncoder))


def test_grafana_s_own_types_know_every_field_of_the_dashboard():
    assert lost(DASHBOARD, through_grafana(DASHBOARD)) == []
    misspelt = copy.deepcopy(DASHBOARD)
    panel = panels(misspelt)[0]
    panel["fieldConfig"]["defaults"]["units"] = panel["fieldConfig"]["defaults"].pop("unit")
    panel["targets"][0]["legendFormatt"] = panel["targets"][0].pop("legendFormat")
    named = {place.rpartition(".")[2] for place in lost(misspelt, through_grafana(misspelt))}
    assert named == {"units", "legendFormatt"}


def test_every_panel_says_what_it_shows():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(DASHBOARD):
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len(panel["description"]) > 20
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [DATASOURCE] * (
            1 + len(panel["targets"])
        )
    assert "datasource" in {variable["name"] for variable in DASHBOARD["templating"]["list"]}


def test_panels_do_not_lie_over_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_grafana_is_given_the_datasource_and_the_dashboard():
    provisioning = WATCH / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    config = yaml.safe_load((WATCH / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "rayclip.yaml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/etc/grafana/dashboards")
