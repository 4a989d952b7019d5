"""A run's record and what was found in its table in, one HTML page out that needs nothing beside itself.

No script, no resource of any other file or server: charts are inline SVG, thumbnails are in the page. Ids, errors and
URLs are other people's bytes: all text is escaped by the template, and what could turn or break text is taken out here.
Knows nothing of stores.
"""

import base64
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

from pipeline.analysis import charts
from pipeline.analysis.charts import Chart
from pipeline.analysis.findings import Findings, Picture, Reject

NAMES = 20  # of shards, that are named
COLUMNS = 16  # of the history
TEXT_CHARACTERS = 400  # of a stranger's text
CONFIG_CHARACTERS = 100_000
# Control characters, halves of surrogate pairs, and what turns the direction of the text around it.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

STATUSES = {
    None: ("killed, or still running", "bad"),
    0: ("complete", "good"),
    1: ("failed", "bad"),
    2: ("refused: config or input", "bad"),
    3: ("incomplete", "warn"),
    4: ("refused: table in use", "warn"),
    130: ("interrupted", "warn"),
}

Record = dict[str, Any]  # run.json, or a part of it: every JSON type
Fact = tuple[str, str]


@dataclass(frozen=True)
class Bar:
    """A row of a table of bars."""

    label: str
    text: str
    count: float
    percent: float


@dataclass(frozen=True)
class Rejects:
    """One reason's section: how many rows, and some of them with the URL of their thumbnail."""

    reason: str
    rows: int | None
    rows_shown: tuple[tuple[Reject, str | None], ...]


