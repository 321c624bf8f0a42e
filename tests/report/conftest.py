from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_run import make_run

from mindvideo.report.build import build_report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The report of a whole run, and that run's scores of each window."""
    path = tmp_path_factory.mktemp("runs") / "demo"
    values = make_run(path)
    return build_report([path], path / "report"), values


@pytest.fixture
def run_dir(made: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    """A copy of that run to spoil, without its report."""
    return Path(shutil.copytree(made[0].parent.parent, tmp_path / "one", ignore=shutil.ignore_patterns("report")))
