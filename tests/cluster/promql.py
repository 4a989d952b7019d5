"""What a PromQL expression asks for: the metrics in it, and the labels that each of them must have.

No parser: promtool is that, and is asked first (test_watch.py). Of an expression that parses, every name is known by
what stands before and after it: https://prometheus.io/docs/prometheus/latest/querying/basics/.
"""

import re
from dataclasses import dataclass, field

TOKENS = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+|[a-z]+(?:\d+[a-z]+)*)?)
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<mark>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],@:])""",
    re.VERBOSE,
)
OPERATORS = {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}
GROUPINGS = {"by", "on", "ignoring", "group_left", "group_right"}


@dataclass
class Selector:
    """A metric, and what is asked of it."""

    metric: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)  # label, operator, value
    labels: set[str] = field(default_factory=set)  # that it is grouped or joined by


@dataclass
class Query:
    """All that an expression asks for."""

    selectors: list[Selector]
    kept: set[str]  # labels that some grouping keeps: a legend or a message may name them


def read(expression: str) -> Query:
    """Find the selectors of an expression that parses."""
    tokens = _tokens(expression)
    query = Query([], set())
    groups: list[tuple[int, set[str]]] = []  # of the parentheses that are open: how deep, and by what they group
    joined: set[str] = set()
    depth, place, waiting = 0, 0, set()
    while place < len(tokens):
        kind, text = tokens[place]
        if kind == "name" and text in GROUPINGS:
            names, place = _names(tokens, place + 1)
            if text == "by":
                waiting = names
                query.kept |= names
            else:
                joined |= names
            continue
        if kind == "name" and text == "without":
            raise ValueError(f"{expression}: wanted 'by', which says what is kept")
        is_called = tokens[place + 1 : place + 2] in ([("mark", "(")], [("name", "by")])
        if kind == "name" and text.lower() not in OPERATORS and not is_called:
            selector = Selector(text, labels=set().union(*(names for _, names in groups)))
            place = _matchers(tokens, place + 1, selector)
            query.selectors.append(selector)
            continue
        if text == "{":
            raise ValueError(f"{expression}: a selector without a metric's name")
        if text == "(":
            depth += 1
            groups.append((depth, waiting))
            waiting = set()
        elif text == ")":
            depth -= 1
            groups.pop()
        place += 1
    for selector in query.selectors:
        selector.labels |= joined
    return query


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, place = [], 0
    while place < len(expression):
        match = TOKENS.match(expression, place)
        if match is None:
            raise ValueError(f"{expression}: cannot be read at {expression[place:]!r}")
        if match.lastgroup != "space":
            found.append((match.lastgroup or "", match[0]))
        place = match.end()
    return [*found, ("end", "")]


def _names(tokens: list[tuple[str, str]], place: int) -> tuple[set[str], int]:
    """Read names in parentheses; group_left may have none."""
    if tokens[place] != ("mark", "("):
        return set(), place
    end = tokens.index(("mark", ")"), place)
    return {text for kind, text in tokens[place:end] if kind == "name"}, end + 1


def _matchers(tokens: list[tuple[str, str]], place: int, selector: Selector) -> int:
    if tokens[place] != ("mark", "{"):
        return place
    place += 1
    while tokens[place] != ("mark", "}"):
        if tokens[place] == ("mark", ","):
            place += 1
            continue
        (_, label), (_, operator), (_, value) = tokens[place : place + 3]
        selector.matchers.append((label, operator, value[1:-1]))
        place += 3
    return place + 1
