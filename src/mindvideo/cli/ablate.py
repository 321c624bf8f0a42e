"""``mindvideo ablate``: what each part of the method is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from mindvideo.cli.shared import Out, Seeds, Set, app, console, progress_bars, say, say_smallest_p
from mindvideo.config import load_recipe
from mindvideo.errors import SettingError

STYLES = {"purple": "magenta", "pink": "bright_magenta"}
COLUMNS = 4
"""Scores side by side on the terminal; more of them follow in further tables."""


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe or a YAML file: the full method")],
    out: Out,
    settings: Set = None,
    seeds: Seeds = 1,
    only: Annotated[list[str] | None, typer.Option(help="a variant to run; may be repeated or a,b,c")] = None,
    subjects: Annotated[str | None, typer.Option(help="subjects to run the full method on, as 1,2,3")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="a run whose finished stages are shared; may be repeated")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say what would run, and run nothing")] = False,
) -> None:
    """Run the study without each of its parts and print one table; unchanged stages are shared."""
    from mindvideo.ablation import Ablation, choose_variants, list_variants

    resolved = load_recipe(recipe, settings)
    names = [name for item in only or [] for name in item.split(",")]
    variants = list_variants(resolved, _read_subjects(subjects))
    chosen = choose_variants(variants, names)
    ablation = Ablation(resolved, out, chosen, seeds=seeds, reuse=reuse or [], others=variants)
    if plan:
        _print_plan(ablation)
        return
    with progress_bars() as bar:
        ablation.run(progress=bar, say=say)
    _print_table(out)


def _read_subjects(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise SettingError(f"expected --subjects as numbers with commas, such as 1,2,3, found '{text}'")
    return [int(part) for part in parts]


def _print_plan(ablation: Any) -> None:
    from mindvideo.ablation.runs import describe_steps

    plan = ablation.plan()
    for run in ablation.runs:
        changes = ", ".join(f"{key}={value}" for key, value in run.variant.changes.items())
        what = f"same as {run.same_as}" if run.same_as else describe_steps(plan[run.name])
        console.print(f"{run.name} ({changes or 'the recipe itself'}): {what}", soft_wrap=True)
    stages = sum(step.what == "run" for steps in plan.values() for step in steps)
    console.print(f"{len(plan)} runs, {stages} stages to run")


def _style(p_class: str | None) -> str:
    from mindvideo.report.wording import CLASSES

    colour = CLASSES[p_class][0] if p_class else ""
    return STYLES.get(colour, colour)


def _print_table(folder: Path) -> None:
    from mindvideo.ablation.rows import cell_text, row_label
    from mindvideo.report.wording import CLASSES

    content = json.loads((folder / "ablation.json").read_text())
    names = [column["score"] for column in content["columns"]]
    for start in range(0, len(names), COLUMNS):
        shown = names[start : start + COLUMNS]
        table = Table("", *(Column(name, no_wrap=True) for name in shown))
        for entry in content["rows"]:
            cells = [entry["scores"][name] for name in shown]
            styled = (Text(cell_text(cell), style=_style(cell.get("p_class"))) for cell in cells)
            table.add_row(row_label(entry), *styled)
        table.add_section()
        for entry in content["references"]:
            cells = [entry["scores"][name] for name in shown]
            table.add_row(f"{entry['name']} ({entry['role']})", *map(cell_text, cells), style="dim")
        console.print(table)
    key = Text("against the full method, corrected: ")
    for name, (_, stars, words) in CLASSES.items():
        key.append(f"{stars} {words}".strip(), style=_style(name)).append("  ")
    console.print(key)
    say_smallest_p(content["smallest_p"])
    console.print(f"{folder / 'ablation.json'}, .csv, .tex", soft_wrap=True)
