"""Small inline SVG charts. Colours are CSS classes, so one drawing serves light, dark and paper.

Every drawing has a title for readers who don't see it, every mark a tooltip. Nothing here knows the
report: values go in, markup comes out, and every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Value = str | int | float
FINE = 64  # spans in a strip


@dataclass(frozen=True)
class Mark:
    """One point of a series; `hollow` marks one that was not accepted."""

    x: float
    y: float | None
    title: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """A line; `css` is the class that colours it."""

    label: str
    css: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Rule:
    """A horizontal reference line; its label stands above it, or `below`."""

    label: str
    y: float
    css: str = "rule"
    below: bool = False


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: what it shows, in one sentence, for readers who don't see it.
        show: value of the y axis to text.
        whole_x: x values are counts; ticks are whole numbers.
        zero: the y axis starts at 0.
    """

    title: str
    series: tuple[Series, ...]
    x_label: str
    show: Callable[[float], str]
    rules: tuple[Rule, ...] = ()
    whole_x: bool = True
    zero: bool = False
    size: tuple[int, int] = (560, 240)
    margin: tuple[int, int, int, int] = field(default=(14, 16, 38, 58))  # top, right, bottom, left


def tag(name: str, *children: Markup | str, **attributes: Value | None) -> Markup:
    """An element; attribute names have ``_`` for ``-``, a trailing ``_`` is dropped, None leaves one out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(children)
    return Markup(f"<{name}{text}>{inner}</{name}>") if children else Markup(f"<{name}{text}/>")


@dataclass(frozen=True)
class _Frame:
    """The plot area of a chart: data to drawing coordinates."""

    chart: Chart
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom edge of the plot area."""
        (width, height), (top, right, bottom, left) = self.chart.size, self.chart.margin
        return left, width - right, top, height - bottom

    def across(self, value: float) -> float:
        left, right, _, _ = self.box
        return left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)

    def up(self, value: float) -> float:
        _, _, top, bottom = self.box
        return bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)


def line_chart(chart: Chart) -> Markup:
    """Draw a chart; an empty string when it has no point at all."""
    points = [(mark.x, mark.y) for series in chart.series for mark in series.marks if mark.y is not None]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points] + [rule.y for rule in chart.rules]
    x = _spread(min(xs), max(xs), 0.0)
    y = _spread(0.0 if chart.zero else min(ys), max(ys), 0.06)
    frame = _Frame(chart, x, y)
    parts = [tag("title", chart.title), *_axes(frame)]
    left, right, _, _ = frame.box
    for rule in chart.rules:
        parts.append(
            tag("line", x1=left, x2=right, y1=frame.up(rule.y), y2=frame.up(rule.y), class_=rule.css)
        )
        shift = 13 if rule.below else -5
        parts.append(_label(rule.label, left + 4, frame.up(rule.y) + shift, "start", "note"))
    parts += [_line(series, frame) for series in chart.series]
    return _root(*chart.size, parts, "chart")


def strip(size: int, kept: Sequence[tuple[int, int]], title: str, css: str = "") -> Markup:
    """One layer's units side by side: filled where they stay, bare where they went.

    Args:
        size: number of units before the cut.
        kept: runs of indices that stay, (first, last) inclusive, ascending.
        title: said to readers who don't see it, and as a tooltip.
        css: further classes.
    """
    parts = [tag("title", title), tag("rect", x=0, y=0, width=size, height=1, class_="gone")]
    for level, spans in _shades(size, kept).items():
        path = "".join(f"M{_number(x)} 0h{_number(width)}v1h-{_number(width)}z" for x, width in spans)
        parts.append(tag("path", d=path, class_="kept", fill_opacity=None if level == 1 else level))
    attributes = {"viewBox": f"0 0 {size} 1", "preserveAspectRatio": "none"}
    return tag("svg", *parts, role="img", class_=f"strip {css}".strip(), **attributes)


