import base64
import io
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from pipeline.analysis import charts
from pipeline.analysis.findings import Findings, Picture, Reject, find
from pipeline.analysis.report import render
from pipeline.indexing.publish import read_card, read_current
from pipeline.runs import Run
from pipeline.store import Store
from pipeline.table import find_table, read_receipts, read_record, table_folder

EMPTY = Run(id="r1", job="embed", started="2026-11-21 10:00", config={}, versions={}, git_revision=None)
VOID = {"meta", "img", "br", "link", "hr", "input"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x00\x1b[2J\u202e\udcff"


class Page(HTMLParser):
    """Every element with its attributes and its place, and the text of all; tags must close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []  # with the ids and classes above it
        self.above: list[tuple[str, str]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.above == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given, tuple(name for _, name in self.above)))
        if tag not in VOID:
            self.above.append((tag, given.get("id") or given.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(name for _, name in self.above)))

    def handle_endtag(self, tag: str) -> None:
        assert self.above.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.above:
            self.words.setdefault(name, []).append(data)

    def text(self, name: str) -> str:
        return " ".join(" ".join(self.words.get(name, [])).split())

    def of(self, tag: str, inside: str) -> list[dict[str, str]]:
        return [given for name, given, above in self.elements if name == tag and inside in above]

    def total(self, tag: str, inside: str) -> float:
        return sum(float(given["data-count"]) for given in self.of(tag, inside))


def page_of(run: Run, findings: Findings | None = None) -> Page:
    html = render(asdict(run), findings or Findings())
    html.encode()
    return Page(html)


@pytest.fixture(scope="module")
def demo(demo_store: str) -> tuple[Run, Findings]:
    """A run's record of the demo's table, as its own files give it, and what is found there."""
    store = Store(demo_store)
    table = find_table(store, None)
    record, receipts = read_record(store, table), read_receipts(store, table_folder(table)).values()
    reasons = sum((Counter(receipt.reasons) for receipt in receipts), Counter())
    counts = {name: sum(getattr(one, name) for one in receipts) for name in ("rows_in", "embedded", "rejected")}
    run = replace(
        EMPTY,
        table=table,
        config=store.read_json(f"{table_folder(table)}/config.json"),
        versions={"ray": "2.60.0"},
        git_revision="0123abc",
        seconds=7200.0,
        exit_status=0,
        cluster={"nodes": 2, "CPU": 16.0, "GPU": 2.0},
        model={"id": record.model_id, "space": record.space, "d": record.d, "sha256": record.model_sha256},
        source={"shards": 3, "rows": 300, "bytes": 1_500_000, "new": ["s3://b/new.parquet"], "rewritten": [],
                "removed": 2, "unreadable": {"s3://b/broken.parquet": "no magic bytes"}},
        counts={**counts, "reasons": dict(reasons)},
        now={"rows": 300, "reused": 0, "images_per_s": 41.5, "steady_images_per_s": 88.25},
        stages={"survey": 1.0, "embed": 60.0, "index": 30.0},
        index=asdict(read_card(store, table, read_current(store, table))),
        history=[{"id": "r0", "exit_status": 3, "counts": {"embedded": 7}}, {"id": "r-1", "seconds": 1.25}],
    )  # fmt: skip
    return run, find(store, table, asdict(run))


def with_curve(run: Run) -> Run:
    recalls = {1: 0.61, 2: 0.8, 4: 0.93, 8: 0.97}
    curve = [
        {"nprobe": n, "recall_at_10": {"image": 1.0, "text": r}, "latency_ms": 0.1 * n, "qps": 1e4 / n}
        for n, r in recalls.items()
    ]
    return replace(
        run, index={**run.index, "nprobe": 8, "recall_at_10": curve[-1]["recall_at_10"], "recall_curve": curve}
    )


def test_counts_and_costs_are_the_runs_own(demo: tuple[Run, Findings]):
    run, found = demo
    page = page_of(run, found)
    counts = run.counts
    assert f"{counts['rows_in']} = {counts['embedded']} embedded + {counts['rejected']} rejected" in page.text(
        "summary"
    )
    for fact in ("GPU-hours 4 ", "CPU-hours 32 ", "mean 41.5 ", "steady 88.2 ", "Time 2 h 0 min "):
        assert fact in page.text("summary")
    rows = {given["data-reason"]: int(given["data-rows"]) for given in page.of("section", "rejects")}
    assert rows == counts["reasons"]
    assert "Space" in page.text("summary")
    for name, digest in run.model["sha256"].items():
        assert f"{name} {digest}" in page.text("provenance")
    assert run.git_revision in page.text("provenance")
    assert "New shards: 1 s3://b/new.parquet" in page.text("source")
    assert "Removed shards: 2" in page.text("source")
    assert "s3://b/broken.parquet: no magic bytes" in page.text("source")
    assert "counts embedded seconds r0 3 7 r-1 1.25" in page.text("history")


def test_counts_that_do_not_close_are_not_called_equal(demo: tuple[Run, Findings]):
    run = replace(demo[0], counts={"rows_in": 10, "embedded": 8, "rejected": 1})
    assert "10 ≠ 8 embedded + 1 rejected" in page_of(run).text("summary")


def test_bars_and_dots_add_up_to_what_was_drawn(demo: tuple[Run, Findings]):
    run, found = demo
    page = page_of(run, found)
    seen = [one for one in found.pictures if one.format]
    assert page.total("circle", "sizes") == len(seen) > 100
    assert page.total("rect", "bars formats") == len(found.pictures)
    assert page.total("rect", "lengths") == sum(1 for one in found.pictures if one.bytes)
    assert page.total("rect", "norms") == len(found.norms)
    for series, scores in (("first", found.random_scores), ("second", found.best_scores)):
        bars = [given for given in page.of("rect", "scores overlaid") if given.get("class") == series]
        assert sum(int(given.get("data-count", 0)) for given in bars) == len(scores)
    assert page.total("rect", "bars stages") == sum(run.stages.values())


def test_everything_drawn_is_on_its_canvas(demo: tuple[Run, Findings]):
    run, found = demo
    page = page_of(with_curve(run), found)
    for figure in ("sizes", "lengths", "norms", "scores overlaid", "recall"):
        for given in page.of("rect", figure):
            if "x" in given:
                x, y, width, height = (float(given[name]) for name in ("x", "y", "width", "height"))
                assert charts.LEFT <= x < x + width <= charts.RIGHT + 0.1
                assert charts.TOP <= y < y + height <= charts.BOTTOM + 0.1
        for given in page.of("circle", figure):
            x, y, radius = (float(given[name]) for name in ("cx", "cy", "r"))
            assert charts.LEFT <= x - radius + 0.1 < x + radius <= charts.RIGHT + 0.1
            assert charts.TOP <= y - radius + 0.6 < y + radius <= charts.BOTTOM + 0.6


def test_recall_is_drawn_against_latency_and_the_setting_in_use_is_marked(demo: tuple[Run, Findings]):
    page = page_of(with_curve(demo[0]))
    dots = page.of("circle", "recall")
    assert [given["class"] for given in dots] == ["dot", "dot", "dot", "marked"]
    assert sorted(dots, key=lambda given: float(given["cx"])) == dots  # slower to the right
    assert sorted(dots, key=lambda given: -float(given["cy"])) == dots  # better further up
    [level] = [given["d"] for given in page.of("path", "recall") if given["class"] == "level"]
    asked = float(re.match(r"M46.0 ([\d.]+)H", level)[1])
    assert float(dots[3]["cy"]) < asked < float(dots[2]["cy"])
    assert "8 (in use) 1.0 0.97" in page.text("index")


def test_every_reason_has_a_picture_that_decodes_or_says_why_not(demo: tuple[Run, Findings]):
    run, found = demo
    written = io.BytesIO()
    Image.new("RGB", (112, 112), "blue").save(written, "JPEG")
    row = Reject("row-3", "s3://b/s.parquet", 3, "Left out image at row 3", thumbnail=written.getvalue())
    page = page_of(
        replace(run, counts={**run.counts, "reasons": {**run.counts["reasons"], "too_slow": 1}}),
        replace(found, rejects={**found.rejects, "duplicate_key": (row,)}),
    )
    reasons = [given["data-reason"] for given in page.of("section", "rejects")]
    assert set(reasons) == {"null", "truncated", "not_an_image", "too_slow", "duplicate_key"}
    [image] = page.of("img", "rejects")
    kind, _, content = image["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content, validate=True))).convert("RGB").getpixel((9, 9))[2] > 250
    shown = sum(len(rejects) for rejects in found.rejects.values())
    assert len(page.of("p", "reject")) == 4 * shown + 3
    assert page.text("rejects").count("No picture: ") == shown
    assert "too_slow: 1 row None of these rejects could be read for this page." in page.text("rejects")


def test_the_page_asks_for_nothing_and_runs_nothing(demo: tuple[Run, Findings]):
    run, found = demo
    html = render(asdict(run), found)
    page = Page(html)
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "foreignObject", "use"}
    for _, given, _ in page.elements:
        assert not {name for name in given if name.startswith("on")}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "style"):
            assert given.get(name, "data:image/").startswith("data:image/")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_other_peoples_bytes_stay_text_wherever_they_stand(demo: tuple[Run, Findings]):
    run, found = demo
    named = {HOSTILE: HOSTILE}
    reject = Reject(HOSTILE, HOSTILE, 1, HOSTILE, None, HOSTILE)
    run = replace(
        run, id=HOSTILE, job=HOSTILE, started=HOSTILE, config=named, versions=named, git_revision=HOSTILE,
        table=HOSTILE, exit_status=3, message=HOSTILE, cluster={HOSTILE: 1.0}, stages={HOSTILE: 1.0},
        history=[named, {"x": named}],
        model={"id": HOSTILE, "space": HOSTILE, "d": 1, "sha256": named},
        source={"new": [HOSTILE], "removed": [HOSTILE], "unreadable": named},
        counts={"rows_in": 1, "embedded": 0, "rejected": 1, "reasons": {HOSTILE: 1}},
        index={**run.index, "factory": HOSTILE, "version": HOSTILE, "recall_at_10": {HOSTILE: 1.0}},
    )  # fmt: skip
    plain = page_of(replace(run, history=[{}, {}]))
    html = render(
        asdict(run),
        replace(found, rejects={HOSTILE: (reject,)}, problems=(HOSTILE,), pictures=(Picture(1, HOSTILE, 1, 1),)),
    )
    html.encode()
    page = Page(html)
    assert {tag for tag, _, _ in page.elements} <= {tag for tag, _, _ in plain.elements} | {"article", "figcaption"} | {
        "circle", "td", "th", "rect", "title", "figure", "text", "ul", "li"
    }  # fmt: skip
    assert not any(name.startswith("on") for _, given, _ in page.elements for name in given)
    assert page.of("img", "rejects") == []
    assert html.count("&lt;script&gt;alert(1)") >= 25
    assert "<script" not in html
    assert "49" not in page.text("message")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", html)


def test_texts_without_end_are_cut(demo: tuple[Run, Findings]):
    long = "x" * 1_000_000
    run = replace(demo[0], message=long, config={"a": long}, source={"new": [long] * 1000}, history=[{"id": long}])
    found = Findings(rejects={"null": (Reject(long, long, 1, long, None, long),)}, problems=(long,) * 1000)
    html = render(asdict(run), found)
    assert len(html) < 200_000
    assert "New shards: 1,000" in Page(html).text("source")
    assert "and 980 more" in Page(html).text("source")


@pytest.mark.parametrize(
    ("status", "badge", "look"),
    [(0, "complete", "good"), (3, "incomplete", "warn"), (None, "killed", "bad"), (1, "failed", "bad"),
     (2, "refused", "bad"), (4, "table in use", "warn"), (130, "interrupted", "warn"),
     (77, "failed, status 77", "bad")],
)  # fmt: skip
def test_how_it_ended_is_a_badge(status: int | None, badge: str, look: str):
    page = page_of(replace(EMPTY, exit_status=status, message="units are missing" if status else None))
    assert badge in page.text("status")
    [given] = [given for tag, given, _ in page.elements if given.get("id") == "status"]
    assert given["class"] == f"badge {look}"
    assert ("units are missing" in page.text("message")) is bool(status)


def test_a_run_that_found_nothing_out_says_so_in_every_section():
    page = page_of(EMPTY)
    for section, sentence in {
        "source": "recorded nothing of a source",
        "stages": "No stage was begun",
        "rejects": "Rejects were not counted",
        "pictures": "No images could be drawn",
        "vectors": "no vectors that could be read",
        "index": "No index is published",
        "history": "the first run known",
    }.items():
        assert sentence in page.text(section)
    closed = replace(EMPTY, counts={"rows_in": 1, "embedded": 1, "rejected": 0, "reasons": {}})
    assert "No row was rejected" in page_of(closed).text("rejects")
    assert page.of("circle", "charts") == page.of("rect", "charts") == []


@pytest.mark.parametrize("n", [1, 2])
def test_a_table_of_one_or_two_rows_has_a_page(n: int):
    found = Findings(
        pictures=(Picture(5, "PNG", 1, 1),) * n, norms=(1.0,) * n, random_scores=(1.0,) * (n - 1),
        best_scores=(1.0,) * (n - 1),
    )  # fmt: skip
    page = page_of(EMPTY, found)
    assert page.total("circle", "sizes") == page.total("rect", "norms") == page.total("rect", "lengths") == n


def test_vectors_that_are_not_finite_are_counted_and_not_drawn():
    page = page_of(
        EMPTY, Findings(norms=(1.0, math.nan, math.inf), random_scores=(math.nan,), best_scores=(-math.inf,))
    )
    assert "2 of them are not finite" in page.text("vectors")
    assert page.total("rect", "norms") == 1


def test_ticks_are_round_few_and_between_the_ends():
    for low, high in [(0, 1), (-7e-8, 1e-7), (0.93, 1.0), (64, 199), (39, 3000), (1, 1e9), (5, 5.001)]:
        for log in (False, True) if low > 0 else (False,):
            ticks = charts.axis([low, high], 0.0, 100.0, log=log).ticks(str)
            assert 1 <= len(ticks) <= (10 if log else charts.TICKS)
            assert all(-0.01 <= tick.px <= 100.01 for tick in ticks)
            assert [tick.px for tick in ticks] == sorted({tick.px for tick in ticks})


def test_no_value_falls_out_of_a_histogram():
    for values in ([1e-9, 1.0], [3.0] * 7, [-1.0, 0.0, 1.0], [0.1 * i for i in range(100)]):
        chart = charts.histogram([values], str, log=min(values) > 0)
        assert sum(column.count for column in chart.columns) == len(values)
    assert charts.histogram([[], []], str) is None
