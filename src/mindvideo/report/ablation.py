"""The ablation's part of the page: the paper's Table 1 and Fig. 6 from ``ablation.json``, as an HTML fragment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mindvideo.clip_sets import clip_set
from mindvideo.errors import DataError
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.trace import Source, cite, cite_interval, count_of
from mindvideo.report.wording import CLASSES, write_interval, write_number, write_p

STYLE = """<style>
.ablation { --purple: #ddd0f5; --pink: #fad3e2; --yellow: #fbf0b4; --green: #dcefd3; }
@media (prefers-color-scheme: dark) {
  .ablation { --purple: #4a3a70; --pink: #6d3049; --yellow: #5c5017; --green: #2c4a2a; }
}
.ablation td small, .ablation th small { display: block; font-size: .82em; color: var(--soft, inherit); font-weight: 400; }
.ablation b { font-weight: 600; border-radius: 4px; padding: 1px 5px; white-space: nowrap; }
.ablation b.purple { background: var(--purple); } .ablation b.pink { background: var(--pink); }
.ablation b.yellow { background: var(--yellow); } .ablation b.green { background: var(--green); }
.ablation tr.reference { font-style: italic; }
.ablation .classes { list-style: none; margin: .8em 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px 14px; font-size: .85rem; }
@media (max-width: 820px) { .ablation .scores td { grid-template-columns: minmax(0, 1fr) 5em minmax(0, 7.6em); } }
@media print { .ablation b { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
</style>"""


def ablation_section(folder: Path) -> str:
    """The ablation in ``folder`` (``mindvideo ablate --out``) as an HTML fragment that uses the page's style sheet.

    Raises
    ------
    DataError
        When there is no readable ``ablation.json`` of a known version.
    """
    content = read_ablation(folder)
    source = Source(f"{folder.resolve().name}/ablation.json")
    parts = [
        STYLE,
        '<div class="ablation">',
        _introduction(content, source),
        _table(content, source),
        _classes(content, source),
        _films(content, source),
        f'<p class="source">From {escape(source.file)}, which names the run folder behind every row</p>',
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def read_ablation(folder: Path) -> dict[str, Any]:
    """Read ``ablation.json``; raises DataError where it is missing, damaged or of another version."""
    path = folder / "ablation.json"
    if not path.is_file():
        raise DataError(f"expected ablation.json in {folder}, found none; make it with 'mindvideo ablate'")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError:
        content = {}
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != ("mindvideo-ablation", 1):
        raise DataError(
            f"expected version 1 of an ablation's table in {path}, found something else; run 'mindvideo ablate' again"
        )
    return content


def _introduction(content: Mapping[str, Any], source: Source) -> str:
    seeds, columns = content["seeds"], content["columns"]
    windows = Markup("no")
    if columns:
        steps = ("rows", 0, "scores", columns[0]["score"], "n")
        windows = cite(content["rows"][0]["scores"][columns[0]["score"]]["n"], source.at(*steps), "count")
    text = Markup(
        f"Recipe {escape(content['recipe'])}, {windows} test windows. Each row leaves out or changes one part; the "
        "brackets are 95 % intervals from resampled blocks of windows. "
    )
    if len(seeds) > 1:
        text += Markup(f"Mean and standard deviation over {count_of(len(seeds), source.file, 'seeds')} seeds")
        text += ", each another simulated subject who saw other films." if content["is_simulated"] else "."
    else:
        text += "One seed: how much a row would move with another one is not known."
    return f"<p>{text}</p>"


def _table(content: Mapping[str, Any], source: Source) -> str:
    columns = content["columns"]
    head = "".join(
        f'<th scope="col" title="{escape(column["definition"])}">{escape(column["label"])}'
        f"<small>chance {cite(column['chance'], source.at('columns', i, 'chance'))}</small></th>"
        for i, column in enumerate(columns)
    )
    body = [_row(entry, columns, source.at("rows", i)) for i, entry in enumerate(content["rows"])]
    body += [
        _row(
            entry | {"label": f"{clip_set(entry['name']).label} ({entry['role']})", "also": []}, columns,
            source.at("references", i), "reference",
        )
        for i, entry in enumerate(content["references"])
    ]  # fmt: skip
    return f'<table class="scores"><thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _row(entry: Mapping[str, Any], columns: list[dict[str, Any]], source: Source, kind: str = "") -> str:
    also = ", ".join(variant["label"] for variant in entry["also"])
    small = f"<small>also: {escape(also)}</small>" if also else ""
    if entry.get("changes"):
        values = {key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in entry["changes"].items()}
        changes = ", ".join(f"{key} = {value}" for key, value in values.items())
        small += f'<small class="settings">{escape(changes)}</small>'
    if entry.get("seconds"):
        small += f"<small>own stages {cite(entry['seconds'], source.at('seconds'), 'seconds')}</small>"
    cells = "".join(
        _cell(column["label"], entry["scores"][column["score"]], source.at("scores", column["score"]))
        for column in columns
    )
    return f'<tr class="{kind}"><th scope="row">{escape(entry["label"])}{small}</th>{cells}</tr>'


def _cell(label: str, cell: Mapping[str, Any], source: Source) -> str:
    text = cite(cell["value"], source.at("value"))
    if cell["sd"] is not None:
        text += Markup(" ± ") + cite(cell["sd"], source.at("sd"))
    title = ""
    if cell.get("p_class"):
        colour, marks, words = CLASSES[cell["p_class"]]
        title = (
            f"{words} corrected ({write_p(cell['p_holm'])}; uncorrected {write_p(cell['p'])}); difference "
            f"{write_number(cell['difference'])} {write_interval(_interval(cell['difference_interval']))}"
        )
        text = Markup(f'<b class="{colour}">{text}{marks}</b>')
    small = f"<small>{cite_interval(_interval(cell['interval']), source.at('interval'))}</small>"
    return f'<td data-label="{escape(label)}" title="{escape(title.strip())}"><span>{text}</span>{small}</td>'


def _interval(ends: list[float | None]) -> tuple[float, float] | None:
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _classes(content: Mapping[str, Any], source: Source) -> str:
    items = "".join(f'<li><b class="{colour}">{words} {marks}</b></li>' for colour, marks, words in CLASSES.values())
    smallest = cite(content["smallest_p"], source.at("smallest_p"), "short")
    limit = "" if content["smallest_p"] is None else f" With these blocks no corrected P can be below {smallest}."
    return (
        f'<ul class="classes level" aria-label="P-value against the full method">{items}</ul><p><small>Two-sided block '
        f"permutation against the full method; {escape(content['correction'])}.{limit}</small></p>"
    )


def _films(content: Mapping[str, Any], source: Source) -> str:
    """SSIM by test film: one panel each, a row for every subject and for what needs no brain."""
    films: dict[str, list[Dot]] = {}
    for i, entry in enumerate(content["films"]):
        kind = "floor" if entry["name"] in ("shuffled", "constant") else "main"
        label = clip_set(entry["label"]).label if kind == "floor" else entry["label"]
        place = source.at("films", i, "value")
        films.setdefault(entry["film"], []).append(
            Dot(label, entry["value"], _interval(entry["interval"]), kind, place)
        )
    panels = []
    for film, dots in films.items():
        title = f"SSIM on test film {film}: " + ", ".join(f"{dot.label} {write_number(dot.value)}" for dot in dots)
        panels.append(f"<figure><figcaption>{escape(film)}</figcaption>{draw_dots(title, dots)}</figure>")
    if not panels:
        return ""
    seed = ", first seed" if len(content["seeds"]) > 1 else ""
    return f'<h3>SSIM by test film{seed}</h3><div class="panels">{"".join(panels)}</div>'