def _shades(size: int, kept: Sequence[tuple[int, int]]) -> dict[float, list[tuple[float, float]]]:
    """Opacity -> (x, width) of the spans to fill.

    Up to `FINE` runs are drawn as they are. More would be finer than the screen and make a big file:
    then each of `FINE` bins is filled by the share of its units that stay, in quarters.
    """
    if len(kept) <= FINE:
        return {1.0: [(first, last - first + 1) for first, last in kept]}
    counts = [0.0] * FINE
    for first, last in kept:
        for unit in range(first, last + 1):
            counts[unit * FINE // size] += FINE / size
    spans: dict[float, list[tuple[float, float]]] = {}
    for i, share in enumerate(counts):
        level = min(4, math.ceil(4 * share - 0.5)) / 4
        if level:
            spans.setdefault(level, []).append((i * size / FINE, size / FINE))
    return spans


def ratio_mark(ratio: float, ci95: tuple[float, float] | None, limit: float | None, title: str) -> Markup:
    """A ratio on a line from 0 to the original's 1 (or beyond), with its interval and the budget's limit."""
    width, height, pad = 200, 26, 6
    top = max(1.1, ratio * 1.05, ci95[1] * 1.05 if ci95 else 0.0)

    def at(value: float) -> float:
        return pad + value / top * (width - 2 * pad)

    parts = [tag("title", title), tag("line", x1=at(0), x2=at(top), y1=13, y2=13, class_="grid")]
    parts.append(tag("line", x1=at(1), x2=at(1), y1=3, y2=23, class_="rule"))
    if limit is not None:
        parts.append(tag("line", x1=at(limit), x2=at(limit), y1=5, y2=21, class_="limit"))
    parts.append(tag("line", x1=at(0), x2=at(ratio), y1=13, y2=13, class_="stem"))
    if ci95 is not None:
        parts.append(tag("line", x1=at(ci95[0]), x2=at(ci95[1]), y1=13, y2=13, class_="whisker"))
    parts.append(tag("circle", cx=at(ratio), cy=13, r=4.5, class_="dot"))
    return _root(width, height, parts, "ratio")


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values between low and high, at most `most` steps apart."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        if (high - low) / (step * factor) <= most:
            step *= factor
            break
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    found = [round((first + i) * step, 12) for i in range(most + 2)]
    return [value for value in found if value <= high + step * 1e-9]


def _axes(frame: _Frame) -> list[Markup]:
    """Grid lines with their values, the x axis with its name."""
    left, right, _, bottom = frame.box
    parts = []
    for value in ticks(*frame.y, 6):
        at = frame.up(value)
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(_label(frame.chart.show(value), left - 8, at + 4, "end"))
    for value in ticks(*frame.x, 9, whole=frame.chart.whole_x):
        parts.append(_label(f"{value:g}", frame.across(value), bottom + 17, "middle"))
    parts.append(_label(frame.chart.x_label, (left + right) / 2, frame.chart.size[1] - 4, "middle", "axis"))
    return parts


def _line(series: Series, frame: _Frame) -> Markup:
    """A line, broken where a value is missing, and a dot with a tooltip for each mark that has a title."""
    dots, path, command = [], [], "M"
    for mark in series.marks:
        if mark.y is None:
            command = "M"
            continue
        x, y = frame.across(mark.x), frame.up(mark.y)
        path.append(f"{command}{_number(x)} {_number(y)}")
        command = "L"
        if mark.title:
            css = "dot hollow" if mark.hollow else "dot"
            dots.append(tag("circle", tag("title", mark.title), cx=x, cy=y, r=4, class_=css))
    return tag("g", tag("path", d=" ".join(path), class_="line"), *dots, class_=series.css)


def _root(width: int, height: int, parts: Sequence[Markup], css: str) -> Markup:
    attributes = {"viewBox": f"0 0 {width} {height}"}
    return tag("svg", *parts, role="img", class_=css, **attributes)


def _label(text: str, x: float, y: float, anchor: str, css: str = "tick") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=css)


def _spread(low: float, high: float, margin: float) -> tuple[float, float]:
    """Widen a range by a share of itself; a single value gets room on both sides."""
    if high - low < 1e-12:
        room = abs(high) * 0.05 or 0.5
        return low - room, high + room
    extra = (high - low) * margin
    return low - extra if low else low, high + extra


def _number(value: Value) -> str:
    """Short coordinates: two decimals are finer than any screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


__all__ = ["Chart", "Mark", "Rule", "Series", "line_chart", "ratio_mark", "strip", "tag", "ticks"]
