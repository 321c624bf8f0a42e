"""Small plots as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

from mindvideo.report.trace import Source
from mindvideo.report.wording import write, write_number

WIDTH = 340
LETTER = 6.2
"""Mean width of a letter; longer labels are squeezed."""
WAY = (-0.25, 1.25)
"""Ends of the axis from the shuffled control (0) to the caption's ceiling (1)."""
WAY_TICKS = {0.0: "shuffled", 0.5: "50 %", 1.0: "caption"}


@dataclass(frozen=True)
class Dot:
    """A row of a dot plot; ``kind`` is its style, ``mark`` a value to compare with."""

    label: str
    value: float | None
    interval: Sequence[float | None] | None = None
    kind: str = "floor"
    source: Source | None = None
    mark: float | None = None
    form: str = "number"

    @classmethod
    def at(cls, label: str, source: Source, interval: Any = None, kind: str = "floor", **more: Any) -> Dot:
        """The number that lies at ``source``."""
        return cls(label, source.value, interval, kind, source, **more)

    @property
    def known_interval(self) -> tuple[float, float] | None:
        """The interval where both its ends are known."""
        low, high = self.interval or (None, None)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Strip:
    """A row of dots, by name and kind, a tick at ``middle``, words at the right."""

    label: str
    values: Mapping[str, tuple[float, str]]
    middle: float | None
    text: Markup