def render(run: Record, findings: Findings) -> str:
    """Write the page of a run, as `dataclasses.asdict` gives it."""
    environment = Environment(
        loader=PackageLoader("pipeline.analysis"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": _short, "number": _number}
    index = run["index"]
    deviations = [norm - 1 for norm in findings.norms if math.isfinite(norm)]
    history = [_flat(earlier) for earlier in run["history"]]
    page = environment.get_template("report.html").render(
        run=run,
        findings=findings,
        status=STATUSES.get(run["exit_status"], (f"failed, status {run['exit_status']}", "bad")),
        summary=_summary(run),
        source=_source_facts(run["source"]),
        changes=_changes(run["source"]),
        stages=_bars(run["stages"], _duration),
        rejects=_rejects(run["counts"], findings),
        sizes=charts.bubbles(_sizes(findings.pictures), _number, "px"),
        size_facts=_size_facts(findings.pictures),
        lengths=charts.histogram([[one.bytes for one in findings.pictures if one.bytes]], _bytes, log=True),
        formats=_bars(dict(Counter(map(_format, findings.pictures)).most_common()), _number),
        norms=charts.histogram([deviations], lambda value: f"{value:.2g}"),
        worst_norm=max(map(abs, deviations), default=0.0),
        not_finite=len(findings.norms) - len(deviations),
        scores=charts.histogram(
            [list(filter(math.isfinite, one)) for one in (findings.random_scores, findings.best_scores)],
            lambda value: f"{value:.2g}",
        ),
        index_facts=_index_facts(index) if index else [],
        recall=_recall(index) if index else None,
        config=_short(json.dumps(run["config"], indent=1, ensure_ascii=False), CONFIG_CHARACTERS),
        history=history,
        history_columns=list(dict.fromkeys(name for earlier in history for name in earlier))[:COLUMNS],
        canvas=charts,
    )
    return UNPRINTABLE.sub("\ufffd", page)


def _summary(run: Record) -> list[Fact]:
    counts, now, seconds = run["counts"], run["now"], run["seconds"]
    facts = []
    if "rows_in" in counts:
        numbers = [counts.get(name, 0) for name in ("rows_in", "embedded", "rejected")]
        sign = "=" if numbers[0] == numbers[1] + numbers[2] else "≠"
        text = f"{_number(numbers[0])} {sign} {_number(numbers[1])} embedded + {_number(numbers[2])} rejected"
        facts.append(("Rows in", text))
    facts += _known(now, {"rows": "Rows of this run", "reused": "Rows reused"}, _number)
    rates = {"images_per_s": "Images/s, mean", "steady_images_per_s": "Images/s, steady"}
    facts += _known(now, rates, lambda value: f"{value:,.1f}")
    facts.append(("Time", _duration(seconds)))
    for resource in ("GPU", "CPU"):
        if run["cluster"].get(resource):
            facts.append((f"{resource}-hours", f"{run['cluster'][resource] * seconds / 3600:,.3g}"))
    facts += _known(now, {"bytes_written": "Written"}, _bytes)
    facts += _known(run["cluster"], {"nodes": "Nodes", "GPU": "GPUs", "CPU": "CPUs"}, lambda value: f"{value:g}")
    return facts + _known(run["model"], {"id": "Model", "space": "Space", "d": "Coordinates (d)"}, str)


def _source_facts(source: Record) -> list[Fact]:
    counted = _known(source, {"shards": "Shards", "rows": "Rows"}, _number)
    return counted + _known(source, {"bytes": "Size"}, _bytes)


def _changes(source: Record) -> list[tuple[str, int, list[str]]]:
    """Give what changed, how many shards, and the names of the first of them where they are known."""
    found: list[tuple[str, int, list[str]]] = []
    for what in ("new", "rewritten", "removed", "unreadable"):
        shards = source.get(what) or []
        if isinstance(shards, int):
            found.append((what, shards, []))
            continue
        named = shards.items() if isinstance(shards, Mapping) else ((shard, None) for shard in shards)
        texts = [str(shard) if why is None else f"{shard}: {why}" for shard, why in named]
        found.append((what, len(texts), texts[:NAMES]))
    return found


def _rejects(counts: Record, findings: Findings) -> list[Rejects]:
    """Put the most frequent reason first."""
    reasons: dict[str, int] = counts.get("reasons") or {}
    names = sorted({*reasons, *findings.rejects}, key=lambda reason: (-reasons.get(reason, 0), reason))
    return [
        Rejects(reason, reasons.get(reason), tuple((one, _url(one)) for one in findings.rejects.get(reason, ())))
        for reason in names
    ]


def _url(reject: Reject) -> str | None:
    if reject.thumbnail is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(reject.thumbnail).decode()


def _sizes(pictures: Iterable[Picture]) -> list[tuple[int, int]]:
    return [(one.width, one.height) for one in pictures if one.format]


def _size_facts(pictures: Iterable[Picture]) -> list[Fact]:
    sizes = _sizes(pictures)
    if not sizes:
        return []
    width, height = (statistics.median_low(edges) for edges in zip(*sizes, strict=True))
    megapixels = statistics.median(w * h for w, h in sizes) / 1e6
    common = ", ".join(f"{w} x {h} ({count})" for (w, h), count in Counter(sizes).most_common(3))
    return [
        ("Median", f"{width} px wide, {height} px high, {megapixels:.2g} megapixels"),
        ("Most frequent", f"{common} px"),
        ("Most extreme", "{} x {} px to {} x {} px".format(*min(sizes, key=_area), *max(sizes, key=_area))),
    ]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _format(picture: Picture) -> str:
    return picture.format or ("no bytes" if picture.bytes is None else "none that is read")


def _index_facts(card: Record) -> list[Fact]:
    recalls = card.get("recall_at_10") or {}
    facts = _known(card, {"version": "Version", "factory": "Factory", "nprobe": "nprobe"}, str)
    facts += _known(card, {"ntotal": "Vectors"}, _number)
    facts += [(f"Recall@10, {kind} queries", f"{value:.4f}") for kind, value in recalls.items()]
    facts += _known(
        card, {"recall_target": "Recall asked for", "latency_ms": "Latency, ms"}, lambda value: f"{value:g}"
    )
    facts += [(f"Queries by {kind}", _number(count)) for kind, count in (card.get("queries") or {}).items()]
    facts += _known(card, {"qps": "Queries/s, in a batch"}, _number)
    if card.get("bytes"):
        facts.append(("Size", _bytes(sum(card["bytes"].values()))))
    return facts + _known(card, {"build_seconds": "Built in"}, _duration)


def _recall(card: Record) -> Chart | None:
    points = [
        (
            max(1e-3, point["latency_ms"]),  # as measured, to three digits; the axis may be logarithmic
            min(point["recall_at_10"].values()),
            "exact" if point.get("nprobe") is None else f"nprobe {point['nprobe']}",
            point.get("nprobe") == card.get("nprobe"),
        )
        for point in card.get("recall_curve") or []
    ]
    return charts.curve(points, card.get("recall_target"), lambda value: f"{value:g}", lambda value: f"{value:g}")


def _bars(counts: Mapping[str, float], text: charts.Label) -> list[Bar]:
    most = max(counts.values(), default=0) or 1
    return [Bar(name, text(count), count, round(100 * count / most, 2)) for name, count in counts.items()]


def _flat(earlier: Record) -> dict[str, str]:
    """Put what an earlier run says on one level, as text."""
    flat: dict[str, str] = {}
    for name, value in earlier.items():
        if isinstance(value, Mapping):
            flat |= {f"{name} {inner}": str(it) for inner, it in value.items() if isinstance(it, str | int | float)}
        else:
            flat[name] = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return flat


def _known(values: Record, labels: dict[str, str], text: Any) -> list[Fact]:  # a function of the JSON type at hand
    return [(label, text(values[name])) for name, label in labels.items() if values.get(name) is not None]


def _short(text: object, most: int = TEXT_CHARACTERS) -> str:
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}…"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
