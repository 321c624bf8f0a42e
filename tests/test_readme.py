"""The README tells the truth: its Python runs, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from mindvideo.cli import app
from mindvideo.config import load_recipe, shipped_recipes
from mindvideo.stages import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_python_block_runs_on_a_finished_run(tiny_run: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, object] = {}
    code = code.replace("runs/demo/model", str(tiny_run / "model"))
    exec(compile(code, "README.md", "exec"), found)
    assert found["clips"].shape == (2, 6, 32, 32, 3)  # type: ignore[attr-defined]


def test_stages_are_the_ones_that_run() -> None:
    (chain,) = re.findall(r"`(prepare → .*? → report)`", README)
    assert chain.split(" → ") == [stage.name for stage in STAGES.values() if not stage.optional]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_and_recipes_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert {"demo", "wen2018"} <= set(shipped_recipes())
    settings = re.findall(r"--set ([a-z_.]+)=(?!value)", README)
    assert settings
    for setting in settings:
        value = "false" if setting.endswith("enabled") else "FOLDER"
        load_recipe("wen2018", [f"{setting}={value}"])


def _commands(text: str) -> list[str]:
    """Every ``mindvideo …`` of a page, of its blocks of code and inside its lines, without comments."""
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ |\w+=\S+ )*(mindvideo .*)$", blocks, re.MULTILINE)
    return [line.split(" #")[0] for line in lines] + re.findall(r"(?<!`)`(mindvideo [^`]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_options_of_the_pages_exist(page: Path) -> None:
    for line in _commands(page.read_text()):
        command, known, words = get_command(app), {"--help"}, line.split()[1:]
        while True:
            known |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            commands = getattr(command, "commands", {})
            words = words[1:] if commands and words[:1] == ["-q"] else words
            if not commands or not words or words[0] in ("…", "--help"):
                break
            assert words[0] in commands, f"{line}: no command {words[0]}"
            command, words = commands[words[0]], words[1:]
        unknown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(words))) - known
        assert not unknown, f"{line}: no option {', '.join(unknown)}"
        if command.name in ("run", "ablate", "check") and words and words[0].islower() and "/" not in words[0]:
            assert words[0].endswith((".yaml", ".yml")) or words[0] in shipped_recipes(), f"{line}: no such recipe"


def test_the_pages_have_commands() -> None:
    assert len(_commands(README)) > 10 and sum(len(_commands(page.read_text())) for page in PAGES) > 30


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in script
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"
