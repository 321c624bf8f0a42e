"""Scores and the report: ``mindvideo evaluate``, ``compare``, ``report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.table import Column, Table

from mindvideo.cli.shared import Seeds, Set, app, console, progress_bars, run_stage, say, say_smallest_p
from mindvideo.config import Recipe, with_settings
from mindvideo.errors import SettingError


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="RUN|CLIPS", help="a run folder, or anyone's clips")],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="the true clips; else CLIPS are GIFs, the truth on the left"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the scores of CLIPS, CLIPS_scores by default")
    ] = None,
    block: Annotated[
        int | None, typer.Option("--block", help="CLIPS in a row that are permuted together, 10 by default")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="height and width CLIPS are scored at")] = None,
    fit: Annotated[str | None, typer.Option("--fit", help="crop or stretch where shapes differ")] = None,
    foundation: Annotated[
        str | None,
        typer.Option("--foundation", help="networks that judge CLIPS; without it pixel and flow scores only"),
    ] = None,
    settings: Set = None,
) -> None:
    """Score the reconstructions of a run, or anyone's clips, beside their controls."""
    if (source / "recipe.yaml").is_file():
        if any(option is not None for option in (reference, out, block, size, fit, foundation)):
            raise SettingError(
                "expected --reference, --out, --block, --size, --fit and --foundation for clips only, found a run folder "
                f"at {source}; its settings are given with --set"
            )
        run_stage("evaluate", source, settings)
        _print_scores(source / "evaluate")
        return
    from mindvideo.evaluate.external import Asked, evaluate_results

    if fit not in (None, "crop", "stretch"):
        raise SettingError(f"expected --fit crop or stretch, found '{fit}'")
    if any(setting.startswith("evaluate.block_s=") for setting in settings or []):
        raise SettingError("expected --block, a number of clips, for CLIPS, found evaluate.block_s, which is of runs")
    place = source.resolve()
    folder = out or place.with_name(place.name.removesuffix(".npy") + "_scores")
    recipe = with_settings(Recipe(), settings)
    if foundation is None and any(setting.startswith("foundation=") for setting in settings or []):
        foundation = str(recipe.foundation)
    with progress_bars() as bar:
        how = 10 if block is None else block, size, cast(Literal["crop", "stretch"] | None, fit)
        evaluate_results(Asked(source, reference, folder, recipe, foundation, *how), say, bar("evaluate"))
    _print_scores(folder)


def _print_scores(folder: Path) -> None:
    from mindvideo.clip_sets import ClipSet
    from mindvideo.evaluate.tables import brief_rows, group_reasons, read_scores

    scores = read_scores(folder / "scores.json")
    about = json.loads((folder / "evaluation.json").read_text())
    header, *rows = brief_rows(scores, {name: ClipSet(**each) for name, each in about["sets"].items()})
    _print_table(header, rows)
    for name, words in about["sets"].items():
        say(f"{name}: {words['definition']}")
    for network in dict.fromkeys(entry.network for entry in scores.values() if entry.network):
        say(f"measured by {network}: {', '.join(name for name, entry in scores.items() if entry.network == network)}")
    for reason, names in group_reasons(about["left_out"]).items():
        say(f"left out: {', '.join(names)} ({reason})")
    say_smallest_p(about["smallest_p"])
    console.print(f"scores: {folder / 'scores.json'}, .csv, .tex", soft_wrap=True)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    table = Table(Column(header[0], no_wrap=True), *(Column(title, justify="right") for title in header[1:]))
    for row in rows:
        table.add_row(*row)
    console.print(table, width=None if console.is_terminal else 240)


@app.command()
def compare(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="evaluated runs or folders of scores")],
    out: Annotated[Path, typer.Option("--out", help="folder of comparison.json, .csv and .tex")],
    scores: Annotated[
        str | None, typer.Option("--scores", help="comma-separated; P is corrected for their number")
    ] = None,
    seeds: Seeds = 1,
) -> None:
    """Compare runs with the first: window by window if they share them, else as samples."""
    from mindvideo.evaluate.compare import compare_folders

    chosen = [name.strip() for name in scores.split(",")] if scores else None
    names, *columns = zip(*compare_folders(sources, out, chosen, seeds), strict=True)  # runs are few
    _print_table(["score", *names[1:]], [list(column) for column in columns])
    say("classes of P after Holm's correction over scores; every number is in comparison.json")
    say_smallest_p(json.loads((out / "comparison.json").read_text())["smallest_p_holm"])
    console.print(f"comparison: {out / 'comparison.json'}, .csv, .tex", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders, or the folder of an ablation")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the page; of one run RUN/report by default")
    ] = None,
) -> None:
    """Write one self-contained page for one or several run folders."""
    from mindvideo.report.build import build_report

    if out is None and len(runs) > 1:
        raise SettingError(f"expected --out with {len(runs)} runs, found none; give a folder for their common page")
    folder = out or runs[0] / "report"
    build_report(list(runs), folder)
    console.print(f"report: {folder / 'index.html'}", soft_wrap=True)
