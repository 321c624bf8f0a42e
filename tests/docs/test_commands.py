"""Every command that README and docs print is understood as printed; the cheap ones run as printed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pages import PAGES, ROOT, blocks, commands, lines, scripts, words
from small_data import make_fmriprep
from typer.main import get_command

from mindvideo.cli import app
from mindvideo.config import load_recipe, shipped_recipes, with_settings
from mindvideo.config.recipe import Recipe, setting_names
from mindvideo.errors import SettingError

Cli = Callable[..., tuple[int, str]]
README = (ROOT / "README.md").read_text()
PRINTED = sorted({line for page in PAGES for line in commands(page.read_text())})


def _parse(command: Any, arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments, with types, ranges and required options, without running anything."""
    with command.make_context("mindvideo", list(arguments), resilient_parsing=False) as context:
        if not hasattr(command, "list_commands"):
            return dict(context.params)
        name, *rest = context._protected_args + context.args
        assert name in command.list_commands(context), name
        return _parse(command.get_command(context, name), rest)


@pytest.mark.parametrize("line", PRINTED)
def test_every_printed_command_is_complete_and_its_settings_exist(line: str) -> None:
    if len(line.split()) < 3 or "…" in line:  # a command's name alone, or with dots for what depends on the reader
        name = line.split()[1]
        assert name in get_command(app).commands or name.startswith("-"), line  # type: ignore[attr-defined]
        return
    _, *arguments = words(line.replace("$VARIANT", "text_only").replace("$PERSON", "2"))
    given = _parse(get_command(app), arguments)
    recipe = given.get("recipe")
    known = recipe in shipped_recipes()
    assert recipe is None or known or recipe.isupper() or recipe.endswith(".yaml"), f"{line}: no such recipe"
    if arguments[0] != "convert":
        settings = given.get("settings") or []
        if settings and (known or recipe is None):
            try:
                load_recipe(recipe, settings) if known else with_settings(Recipe(), settings)
            except SettingError as error:
                assert "simulate" in str(error), line


def test_shells_see_no_bare_brackets_and_every_page_is_read() -> None:
    assert len(PRINTED) > 70
    assert [line for line in PRINTED if "$PERSON" in line] and [line for line in PRINTED if "$VARIANT" in line]
    named = {script for page in PAGES for script in scripts(page.read_text())}
    assert len(named) > 4 and all((ROOT / script).is_file() for script in named)
    for page in PAGES:
        for language, name, content in blocks(page.read_text()):
            assert language in {"bash", "python", "yaml", "text"}, (
                f"{page.name}: {language or 'no language'} {content[:40]}"
            )
            if language == "bash" and not name:
                for line in lines(content):
                    words(line)


def test_settings_inside_lines_exist() -> None:
    names = {*setting_names(), *Recipe.model_fields, "distill", "baselines"}
    for page in PAGES:
        for name in re.findall(r"--set\s+'?([a-z_.]+)=", page.read_text()):
            assert name in names or name in ("num_heads", "key"), f"{page.name}: {name}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, random_kit: Path) -> Path:
    """A working directory with what the pages' capital letters stand for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "RUN", copy_function=os.link, symlinks=True)
    shutil.copy(tiny_run / "recipe.yaml", "RECIPE.yaml")
    for name in ("STORE", "HCPSTORE"):
        Path(name).symlink_to(tiny_run / "prepare" / {"STORE": "store.zarr", "HCPSTORE": "hcp.zarr"}[name])
    for name, place in {"WEN": "simulate", "HCP": "simulate/hcp"}.items():
        Path(name).symlink_to(tiny_run / place)
    Path("foundation").symlink_to(random_kit)
    make_fmriprep(tmp_path)
    for name, place in {"DERIVATIVES": "derivatives", "BIDS": "bids", "STIMULI": "bids/stimuli"}.items():
        Path(name).symlink_to(place)
    rng = np.random.default_rng(2)
    for name in ("CLIPS", "TRUTH"):
        Path(name).mkdir()
        for window in range(12):
            np.save(Path(name) / f"{window}.npy", rng.integers(0, 256, (4, 24, 20, 3), dtype=np.uint8))
    Path("ARRAYS").mkdir()
    for split, films in (("train", 2), ("test", 1)):
        np.save(Path("ARRAYS") / f"fmri_{split}_subject1.npy", rng.standard_normal((films, 9, 32)).astype(np.float32))
        shape = (films, 9, 6, 32, 32, 3)
        np.save(Path("ARRAYS") / f"video_{split}_256_3hz.npy", rng.integers(0, 256, shape, dtype=np.uint8))
        np.save(Path("ARRAYS") / f"text_{split}_256_3hz.npy", np.full((films, 9, 6), "a caption"))
    Path("PARCELS").mkdir()
    Path("LABELS.tsv").write_text("index\tname\n1\tLH_Vis_1\n2\tRH_Vis_1\n3\tLH_Lim_1\n")
    for run in ("1", "2"):
        np.save(Path("PARCELS") / f"run{run}.npy", rng.standard_normal((2, 90, 3)))
        events = tmp_path / "bids" / "sub-01" / "func" / f"sub-01_task-movie_run-{run}_events.tsv"
        shutil.copy(events, Path("PARCELS") / f"run{run}_events.tsv")
    return tmp_path


def test_the_commands_of_the_readme_run_as_printed(workplace: Path, cli: Cli) -> None:
    """With capital letters standing for files that are there, and STORE, where it is written, for a new one."""
    ran = []
    for number, line in enumerate(dict.fromkeys(commands(README))):
        _, *arguments = words(line)
        if len(arguments) < 2 or arguments[0] == "check":  # that one runs in the tutorial
            continue
        arguments = ["RECIPE.yaml" if each == "RECIPE" else each for each in arguments]
        if arguments[0] == "prepare":
            arguments[arguments.index("--out") + 1] = f"new{number}"
            if "wen2018" in arguments:  # two minutes of films, where the paper's test wants hours
                arguments += ["--alpha", "0.1"]
        code, said = cli(*arguments)
        assert code == 0, f"{line}\n{said}"
        ran.append(arguments[0])
    assert sorted(set(ran)) == ["evaluate", "inspect", "prepare", "run", "status"]
    assert sum(name == "prepare" for name in ran) == 5


def test_files_of_the_pages_are_what_they_seem() -> None:
    """Recipes load, batch files are shell, encoders and readers are in the tests of their own pages."""
    for page in PAGES:
        for language, name, content in blocks(page.read_text()):
            if language == "yaml":
                assert yaml.safe_load(content), page.name
            if name.endswith(".sbatch"):
                assert content.startswith("#!/bin/bash\n#SBATCH ") and "mindvideo " in content
