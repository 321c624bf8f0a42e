"""Fixtures of the whole-path tests: a foundation of random weights, one tiny study, and the command line in process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kit.judges import save_judge
from kit.parts import build_kit
from mindvideo.config import Recipe, load_recipe
from mindvideo.evaluate.judges import Judge
from mindvideo.study import Study

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side; and bits do not depend on how many cores a machine has."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """No waiting until files are on the disk: that guards against a power failure, which no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def random_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundation folder with every part at test size, randomly initialised."""
    kit = build_kit(tmp_path_factory.mktemp("foundation") / "kit", "test", seed=0)
    save_judge(Judge("image"), kit / "judges")
    return kit


@pytest.fixture(scope="session")
def tiny_recipe(random_kit: Path) -> Recipe:
    return load_recipe(str(TINY), [f"foundation={random_kit}"])


OPENED: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of every stage at tiny size. Read it, copy it, never change it."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    at_work: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if at_work and event == "open" and isinstance(arguments[0], str | Path):
            OPENED.append((at_work[-1], str(arguments[0])))

    sys.addaudithook(note)
    Study(tiny_recipe, run_dir).run(say=lambda line: at_work.append(line.partition(":")[0]))
    at_work.clear()
    return run_dir


@pytest.fixture(scope="session")
def opened(tiny_run: Path) -> list[tuple[str, str]]:
    """Stage at work and path of each file that Python opened while the tiny study ran."""
    return OPENED


@pytest.fixture(scope="session")
def cli() -> Callable[..., tuple[int, str]]:
    """Run the command line in this process: (exit code, standard output and error)."""
    from mindvideo.cli import main
    from mindvideo.cli.shared import console

    def call(*arguments: object) -> tuple[int, str]:
        written, kept = io.StringIO(), sys.argv
        console.file = written
        sys.argv = ["mindvideo", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                try:
                    main()
                    code = 0
                except SystemExit as stop:
                    code = int(stop.code or 0)
        finally:
            sys.argv = kept
        return code, written.getvalue()

    return call
