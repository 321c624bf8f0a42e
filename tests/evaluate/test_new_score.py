"""A new score is one function and one line in its family's file: files, report, comparison and ablation follow."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import ColourClassifier, make_run

from mindvideo.ablation.rows import RowRuns, write_table
from mindvideo.ablation.variants import Variant
from mindvideo.config import parse_recipe, save_recipe
from mindvideo.evaluate import evaluation as stage
from mindvideo.evaluate import pixel
from mindvideo.evaluate.compare import compare_folders
from mindvideo.evaluate.score import Score
from mindvideo.report.build import build_report
from mindvideo.stages import StageContext

N, F = 24, 3


def test_a_toy_score_is_found_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redness = Score(
        "toy_red", "toy redness", "difference of the mean red, a toy", "colour", "frames",
        lambda made, truth: np.abs(made.clips[..., 0].mean(axis=(1, 2, 3)) - truth.clips[..., 0].mean(axis=(1, 2, 3))),
        high=255.0, higher_is_better=False, is_main=True,
    )  # fmt: skip
    monkeypatch.setattr(pixel, "SCORES", [*pixel.SCORES, redness])  # the one place
    monkeypatch.setattr(stage, "Foundation", lambda folder, device="cpu": ColourClassifier())
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 256, (N, F, 20, 18, 3), dtype=np.uint8)
    values, runs = {}, []
    recipe = parse_recipe({"evaluate": {"n_ways": [2], "permutations": 99, "bootstraps": 99, "block_s": 6.0}})
    for name, noise in (("full", 20), ("less", 60)):
        made = (truth // 2 + rng.integers(0, noise, truth.shape)).astype(np.uint8)
        run_dir = make_run(tmp_path / name, (truth, {"reconstruction": made, "shuffled": np.roll(made, 5, axis=0)}), 2)
        save_recipe(recipe, run_dir / "recipe.yaml")
        stage.run(StageContext.of(recipe, run_dir, "evaluate"))
        (run_dir / "evaluate" / "done.json").write_text(json.dumps({"seconds": 1.0}))
        values[name] = float(np.abs(made[..., 0].mean(axis=(1, 2, 3)) - truth[..., 0].mean(axis=(1, 2, 3))).mean())
        runs.append(run_dir)

    written = json.loads((runs[0] / "evaluate" / "scores.json").read_text())["toy_red"]
    assert written["value"] == pytest.approx(values["full"]) and written["label"] == "toy redness"
    assert written["chance"] is not None and set(written["p_holm"]) == {"shuffled"} and written["films"]
    with (runs[0] / "evaluate" / "windows.csv").open() as handle:
        assert "toy_red:shuffled" in next(csv.reader(handle))

    rows = compare_folders(runs, tmp_path / "compared")
    column = rows[0].index("toy_red")
    assert rows[1][column] == f"{values['full']:.3f}" and rows[2][column].startswith(f"{values['less']:.3f}")

    groups = [RowRuns(Variant(run.name, run.name, {}), (), {0: run}) for run in runs]
    content = write_table(recipe, tmp_path, groups)
    assert content["rows"][1]["scores"]["toy_red"]["difference"] == pytest.approx(values["less"] - values["full"])

    page = build_report([runs[0]], tmp_path / "report").read_text()
    assert "toy redness" in page and "difference of the mean red, a toy" in page
