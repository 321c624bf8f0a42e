"""``mindvideo prepare``, ``inspect``, ``export``."""

from __future__ import annotations

import inspect as signatures
import typing
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from mindvideo.cli.shared import Out, Run, Set, app, console, progress_bars, run_stage, say
from mindvideo.config import Data, Pretrain, Recipe, reader_settings, source_recipe
from mindvideo.data.pool import MOST_WORKERS, local_workers, open_pool
from mindvideo.data.store import Store
from mindvideo.sources import READERS

HCP = "hcp"
"""Not a source of films but of people to pre-train on."""
HCP_SETTINGS = ("window_s", "areas")
SUMMARIES = {name: reader.summary for name, reader in READERS.items()} | {
    HCP: "HCP recordings or HCP_visual_voxel.npz files, for pre-training"
}
Workers = Annotated[
    int | None, typer.Option(min=1, help=f"local threads for runs and films; one a core, at most {MOST_WORKERS}")
]
Scheduler = Annotated[str | None, typer.Option(help="address of a dask scheduler whose workers see the same paths")]


def offered_settings(source: str) -> dict[str, tuple[str, FieldInfo]]:
    """The settings that preparing a source depends on: dotted name and field, by option."""
    if source == HCP:
        return {
            f"--{name.replace('_', '-')}": (f"pretrain.{name}", Pretrain.model_fields[name]) for name in HCP_SETTINGS
        }
    left_out = {"source", "raw", "hcp", "subjects", *READERS}
    fields = [(f"data.{name}", item) for name, item in Data.model_fields.items() if name not in left_out]
    fields += [(f"data.{source}.{name}", item) for name, item in reader_settings(source).model_fields.items()]
    fields += [(name, Recipe.model_fields[name]) for name in ("foundation", "kit_on_real_films")]
    return {_flag(dotted, item): (dotted, item) for dotted, item in fields}


def _flag(dotted: str, item: FieldInfo) -> str:
    """The option of a setting, which other readers' settings may share."""
    extra = item.json_schema_extra if isinstance(item.json_schema_extra, dict) else {}
    return str(extra.get("option", f"--{dotted.rpartition('.')[2].replace('_', '-')}"))


def _option(flag: str, dotted: str, item: FieldInfo, start: Any) -> signatures.Parameter:
    kind: Any = str | None
    if item.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{flag[2:]}"
    elif typing.get_origin(item.annotation) is tuple:
        kind = list[str] | None
    words = [word for word in typing.get_args(item.annotation) if isinstance(word, str)]
    about = [item.description or "", f"one of {', '.join(words)}" if words else ""]
    value = ", ".join(start) if isinstance(start, list) else "" if start in (None, 0) else str(start)
    help_text = f"{'; '.join(filter(None, about))} ({dotted}{': ' if value else ''}{value})"
    return _parameter(dotted.replace(".", "_"), Annotated[kind, typer.Option(flag, help=help_text)], None)


def _parameter(name: str, annotation: Any, default: Any = signatures.Parameter.empty) -> signatures.Parameter:
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command(source: str) -> typer.Typer:
    offered = offered_settings(source)
    fields = {dotted.replace(".", "_"): (dotted, item) for dotted, item in offered.values()}
    base = "wen2018" if source == HCP else source

    def command(
        raw: Path, out: Path, settings: Any = None, workers: Any = None, scheduler: Any = None, **given: Any
    ) -> None:
        from mindvideo.preparing import prepare_people, prepare_recordings

        stated = [(*fields[name], value) for name, value in given.items() if value is not None]
        recipe = source_recipe(base, {name: _as_value(value, item) for name, item, value in stated}, settings)
        with progress_bars() as bar:
            if source == HCP:
                remarks = prepare_people(recipe, raw, out, bar(HCP))
            else:
                with open_pool(workers or (1 if scheduler else local_workers()), scheduler) as pool:
                    remarks = prepare_recordings(recipe, raw, out, pool, bar("prepare")).remarks
        say(f"prepared {'segments' if source == HCP else 'store'} in {out}")
        for line in remarks:
            say(line)

    parameters = [
        _parameter("raw", Annotated[Path, typer.Argument(help="folder of the data set")]),
        _parameter("out", Out),
        _parameter("settings", Set, None),
    ]
    if source != HCP:
        parameters += [_parameter("workers", Workers, None), _parameter("scheduler", Scheduler, None)]
    content: Any = source_recipe(base, {}).model_dump(mode="json")
    for flag, (dotted, item) in offered.items():
        default = reduce(lambda part, name: part[name], dotted.split("."), content)
        parameters.append(_option(flag, dotted, item, default))
    command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    own = typer.Typer(add_completion=False)
    own.command(source, help=f"Prepare {SUMMARIES[source]}; 'none' as a value stands for nothing.")(command)
    return own


def _as_value(value: Any, item: FieldInfo) -> Any:
    """A setting's value as typed; ``none`` stands for nothing where it may be empty."""
    if isinstance(value, list):
        return [] if value == ["none"] else value
    return None if value == "none" and type(None) in typing.get_args(item.annotation) else value


class _Sources(TyperGroup):
    """A command for each source, made when asked for: its options are its reader's settings."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*SUMMARIES, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in SUMMARIES:
            return typer.main.get_command(_command(cmd_name))
        return super().get_command(ctx, cmd_name)


prepare_app = typer.Typer(
    cls=_Sources,
    no_args_is_help=True,
    help="Recordings and stimuli to one prepared store: mindvideo prepare SOURCE RAW --out STORE.",
)


@prepare_app.command("run")
def prepare_run(run_dir: Run, settings: Set = None) -> None:
    """Run the stage prepare of the study in RUN."""
    run_stage("prepare", run_dir, settings)


@app.command()
def inspect(
    store: Path,
    out: Annotated[
        Path | None, typer.Option(help="folder for the page and its pictures; STORE_inspect beside the store")
    ] = None,
) -> None:
    """Print what a prepared store holds, and write a page with pictures of it."""
    from mindvideo.report.store_page import describe_store, write_page

    opened = Store.open(store)
    sections = describe_store(opened)
    for title, rows in sections.items():
        console.print(title, style="bold")
        for key, value in rows.items():
            console.print(f"  {key}: {value}", soft_wrap=True)
    page = write_page(opened, sections, out or store.resolve().with_name(f"{store.resolve().stem}_inspect"))
    console.print(f"page: {page}", soft_wrap=True)


@app.command()
def export(
    store: Path, out: Path, frames: Annotated[bool, typer.Option("--frames", help="also the frames")] = False
) -> None:
    """Write a prepared store as plain arrays: fmri_train, fmri_test, vertex, frames."""
    Store.open(store).export_npz(out, frames=frames)
    say(f"exported to {out}")
