"""What the README says is so: its commands parse, its files exist, its config is the one in the repository."""

import ast
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from jobs.flags import load
from pipeline import config
from pipeline.schema import Reason
from pipeline.searching.query import Search
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "cluster/README.md", "jobs/BENCHMARKS.md")}
MODELS = {
    "jobs.embed": config.EmbedConfig,
    "jobs.build_index": config.IndexConfig,
    "jobs.query": config.QueryConfig,
    "jobs.serve": config.ServeConfig,
    "jobs.backfill": config.BackfillConfig,
    "jobs.plan": config.PlanConfig,
    "jobs.status": config.StatusConfig,
    "jobs.verify": config.VerifyConfig,
    "jobs.vacuum": config.VacuumConfig,
    "jobs.redrive": config.RedriveConfig,
    "jobs.evaluate": config.EvaluateConfig,
    "jobs.dedup": config.DedupConfig,
    "jobs.doctor": config.DoctorConfig,
    "jobs.submit": config.SubmitConfig,
}


def commands() -> list[str]:
    blocks = [block for page in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("command", [line for line in commands() if "python -m jobs." in line])
def test_commands_have_the_flags_they_show(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command[command.index("python -m ") :])[2:]
    on_paper = program == "jobs.plan" and "--cluster" in arguments
    assert load(config.CapacityConfig if on_paper else MODELS[program], arguments, program)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(command: str):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_all_other_commands_are_of_known_programs():
    others = [line for line in commands() if not re.search(r"^make |python -m jobs\.", line)]
    assert {line.split()[0] for line in others} == {"curl", "docker", "duckdb", "helm", "kubectl", "openssl"}


def test_the_worked_example_is_what_the_command_says():
    """Of capacity, in cluster/README.md: every figure there is in what its command prints."""
    from pipeline.upkeep.capacity import capacity
    from pipeline.upkeep.figures import read_figures

    page = PAGES["cluster/README.md"]
    example = page[page.index("**10^9 images**") : page.index("**10^10 images**")]
    flags = {"images": 10**9, "index": {"factory": "IVF262144_HNSW32,SQ8"}}
    found = capacity(config.CapacityConfig(cluster="", **flags), read_figures(str(ROOT / "cluster/capacity.json")))
    embedding, indexing, money = found.embedding, found.indexing, found.money
    assert (embedding.gpu_nodes, embedding.cpu_nodes) == (4, 1)
    said = [
        embedding.decode_cores_per_gpu,
        f"{embedding.images_per_s:,.0f} img/s",
        embedding.hours,
        embedding.gpu_hours,
    ]
    said += [
        f"{embedding.network_gbit:.1f} Gbit/s",
        f"{found.table_bytes / 1e12:.2f} TB",
        f"{found.planning.seconds:.0f} s",
    ]
    said += [
        f"{found.planning.bytes / 1e9:.2f} GB",
        f"{indexing.bytes / 1e12:.2f} TB",
        f"{indexing.vectors_bytes / 1e12:.2f} TB",
    ]
    said += [
        f"{indexing.training_hours} training",
        f"{indexing.filling_hours} filling",
        f"{indexing.merging_hours:.1f} merging",
    ]
    said += [
        f"{money.embedding:.0f} $ embedding",
        f"{money.indexing:.0f} $ indexing",
        f"{money.storage_a_month:.0f} $ a month",
    ]
    assert [figure for figure in said if str(figure) not in example] == []
    breaks = page[page.index("**10^10 images**") :]
    flags = {"images": 10**10, "hours": 168.0, "index": {"factory": "IVF1048576_HNSW32,SQ8"}}
    found = capacity(config.CapacityConfig(cluster="", **flags), read_figures(str(ROOT / "cluster/capacity.json")))
    passed = [limit for limit in found.limits if limit.share > 1]
    assert len(passed) == 5
    assert [limit.what for limit in passed if f"{limit.share:.1f}" not in breaks] == []


def test_every_config_loads():
    for path in (ROOT / "jobs/configs").glob("*.toml"):
        assert load(config.EmbedConfig, ["--config", str(path)], "jobs.embed").store


def test_the_request_shown_is_one_that_is_answered():
    from pipeline.serving.requests import SearchRequest

    (body,) = re.findall(r"-d '(\{.*?\})'", README)
    assert SearchRequest(**json.loads(body)).k == 3


def test_the_notebook_shown_is_one_that_runs():
    """Its calls are bound to what there is; the example notebooks run them."""
    from pipeline.session import Session

    (shown,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(shown)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    verbs = [call for call in calls if isinstance(call.func.value, ast.Name) and call.func.value.id == "db"]
    assert len(verbs) == 4
    for call in verbs:
        names = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(getattr(Session, call.func.attr)).bind(None, *call.args, **names)
    for name in re.findall(r"`(\w+)`", README[README.index("| verb |") : README.index("[`jobs/demo/notebooks`]")]):
        known = [*vars(Session), *vars(Search), "cosine", "embed_text", "vector_mean", "vector_sum"]
        assert name in known, name


def test_the_reasons_listed_are_the_reasons_there_are():
    listed = re.search(r"closed list:\n(.*?)\. A \*unit\*", README, re.DOTALL).group(1)
    assert re.findall(r"`(\w+)`", listed) == [reason.value for reason in Reason]


def test_the_tree_shown_is_the_tree_there_is():
    tree = README[README.index("    pipeline/\n") : README.index("    cluster/  ")]
    named = set()
    for line in tree.splitlines():
        name, _, rest = line.strip().partition(" ")
        words = line.split()
        if name.endswith("/") and line.startswith("      "):
            named |= {f"pipeline/{name}{module}.py" for module in rest.partition(",")[0].split()}
        elif name.endswith(".py"):
            named |= {f"pipeline/{word}" for word in words if word.endswith(".py")}
        elif name == "jobs/":
            named |= {f"jobs/{module}.py" for module in rest.partition(",")[0].split()}
    files = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/*.py")]}
    assert named == {file for file in files if not file.endswith("__init__.py")}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str):
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        assert target.removeprefix("#") in headings or (ROOT / page).parent.joinpath(target).exists(), target


def test_nothing_heavy_is_imported_with_the_package():
    import subprocess
    import sys

    code = (
        "import sys, pipeline; print(*sorted({'ray', 'torch', 'faiss', 'pyarrow', 'PIL', 'duckdb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_lock_has_hashes_and_no_addresses():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index" not in lock.partition("\n")[0]
    entries = [line for line in lock.splitlines() if re.match(r"[A-Za-z]", line)]
    assert len(entries) > 100
    assert all(re.match(r"[\w.\-\[\],]+==[\w.+!]+( ;.*)? \\$", line) for line in entries)
    assert lock.count("--hash=sha256:") > len(entries)


def test_every_module_can_be_imported():
    for path in Path(ROOT / "pipeline").rglob("*.py"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
