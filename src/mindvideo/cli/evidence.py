"""Scores and the report: ``mindvideo evaluate``, ``report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mindvideo.cli.shared import Set, app, console, run_stage
from mindvideo.errors import DataError


@app.command()
def evaluate(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
    """Score the reconstructions of RUN beside their controls and print the table."""
    run_stage("evaluate", run_dir, settings)
    _print_scores(run_dir)


def _print_scores(run_dir: Path) -> None:
    scores = json.loads((run_dir / "evaluate" / "scores.json").read_text())
    table = Table("score", "value", "95 % interval", "chance", "shuffled", "P", "mean", "P")
    for name, entry in scores.items():
        controls, p = entry.get("controls", {}), entry.get("p", {})
        number = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
        table.add_row(
            name, number(entry["value"]), " – ".join(map(number, entry["interval"])), number(entry.get("chance")),
            number(controls.get("shuffled")), number(p.get("shuffled")), number(controls.get("mean")), number(p.get("mean")),
        )  # fmt: skip
    console.print(table)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…")],
    out: Annotated[Path | None, typer.Option("--out", help="folder of the page; RUN/report by default")] = None,
) -> None:
    """Write one self-contained page for one or several run folders."""
    from mindvideo.report.build import build_report

    for run_dir in runs:
        if not (run_dir / "recipe.yaml").is_file():
            raise DataError(
                f"expected a run folder with recipe.yaml at {run_dir}, found none; start one with 'mindvideo run'"
            )
    folder = out or runs[0] / "report"
    build_report(list(runs), folder)
    console.print(f"report: {folder / 'index.html'}", highlight=False, soft_wrap=True)
