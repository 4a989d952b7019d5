"""The commands of `make quickstart`, taken from the Makefile, into another folder."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from jobs.demo.figures import HELD_OUT, caption
from jobs.demo.show import QUESTIONS
from tests.conftest import ROOT


def recipe(target: str) -> list[list[str]]:
    makefile = (ROOT / "Makefile").read_text()
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    return [line.split()[2:] for line in lines.splitlines() if "$(BIN)/python -m" in line]


def test_it_draws_embeds_indexes_and_finds_what_is_asked(
    tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
):
    commands = recipe("quickstart")
    assert [command[0] for command in commands] == ["jobs.demo", "jobs.embed", "jobs.build_index", "jobs.demo.show"]
    config = tmp_path / "demo.toml"
    config.write_text((ROOT / "jobs/configs/demo.toml").read_text().replace("out/demo", str(tmp_path)))
    printed = []
    for command in commands:
        arguments = [part.replace("out/demo", str(tmp_path)).replace("jobs/configs", str(tmp_path)) for part in command]
        done = run_job(*arguments, RAY_ADDRESS="")
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
    assert "rows in 1500 = embedded 1462 + rejected 38" in printed[1]
    assert "recall@10 image 1.0000" in printed[2]
    answers = re.split(r"\n(?=')", printed[3])[1:]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert repr(question) in answer
        wanted = set(question.split()) - {"a", "on", "at", "the"}
        hits = re.findall(r"figure-\d+  (.*)", answer)
        assert len(hits) == 5
        assert all(wanted <= set(hit.split()) for hit in hits), answer
    with Image.open(tmp_path / "hits.png") as sheet:
        assert sheet.height > 600
    assert any(caption(one) in printed[3] for one in HELD_OUT)
