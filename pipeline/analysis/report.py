"""A run's record and what was found in its table in, one HTML page out that needs nothing beside itself.

What all pages have in common, in page.py. Knows nothing of stores.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.analysis import charts
from pipeline.analysis.charts import Chart
from pipeline.analysis.findings import Findings, Picture, Reject
from pipeline.analysis.page import Fact, bars, duration, number, picture_url, rendered, short

NAMES = 20  # of shards, that are named
COLUMNS = 16  # of the history
CONFIG_CHARACTERS = 100_000

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


@dataclass(frozen=True)
class Rejects:
    """One reason's section: how many rows, and some of them with the URL of their thumbnail."""

    reason: str
    rows: int | None
    rows_shown: tuple[tuple[Reject, str | None], ...]


def render(run: Record, findings: Findings) -> str:
    """Write the page of a run, as `dataclasses.asdict` gives it."""
    index = run["index"]
    deviations = [norm - 1 for norm in findings.norms if math.isfinite(norm)]
    history = [_flat(earlier) for earlier in run["history"]]
    return rendered(
        "report.html",
        run=run,
        findings=findings,
        status=STATUSES.get(run["exit_status"], (f"failed, status {run['exit_status']}", "bad")),
        summary=_summary(run),
        source=_source_facts(run["source"]),
        changes=_changes(run["source"]),
        stages=bars(run["stages"], duration),
        rejects=_rejects(run["counts"], findings),
        sizes=charts.bubbles(_sizes(findings.pictures), number, "px"),
        size_facts=_size_facts(findings.pictures),
        lengths=charts.histogram([[one.bytes for one in findings.pictures if one.bytes]], _bytes, log=True),
        formats=bars(dict(Counter(map(_format, findings.pictures)).most_common()), number),
        norms=charts.histogram([deviations], lambda value: f"{value:.2g}"),
        worst_norm=max(map(abs, deviations), default=0.0),
        not_finite=len(findings.norms) - len(deviations),
        scores=charts.histogram(
            [list(filter(math.isfinite, one)) for one in (findings.random_scores, findings.best_scores)],
            lambda value: f"{value:.2g}",
        ),
        index_facts=_index_facts(index) if index else [],
        recall=_recall(index) if index else None,
        config=short(json.dumps(run["config"], indent=1, ensure_ascii=False), CONFIG_CHARACTERS),
        history=history,
        history_columns=list(dict.fromkeys(name for earlier in history for name in earlier))[:COLUMNS],
    )


def _summary(run: Record) -> list[Fact]:
    counts, now, seconds = run["counts"], run["now"], run["seconds"]
    facts = []
    if "rows_in" in counts:
        numbers = [counts.get(name, 0) for name in ("rows_in", "embedded", "rejected")]
        sign = "=" if numbers[0] == numbers[1] + numbers[2] else "≠"
        text = f"{number(numbers[0])} {sign} {number(numbers[1])} embedded + {number(numbers[2])} rejected"
        facts.append(("Rows in", text))
    facts += _known(now, {"rows": "Rows of this run", "reused": "Rows reused"}, number)
    rates = {"images_per_s": "Images/s, mean", "steady_images_per_s": "Images/s, steady"}
    facts += _known(now, rates, lambda value: f"{value:,.1f}")
    facts.append(("Time", duration(seconds)))
    for resource in ("GPU", "CPU"):
        if run["cluster"].get(resource):
            facts.append((f"{resource}-hours", f"{run['cluster'][resource] * seconds / 3600:,.3g}"))
    facts += _known(now, {"bytes_written": "Written"}, _bytes)
    facts += _known(run["cluster"], {"nodes": "Nodes", "GPU": "GPUs", "CPU": "CPUs"}, lambda value: f"{value:g}")
    return facts + _known(run["model"], {"id": "Model", "space": "Space", "d": "Coordinates (d)"}, str)


def _source_facts(source: Record) -> list[Fact]:
    counted = _known(source, {"shards": "Shards", "rows": "Rows"}, number)
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
    return picture_url(reject.thumbnail)


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
    facts += _known(card, {"ntotal": "Vectors"}, number)
    facts += [(f"Recall@10, {kind} queries", f"{value:.4f}") for kind, value in recalls.items()]
    facts += _known(
        card, {"recall_target": "Recall asked for", "latency_ms": "Latency, ms"}, lambda value: f"{value:g}"
    )
    facts += [(f"Queries by {kind}", number(count)) for kind, count in (card.get("queries") or {}).items()]
    facts += _known(card, {"qps": "Queries/s, in a batch"}, number)
    if card.get("bytes"):
        facts.append(("Size", _bytes(sum(card["bytes"].values()))))
    return facts + _known(card, {"build_seconds": "Built in"}, duration)


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


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
