"""Numbers in, the geometry of small charts out: where bars, dots and ticks stand, in pixels of a fixed canvas.

Pure; the template draws what it is given. Knows neither what the numbers mean nor what SVG is.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 12.0, 146.0  # of the area between the axes
BINS = 28
TICKS = 6  # on an axis at most: labels of seven characters do not meet
DOT_PX, SMALL_DOT_PX = 11.0, 2.2  # radius of a dot that is all there is, and the least

Label = Callable[[float], str]


@dataclass(frozen=True)
class Tick:
    """A place on an axis."""

    px: float
    label: str


@dataclass(frozen=True)
class Column:
    """One bar of a histogram; ``series`` is whose it is."""

    series: int
    x: float
    y: float
    width: float
    height: float
    count: int
    text: str


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot."""

    x: float
    y: float
    radius: float
    count: int
    text: str
    is_marked: bool = False


@dataclass(frozen=True)
class Chart:
    """What stands on one canvas."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    columns: list[Column]
    dots: list[Dot]
    level: float | None = None  # y of a horizontal line


@dataclass(frozen=True)
class Axis:
    """Values from low to high, on a straight or logarithmic scale, between two pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def px(self, value: float) -> float:
        """Place a value."""
        at, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 2)

    def ticks(self, label: Label) -> list[Tick]:
        """Choose round values between the ends."""
        values = _round_powers(self.low, self.high) if self.log else _round_steps(self.low, self.high)
        return [Tick(self.px(value), label(value)) for value in values]


def axis(values: Iterable[float], start: float, stop: float, *, log: bool = False) -> Axis:
    """Span an axis over some finite values, at least one; a log axis only takes positive ones."""
    low, high = min(values := list(values)), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1))
    return Axis(float(low), float(high), start, stop, log)


def histogram(series: Sequence[Sequence[float]], label: Label, *, log: bool = False) -> Chart | None:
    """Count the values of one or more series into common bins; None where there are none."""
    values = [value for one in series for value in one]
    if not values:
        return None
    across = axis(values, LEFT, RIGHT, log=log)
    ends = (math.log10(across.low), math.log10(across.high)) if log else (across.low, across.high)
    edges = np.linspace(*ends, BINS + 1)
    counts = [np.histogram(np.log10(one) if log else one, edges)[0] for one in series]
    up = Axis(0.0, float(max(one.max() for one in counts)), BOTTOM, TOP)
    shown = 10**edges if log else edges
    columns = []
    for number, one in enumerate(counts):
        for i, (count, (low, high)) in enumerate(zip(one.tolist(), pairwise(shown.tolist()), strict=True)):
            if count:
                x, width = LEFT + i * (RIGHT - LEFT) / BINS, (RIGHT - LEFT) / BINS
                y = up.px(count)
                text = f"{label(low)} to {label(high)}: {count}"
                columns.append(Column(number, round(x, 2), y, round(width, 2), round(BOTTOM - y, 2), count, text))
    return Chart(across.ticks(label), [Tick(TOP, f"{up.high:,.0f}"), Tick(BOTTOM, "0")], columns, [])


def bubbles(points: Iterable[tuple[int, int]], label: Label, unit: str) -> Chart | None:
    """Place positive points on logarithmic axes, equal ones together in a dot whose area is their share."""
    counted = Counter(points)
    if not counted:
        return None
    across = axis((x for x, _ in counted), LEFT + DOT_PX, RIGHT - DOT_PX, log=True)
    up = axis((y for _, y in counted), BOTTOM - DOT_PX, TOP + DOT_PX, log=True)
    total = sum(counted.values())
    dots = [
        Dot(across.px(x), up.px(y), _radius(count / total), count, f"{x} x {y} {unit}: {count}")
        for (x, y), count in counted.most_common()  # the largest first, so that small ones lie above them
    ]
    return Chart(across.ticks(label), up.ticks(label), [], dots)


def curve(
    points: Sequence[tuple[float, float, str, bool]], level: float | None, x_label: Label, y_label: Label
) -> Chart | None:
    """Place (x > 0, y, text, is marked) points; a level is a horizontal line."""
    if not points:
        return None
    xs, ys = [x for x, *_ in points], [y for _, y, *_ in points]
    across = axis(xs, LEFT + DOT_PX, RIGHT - DOT_PX, log=max(xs) > 10 * min(xs))
    up = axis([*ys, *([] if level is None else [level])], BOTTOM - DOT_PX / 2, TOP + DOT_PX / 2)
    dots = [Dot(across.px(x), up.px(y), 6.0 if marked else 4.0, 1, text, marked) for x, y, text, marked in points]
    return Chart(across.ticks(x_label), up.ticks(y_label), [], dots, None if level is None else up.px(level))


def _radius(share: float) -> float:
    return round(max(SMALL_DOT_PX, DOT_PX * math.sqrt(share)), 2)


def _round_steps(low: float, high: float) -> list[float]:
    """Give the multiples of 1, 2 or 5 times a power of ten between two values, at most TICKS of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= TICKS - 1)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _round_powers(low: float, high: float) -> list[float]:
    """Give 1, 2 and 5 times powers of ten between two positive values; only the powers, or other steps, as it suits."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found = [10.0**power * factor for power in powers for factor in (1, 2, 5) if low <= 10.0**power * factor <= high]
    if len(found) > TICKS:
        return [10.0**power for power in powers if low <= 10.0**power <= high]
    return found if len(found) > 2 else _round_steps(low, high)
