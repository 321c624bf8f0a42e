"""Cells of the page's tables of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mindvideo.report.trace import Source, cite_interval


@dataclass(frozen=True)
class Cell:
    """A cell; ``label`` names its column on a narrow page, ``kind`` is its style."""

    label: str
    text: Markup | str
    small: Markup | str = ""
    kind: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: Markup | str
    cells: Sequence[Cell]
    kind: str = ""


def cite_value(source: Source) -> Markup:
    """``.214``, or ``.214 ± .010`` over several seeds."""
    text = source.cite("value")
    return text if source.value.get("sd") is None else text + Markup(" ± ") + source.cite("sd")


def cite_difference(source: Source, p: str = "p_holm") -> Markup:
    """``+.012 [.003, .020], P = .004`` of an entry of `compare_runs`, or nothing."""
    if source.value["difference"] is None:
        return Markup("")
    text = source.cite("difference", form="signed") + Markup(" ") + cite_interval(source)
    return text if source.value[p] is None else text + Markup(", ") + source.cite(p, form="p")
