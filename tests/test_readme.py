"""The README tells the truth: its Python runs, its stages, targets, links and files exist. Its commands: tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from mindvideo.config import shipped_recipes
from mindvideo.stages import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 90


def test_python_block_runs_on_a_finished_run(tiny_run: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, object] = {}
    code = code.replace("runs/demo/model", str(tiny_run / "model"))
    exec(compile(code, "README.md", "exec"), found)
    assert found["clips"].shape == (2, 6, 32, 32, 3)  # type: ignore[attr-defined]


def test_stages_are_the_ones_that_run() -> None:
    (chain,) = re.findall(r"prepare → .*? → report", README)
    assert chain.split(" → ") == [stage.name for stage in STAGES.values() if not stage.optional]


def test_links_and_pictures_exist() -> None:
    for page in (README, *((ROOT / name).read_text() for name in ("CHANGELOG.md", "CODE_OF_CONDUCT.md"))):
        for target in re.findall(r"\]\((?!https:)([^)#]+)\)", page):
            assert (ROOT / target).exists(), target


def test_make_targets_and_recipes_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE)
    assert {first or second for first, second in targets} == {"demo", "test", "docs"}
    for first, second in targets:
        assert re.search(rf"^{first or second}:", makefile, re.MULTILINE)
    (named,) = re.findall(r"a shipped one \(([^)]+)\)", README)
    assert set(re.findall(r"`(\w+)`", named)) == set(shipped_recipes())


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in script
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"
