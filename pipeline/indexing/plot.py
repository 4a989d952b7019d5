"""Measured settings of an index in, a picture out: what recall costs in time."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.indexing.tune import Measurement


def draw(curve: Sequence[Measurement], chosen: Measurement, target: float, path: Path) -> None:
    """Draw recall@10 by kind of query against the time of a query: every nprobe tried, in order, and the one chosen."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="ms for a query on one thread", ylabel="recall@10", xscale="log")
    for kind in chosen.recall_at_10:
        axes.plot(
            [point.latency_ms for point in curve],
            [point.recall_at_10[kind] for point in curve],
            marker=".",
            label=f"queries by {kind}",
        )
        axes.plot(chosen.latency_ms, chosen.recall_at_10[kind], marker="o", color="black", fillstyle="none")
    for point in curve if chosen.nprobe else ():
        place = (point.latency_ms, min(point.recall_at_10.values()))
        axes.annotate(str(point.nprobe), place, textcoords="offset points", xytext=(4, -9), fontsize=7)
    axes.axhline(target, color="grey", linewidth=0.8, linestyle="--", label=f"target {target:g}")
    setting = f"nprobe {chosen.nprobe}, of these within {chosen.margin}" if chosen.margin else f"nprobe {chosen.nprobe}"
    axes.set_title(f"chosen, on other queries: {setting}" if chosen.nprobe else "every vector compared")
    axes.legend()
    figure.savefig(path, dpi=110)
