"""The README tells the truth: its Python runs, its commands and files exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from mindvideo.config import load_recipe, shipped_recipes
from mindvideo.study import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_python_block_runs_on_a_finished_run(tiny_run: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, object] = {}
    code = code.replace("runs/demo/model", str(tiny_run / "model"))
    exec(compile(code, "README.md", "exec"), found)
    assert found["clips"].shape == (2, 6, 32, 32, 3)  # type: ignore[attr-defined]


def test_stages_are_the_ones_that_run() -> None:
    (chain,) = re.findall(r"`(prepare → .*? → report)`", README)
    assert chain.split(" → ") == [name for name in STAGES if name != "simulate"]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
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


def test_commands_in_the_readme_exist(cli: Callable[..., tuple[int, str]]) -> None:
    for line in re.findall(r"`mindvideo ([a-z]+(?: [a-z0-9]+)?)", README):
        words = line.split()
        command = words if words[0] in ("prepare", "foundation") else words[:1]
        code, text = cli(*command, "--help")
        assert code == 0, (line, text)


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in script
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"
