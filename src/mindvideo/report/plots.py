"""Small plots as inline SVG, coloured by the page's style sheet so that they read in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mindvideo.report.trace import Source
from mindvideo.report.wording import nice_ticks, write_count, write_number

WIDTH = 340


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot. ``kind`` is ``main``, ``floor`` or ``ceiling``."""

    label: str
    value: float | None
    interval: tuple[float | None, float | None] | None = None
    kind: str = "floor"
    source: Source | None = None

    @property
    def known_interval(self) -> tuple[float, float] | None:
        """The interval where both its ends are known."""
        low, high = self.interval or (None, None)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Curve:
    """One line of a curve plot: points (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = "train"


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _value(y: float, value: float, kind: str, source: Source | None, decimals: int = 3) -> str:
    """The number at the right end of a row, with its source."""
    cited = source.attributes(value, "number" if decimals else "count") if source else ""
    text = write_number(value, decimals) if decimals else write_count(value)
    style = f"value {kind}".strip()
    return f'<text x="{WIDTH}" y="{y:.1f}" class="{style}" text-anchor="end"{cited}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _svg(height: float, title: str, parts: list[str]) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" class="plot"><title>{escape(title)}</title>{body}</svg>'
    )


def draw_dots(title: str, dots: Sequence[Dot], chance: float | None = None, label_width: float = 132.0) -> Markup:
    """A row per value on one axis, intervals as bars, chance as a dashed line.

    Parameters
    ----------
    title : str
        Read out instead of the picture.
    dots : sequence of Dot
        From top to bottom; rows without a value are left out.
    chance : float, optional
        Drawn as a dashed line.
    label_width : float
        Room for the labels, in units of the plot's 340.
    """
    dots = [dot for dot in dots if dot.value is not None]
    ends = [end for dot in dots for end in (dot.value, *(dot.known_interval or ()))]
    ends += [chance] if chance is not None else []
    if not dots:
        return Markup("")
    finite = [end for end in ends if end is not None]
    ticks = nice_ticks(min(finite), max(finite))
    left, right, top, row = label_width, WIDTH - 44.0, 8.0, 21.0
    span = ticks[-1] - ticks[0] or 1.0  # every value the same

    def place(value: float) -> float:
        return left + (right - left) * (value - ticks[0]) / span

    bottom = top + row * len(dots)
    parts = []
    for tick in ticks:
        parts.append(_line(place(tick), top, place(tick), bottom, "grid"))
        parts.append(_text(place(tick), bottom + 15, write_tick(tick), "tick", "middle"))
    if chance is not None:
        parts.append(_line(place(chance), top - 4, place(chance), bottom, "chance"))
    for i, dot in enumerate(dots):
        y = top + row * (i + 0.5)
        value = dot.value or 0.0
        parts.append(_text(left - 10, y + 4, dot.label, f"label {dot.kind}", "end"))
        if interval := dot.known_interval:
            parts.append(_line(place(interval[0]), y, place(interval[1]), y, f"interval {dot.kind}"))
        parts.append(f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="4.5" class="dot {dot.kind}"/>')
        parts.append(_value(y + 4, value, dot.kind, dot.source))
    return _svg(bottom + 22, title, parts)


def draw_bars(
    title: str,
    bars: Sequence[tuple[str, float]],
    kinds: Sequence[str] | None = None,
    label_width: float = 132.0,
    decimals: int = 3,
    marks: Sequence[float | None] = (),
    sources: Sequence[Source] = (),
) -> Markup:
    """Horizontal bars from zero, in the order given.

    Parameters
    ----------
    title : str
        Read out instead of the picture.
    bars : sequence of (label, value)
        Negative values point left.
    kinds : sequence of str, optional
        Style class of each bar.
    label_width : float
        Room for the labels, in units of the plot's 340.
    decimals : int
        Of the values written beside the bars.
    marks : sequence of float or None
        A value to compare each bar with, drawn as a tick.
    sources : sequence of Source
        Where each value comes from.
    """
    if not bars:
        return Markup("")
    ends = [0.0, *(value for _, value in bars), *(mark for mark in marks if mark is not None)]
    low, high = min(ends), max(ends)
    left, right, row = label_width, WIDTH - 44.0, 19.0
    span = (high - low) or 1.0
    zero = left + (right - left) * (0.0 - low) / span
    parts = []
    for i, (label, value) in enumerate(bars):
        y = row * i + 3
        width = (right - left) * abs(value) / span
        x = zero if value >= 0 else zero - width
        kind = kinds[i] if kinds else "main"
        parts.append(_text(left - 10, y + 11, label, "label", "end"))
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="13" rx="2" class="bar {kind}"/>')
        mark = marks[i] if i < len(marks) else None
        if mark is not None:
            x = left + (right - left) * (mark - low) / span
            parts.append(_line(x, y - 1, x, y + 14, "mark"))
        parts.append(_value(y + 11, value, "", sources[i] if sources else None, decimals))
    height = row * len(bars) + 4
    parts.append(_line(zero, 0, zero, height, "axis"))
    return _svg(height, title, parts)


def draw_curves(title: str, curves: Sequence[Curve]) -> Markup:
    """Lines over training steps; the vertical axis is logarithmic when the values span more than a factor of 50.

    Parameters
    ----------
    title : str
        Read out instead of the picture.
    curves : sequence of Curve
        Training first; a curve of one point is drawn as a dot.
    """
    values = [y for curve in curves for _, y in curve.points]
    if not values:
        return Markup("")
    is_log = min(values) > 0 and max(values) / min(values) > 50
    ticks = [10.0**k for k in range(_log10(min(values), math.floor), _log10(max(values), math.ceil) + 1)]
    ticks = ticks if is_log else nice_ticks(min(values), max(values))
    steps = [x for curve in curves for x, _ in curve.points]
    first, last = min(0.0, min(steps)), max(max(steps), 1.0)
    left, right, top, bottom = 44.0, WIDTH - 10.0, 10.0, 158.0
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if is_log else (ticks[0], ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        level = math.log10(y) if is_log else y
        return left + (right - left) * (x - first) / (last - first), bottom - (bottom - top) * (level - low) / (
            high - low
        )

    parts = []
    for tick in ticks:
        y = place(first, tick)[1]
        parts.append(_line(left, y, right, y, "grid"))
        parts.append(_text(left - 6, y + 4, write_tick(tick), "tick", "end"))
    step_ticks = [tick for tick in nice_ticks(first, last, 3) if tick <= last]
    for tick in step_ticks:
        parts.append(_text(place(tick, ticks[0])[0], bottom + 16, write_tick(tick), "tick", "middle"))
    for curve in curves:
        points = [place(x, y) for x, y in curve.points]
        if len(points) == 1:
            parts.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" class="dot {curve.kind}"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" class="curve {curve.kind}"/>')
    return _svg(bottom + 22, title, parts)


def _log10(value: float, turn: object) -> int:
    level = math.log10(value) if value > 0 else 0.0
    return math.floor(level) if turn is math.floor else max(math.ceil(level), math.floor(level) + 1)


def write_tick(value: float) -> str:
    """A tick label: ``12k`` for thousands, no zero before the point."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    text = f"{value:g}"
    return (text[1:] if text.startswith("0.") else text).replace("-0.", "−.").replace("-", "−")


def thin_out(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most ``most`` points, each the mean of its neighbours, so that a long log stays a small picture."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