@dataclass(frozen=True)
class Curve:
    """One line of a curve plot: points (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = "train"


@dataclass
class _Canvas:
    """Parts of a picture with a horizontal axis; values outside are drawn at its ends."""

    ticks: Sequence[float]
    left: float
    right: float
    parts: list[str] = field(default_factory=list)

    def place(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.left + (self.right - self.left) * (min(max(value, low), high) - low) / (high - low)

    def text(self, x: float, y: float, text: str, style: str, anchor: str = "start", more: str = "") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def dot(self, value: float, y: float, kind: str, title: str = "", r: float = 4.5) -> None:
        """A circle, or a triangle that points to a value outside the axis."""
        x = self.place(value)
        inner = f"<title>{escape(title)}</title>" if title else ""
        side = (value > self.ticks[-1]) - (value < self.ticks[0])
        if side:
            points = f"{x + side * r:.1f},{y:.1f} {x - side * r:.1f},{y - r:.1f} {x - side * r:.1f},{y + r:.1f}"
            self.parts.append(f'<polygon points="{points}" class="dot {kind}">{inner}</polygon>')
        else:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" class="dot {kind}">{inner}</circle>')

    def grid(self, ticks: Mapping[float, str], top: float, bottom: float) -> None:
        for tick, name in ticks.items():
            self.line(self.place(tick), top, self.place(tick), bottom, "grid")
            self.text(self.place(tick), bottom + 15, name, "tick", "middle")

    def svg(self, height: float, title: str) -> Markup:
        body = "".join(self.parts)
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" class="plot"><title>{escape(title)}</title>{body}</svg>'
        )


def draw_dots(
    title: str,
    dots: Sequence[Dot],
    chance: float | None = None,
    label_width: float = 132.0,
    axis: Mapping[float, str] | None = None,
) -> Markup:
    """A row for each known value on one axis, intervals as bars, chance as a dashed line.

    ``title`` is read out, with every value, instead of the picture. Labels have ``label_width`` of the
    plot's 340; ``axis`` names ticks on the axis of `WAY`, else the axis covers the values.
    """
    dots = [dot for dot in dots if dot.value is not None]
    if not dots:
        return Markup("")
    values = [end for dot in dots for end in (dot.value, *(dot.known_interval or ()), dot.mark)] + [chance]
    ticks = WAY if axis else find_ticks([value for value in values if value is not None])
    canvas = _Canvas(ticks, label_width, WIDTH - 44.0)
    top, row = 8.0, 21.0
    bottom = top + row * len(dots)
    canvas.grid(axis or {tick: write_tick(tick) for tick in ticks}, top, bottom)
    if chance is not None:
        canvas.line(canvas.place(chance), top - 4, canvas.place(chance), bottom, "chance")
    for i, dot in enumerate(dots):
        y, value = top + row * (i + 0.5), dot.value or 0.0
        room = label_width - 14
        squeeze = f' textLength="{room:.0f}" lengthAdjust="spacingAndGlyphs"' if LETTER * len(dot.label) > room else ""
        canvas.text(label_width - 10, y + 4, dot.label, f"label {dot.kind}", "end", squeeze)
        if interval := dot.known_interval:
            canvas.line(canvas.place(interval[0]), y, canvas.place(interval[1]), y, f"interval {dot.kind}")
        if dot.mark is not None:
            canvas.line(canvas.place(dot.mark), y - 7, canvas.place(dot.mark), y + 7, "mark")
        canvas.dot(value, y, dot.kind)
        cited = dot.source.attributes(value, dot.form) if dot.source else ""
        canvas.text(WIDTH, y + 4, write(value, dot.form), f"value {dot.kind}", "end", cited)
    said = ", ".join(f"{dot.label} {write(dot.value, dot.form)}" for dot in dots)
    return canvas.svg(bottom + 22, f"{title}: {said}")


def draw_strips(title: str, strips: Sequence[Strip]) -> Markup:
    """A row of small dots for each strip, on the axis of `WAY`."""
    canvas = _Canvas(WAY, 66.0, WIDTH - 92.0)
    top, row = 6.0, 27.0
    bottom = top + row * len(strips)
    canvas.grid(WAY_TICKS, top, bottom)
    for i, strip in enumerate(strips):
        y = top + row * (i + 0.5)
        canvas.text(0, y + 4, strip.label, "label main")
        if strip.middle is not None:
            canvas.line(canvas.place(strip.middle), y - 9, canvas.place(strip.middle), y + 9, "middle")
        for name, (value, kind) in strip.values.items():
            canvas.dot(value, y, kind, name, 4.0)
        canvas.parts.append(f'<text x="{WIDTH}" y="{y + 4:.1f}" class="value" text-anchor="end">{strip.text}</text>')
    return canvas.svg(bottom + 22, title)


def draw_curves(title: str, curves: Sequence[Curve]) -> Markup:
    """Lines; logarithmic where values span more than a factor of 50."""
    values = [y for curve in curves for _, y in curve.points]
    if not values:
        return Markup("")
    is_log = min(values) > 0 and max(values) / min(values) > 50
    ticks = find_decades(values) if is_log else find_ticks(values)
    level: Callable[[float], float] = math.log10 if is_log else float
    steps = find_ticks([0.0, 1.0, *(x for curve in curves for x, _ in curve.points)], 3)
    canvas = _Canvas(steps, 44.0, WIDTH - 12.0)
    top, bottom = 10.0, 158.0

    def height(value: float) -> float:
        return bottom - (bottom - top) * (level(value) - level(ticks[0])) / (level(ticks[-1]) - level(ticks[0]))

    for tick in ticks:
        canvas.line(canvas.left, height(tick), canvas.right, height(tick), "grid")
        canvas.text(canvas.left - 6, height(tick) + 4, write_tick(tick), "tick", "end")
    for tick in steps:
        canvas.text(canvas.place(tick), bottom + 16, write_tick(tick), "tick", "middle")
    for curve in curves:
        if len(curve.points) == 1:
            canvas.dot(curve.points[0][0], height(curve.points[0][1]), curve.kind, r=3)
        path = " ".join(f"{canvas.place(x):.1f},{height(y):.1f}" for x, y in curve.points)
        canvas.parts.append(f'<polyline points="{path}" class="curve {curve.kind}"/>')
    said = ", ".join(f"{curve.label} {write_number(curve.points[-1][1])}" for curve in curves if curve.points)
    return canvas.svg(bottom + 22, f"{title}; last: {said}")


def find_ticks(values: Sequence[float], wanted: int = 4) -> list[float]:
    """Round numbers that cover the values, about ``wanted`` of them."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # no picture tells them apart
        margin = max(1.0, abs(low)) * 0.1
        low, high = low - margin, high + margin
    found = [float(tick) for tick in MaxNLocator(wanted, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    step = min(b - a for a, b in pairwise(found))
    return [round(tick, 12) for tick in found if low - step < tick < high + step]


def find_decades(values: Sequence[float]) -> list[float]:
    """Powers of ten that cover the positive values."""
    found = LogLocator(subs=(1.0,)).tick_values(min(values), max(values))
    return [float(tick) for tick in found if min(values) < 10 * tick and tick < 10 * max(values)]


def write_tick(value: float) -> str:
    """A tick label: ``12k`` for thousands, no zero before the point."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    text = f"{value:g}"
    return (text[1:] if text.startswith("0.") else text).replace("-0.", "−.").replace("-", "−")


def thin_out(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most ``most`` points, each the mean of neighbours."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
