"""Values in, one HTML page out that needs nothing beside itself: what all pages have in common.

No script, no resource of any other file or server: charts are inline SVG, pictures are in the page. Ids, errors and
URLs are other people's bytes: all text is escaped by the template, and what could turn or break text is taken out here.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader

from pipeline.analysis import charts

TEXT_CHARACTERS = 400  # of a stranger's text
# Control characters, halves of surrogate pairs, and what turns the direction of the text around it.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

Fact = tuple[str, str]


@dataclass(frozen=True)
class Bar:
    """A row of a table of bars."""

    label: str
    text: str
    count: float
    percent: float


def rendered(template: str, **values: object) -> str:
    """Fill a template of this package in."""
    environment = Environment(
        loader=PackageLoader("pipeline.analysis"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short, "number": number}
    return UNPRINTABLE.sub("\ufffd", environment.get_template(template).render(canvas=charts, **values))


def bars(counts: Mapping[str, float], text: charts.Label) -> list[Bar]:
    """Draw counts by how they compare with the largest."""
    most = max(counts.values(), default=0) or 1
    return [Bar(name, text(count), count, round(100 * count / most, 2)) for name, count in counts.items()]


def picture_url(jpeg: bytes) -> str:
    """Put a picture into a URL."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def short(text: object, most: int = TEXT_CHARACTERS) -> str:
    """Cut a text where it is too long to be looked at."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}…"


def number(value: float) -> str:
    """Write a number for people."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def duration(seconds: float) -> str:
    """Write seconds for people."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
