"""Cells of the page's tables of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mindvideo.report.trace import Source, cite, cite_interval


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


def cite_value(entry: Mapping[str, Any], source: Source) -> Markup:
    """``.214``, or ``.214 ± .010`` over several seeds."""
    text = cite(entry["value"], source.at("value"))
    return text if entry.get("sd") is None else text + Markup(" ± ") + cite(entry["sd"], source.at("sd"))


def cite_difference(entry: Mapping[str, Any], source: Source, p: str = "p_holm") -> Markup:
    """``+.012 [.003, .020], P = .004`` of an entry of `compare_runs`, or nothing."""
    if entry["difference"] is None:
        return Markup("")
    text = cite(entry["difference"], source.at("difference"), "signed") + Markup(" ")
    text += cite_interval(entry["interval"], source.at("interval"))
    return text if entry[p] is None else text + Markup(", ") + cite(entry[p], source.at(p), "p")
