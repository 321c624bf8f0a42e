"""``mindvideo foundation …``: training and checking the frozen parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mindvideo.cli.shared import console, progress_bars, say
from mindvideo.errors import SettingError

foundation_app = typer.Typer(no_args_is_help=True, help="The frozen parts a study stands on.")


@foundation_app.command("train")
def foundation_train(
    out: Path,
    recipe: Annotated[
        str | None, typer.Option(help="'night' (2 cores, the default) or 'gpu'; a later round takes the first's")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="only these parts, in this order")] = None,
    seed: Annotated[int | None, typer.Option(help="0 by default; a later round takes the first's")] = None,
    round_: Annotated[
        int, typer.Option("--round", min=1, help="of one --part: 2 goes on from the weights of round 1, and so forth")
    ] = 1,
    steps: Annotated[int | None, typer.Option(help="of one --part, in place of the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="of one --part, in place of the recipe's")] = None,
    lr: Annotated[float | None, typer.Option(help="of one --part: learning rate in place of the recipe's")] = None,
) -> None:
    """Train the embedded kit on procedural films; a killed run goes on.

    Every round of a part is a schedule of its own: warm-up, decay, new random numbers. A round that ended stays as it is.
    """
    from mindvideo.foundation.card import write_cards
    from mindvideo.foundation.check import check_kit
    from mindvideo.foundation.train import PARTS, train_part

    given = {"steps": steps, "batch_size": batch_size, "lr": lr}
    changed = {name: value for name, value in given.items() if value is not None}
    if (changed or round_ > 1) and len(part or ()) != 1:
        raise SettingError(
            f"expected one --part with --round, --steps, --batch-size and --lr, found {len(part or ()) or 'none'}; "
            "name the part they are for"
        )
    for name in part or PARTS:
        with progress_bars() as bar:
            train_part(out, name, recipe, seed, bar(name), number=round_, changed=changed)
        say(f"{name}: {f'round {round_} ' if round_ > 1 else ''}trained, in {out}")
    if set(PARTS) <= {folder.parent.name for folder in (out / "work").glob("*/made.json")}:
        write_cards(out, check_kit(out))


@foundation_app.command("check")
def foundation_check(
    folder: Annotated[str, typer.Argument(help="a foundation folder; the shipped kit by default")] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure every gate of a kit on fresh scenes; exits with 1 where one is missed."""
    from mindvideo.foundation.check import check_kit

    with progress_bars() as bar:
        gates = check_kit(folder, progress=bar("check"))
    if as_json:
        print(json.dumps(gates, indent=2))
    else:
        table = Table("gate", "found", "wanted", "")
        for gate in gates:
            table.add_row(
                gate["gate"], f"{gate['found']:.3f}", f"≥ {gate['wanted']}", "ok" if gate["passed"] else "[red]missed"
            )
        console.print(table)
    if not all(gate["passed"] for gate in gates):
        raise typer.Exit(1)
