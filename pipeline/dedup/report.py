"""What a run found in, one HTML page out, by which a person chooses the threshold."""

import numpy as np

from pipeline.analysis import charts
from pipeline.analysis.page import Fact, bars, duration, number, picture_url, rendered
from pipeline.dedup.edges import EMBEDDING, PERCEPTUAL, Found
from pipeline.dedup.groups import groups
from pipeline.dedup.plan import Plan
from pipeline.dedup.record import Duplicates
from pipeline.dedup.view import Sheet

MOST_DRAWN = 100_000  # of similarities in a histogram: every so many-th
SHARES = (-1.0, -0.5, 0.0, 0.2, 0.4, 0.6, 0.8)  # of the way from the threshold down to the floor, or up to 1
SIZES = (2, 3, 5, 10, 100)  # groups of so many rows or more are counted
STAGES = {
    EMBEDDING: "Pairs by their vectors",
    PERCEPTUAL: "Pairs by their pictures",
}


def render(card: Duplicates, found: Found, sheets: list[Sheet]) -> str:
    """Write the page of a run."""
    return rendered(
        "duplicates.html",
        card=card,
        facts=_facts(card),
        stages=bars(card.seconds, duration),
        histograms=[
            (STAGES[name], stage.least, charts.histogram([_drawn(found, name, joins=True), _drawn(found, name)], _two))
            for name, stage in found.stages.items()
            if name in STAGES and len(stage.pairs)
        ],
        sizes=SIZES,
        sheets=[(STAGES[sheet.stage], sheet) for sheet in sheets],
        url=picture_url,
    )


def thresholds(plan: Plan, found: Found) -> list[dict[str, float]]:
    """Say what groups there would be at several thresholds of vectors: of how many rows, how large, how many go."""
    if EMBEDDING not in found.stages:
        return []
    chosen, told = plan.config.threshold, []
    for share in SHARES:
        threshold = chosen + share * (plan.config.look_below if share < 0 else 1 - chosen)
        ids, group = groups(found.edges(threshold), plan.config.max_steps)
        sizes = np.bincount(group)
        told.append(
            {
                "threshold": round(threshold, 4),
                "groups": len(sizes),
                "rows": len(ids),
                "dropped": len(ids) - len(sizes),
                "largest": int(sizes.max(initial=0)),
                **{f"of_{least}": int((sizes >= least).sum()) for least in SIZES},
            }
        )
    return told


def _facts(card: Duplicates) -> list[Fact]:
    facts = [
        ("Rows", f"{number(card.rows)} = {number(card.alone)} alone + {number(card.grouped)} in groups"),
        ("Groups", f"{number(card.groups)}, a keeper each"),
        ("Dropped", number(card.dropped)),
        ("Index", card.index),
        *((f"Pairs that join, {stage}", number(count)) for stage, count in card.edges.items()),
        *((name.replace("_", " ").capitalize(), number(count)) for name, count in card.counts.items()),
    ]
    if card.recall is not None:
        share = card.recall["share"]
        said = "no pairs to find" if share is None else f"{share:.4f}"
        asked = f"of {card.recall['pairs']} pairs that an exact search has for {card.recall['rows']} rows"
        facts.append(("Recall of pairs by vectors", f"{said}: {card.recall['found']} {asked}, drawn by seed"))
    return [*facts, ("Time", duration(sum(card.seconds.values())))]


def _drawn(found: Found, name: str, *, joins: bool = False) -> list[float]:
    """Give the similarities of one stage's pairs that join, or of those that do not."""
    stage = found.stages[name]
    values = stage.pairs.similarity[stage.joins == joins]
    drawn: list[float] = np.sort(values)[:: 1 + len(values) // MOST_DRAWN].tolist()
    return drawn


def _two(value: float) -> str:
    return f"{value:.3g}"
