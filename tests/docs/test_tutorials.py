"""The tutorials are tests: their files are written and their commands run, line by line, as the pages print them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, blocks, lines, words
from small_data import SCANS, make_fmriprep

from mindvideo.data.store import Store

Cli = Callable[..., tuple[int, str]]
TUTORIALS = ROOT / "docs" / "tutorials"


def follow(page: str, cli: Cli) -> dict[str, str]:
    """Do what a page says in the working directory; what each of its commands printed."""
    said = {}
    for language, name, content in blocks((TUTORIALS / page).read_text()):
        if name:
            Path(name).write_text(content)
        if language == "python":
            exec(compile(content, page, "exec"), said.setdefault("python", {}))  # type: ignore[call-overload]
        for line in lines(content) if language == "bash" else []:
            program, *arguments = words(line)
            assert program == "mindvideo", line
            code, said[line] = cli(*arguments)
            assert code == 0, f"{line}\n{said[line]}"
    return said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_kit: Path) -> Path:
    """An empty working directory with a foundation in it."""
    (tmp_path / "foundation").symlink_to(random_kit)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_fmriprep_to_a_report(here: Path, cli: Cli) -> None:
    make_fmriprep(here)
    said = follow("fmriprep.md", cli)
    store = Store.open("stores/sub-01.zarr")
    assert store.splits == {"train": ["film1", "film2", "film3"], "validation": ["film4"], "test": ["film5"]}
    assert store.fmri("film5").shape == (SCANS, 120) and store.repeats("film5").shape == (2, SCANS, 120)
    assert (here / "stores" / "sub-01_inspect" / "index.html").is_file()
    scores = json.loads((here / "runs" / "first" / "evaluate" / "scores.json").read_text())
    assert {"shuffled", "mean", "caption"} <= set(scores["ssim_rgb"]["controls"])
    assert not any(score["from_brain"] for score in scores.values())  # as the page says
    assert (here / "runs" / "first" / "report" / "index.html").is_file()
    (status,) = [text for line, text in said.items() if " status " in line]
    assert "align: stale – align.lr 2e-5 → 1e-4" in status and "adapt: up to date" in status
    full = Store.open("runs/sub-01/prepare/store.zarr")
    assert (full.size, full.n_scans("film1")) == (256, SCANS)
    np.testing.assert_array_equal(full.fmri("film1"), store.fmri("film1"))


def test_own_arrays_in_python(here: Path, cli: Cli) -> None:
    said = follow("arrays.md", cli)
    python: dict = said["python"]  # type: ignore[assignment]
    made, truth, seen, known = (python[name] for name in ("made", "truth", "seen", "known"))
    nearest = [int(np.argmin([((scan - other) ** 2).sum() for other in known])) for scan in seen]
    shown = np.concatenate(
        [python["frames"][film] for film in range(3)]
    )  # the fourth film validates, the fifth is the test
    np.testing.assert_array_equal(made, shown[nearest])
    np.testing.assert_array_equal(truth, python["frames"][4])
    difference = (python["score"] - python["control"]).reshape(8, 5).sum(axis=1)
    flips = np.array([[1 if number >> bit & 1 else -1 for bit in range(8)] for number in range(256)])
    assert python["p"] == pytest.approx(float((flips @ difference >= difference.sum() - 1e-9).mean()))
    (command,) = [line for line in said if line.startswith("mindvideo evaluate")]
    assert "ssim" in said[command].lower()
    scores = json.loads((here / "clips_scores" / "scores.json").read_text())
    assert scores["ssim_rgb"]["value"] == pytest.approx(float(python["score"].mean()), abs=1e-6)
