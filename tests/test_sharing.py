"""Trackers are told what the logs hold; a model is exported with a card that says what it is and is not for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mindvideo import MindVideoPipeline
from mindvideo.config import Recipe, with_settings
from mindvideo.errors import SettingError
from mindvideo.study import Study
from mindvideo.tracking import Tracker

Cli = Callable[..., tuple[int, str]]


def test_tensorboard_has_losses_rates_scores_and_clips(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_settings(tiny_recipe, ["track=tensorboard", "adapt.lr=2e-3"])
    for stage in ("simulate", "prepare", "pretrain"):
        shutil.copytree(tiny_run / stage, tmp_path / stage)
    shutil.copy(tiny_run / "recipe.yaml", tmp_path)
    assert Study(recipe, tmp_path).run(only="adapt") == ["adapt"]
    tracker = Tracker(recipe, tmp_path)
    for stage in ("reconstruct", "evaluate"):
        tracker.tell_result(stage, tiny_run)
    tracker.finish()
    told = EventAccumulator(str(tmp_path / "track" / recipe.name))
    told.Reload()
    rows = [json.loads(line) for line in (tmp_path / "adapt" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "lr"):
        found = {event.step: event.value for event in told.Scalars(f"adapt/{name}")}
        wanted = {row["step"] + 1: row[name] for row in rows if name in row}
        assert len(found) == recipe.adapt.steps and wanted
        assert {step: found[step] for step in wanted} == pytest.approx(wanted, rel=1e-6)
    scores = json.loads((tiny_run / "evaluate" / "scores.json").read_text())["ssim_rgb"]
    (event,) = told.Scalars("evaluate/ssim_rgb/shuffled")
    assert event.value == pytest.approx(scores["controls"]["shuffled"], rel=1e-6)
    images = told.Images("reconstruct/truth above reconstruction")
    shape = zarr.open_group(tiny_run / "reconstruct" / "clips.zarr", mode="r")["truth"].shape
    assert (images[0].height, images[0].width) == (min(4, shape[0]) * 2 * shape[2], shape[1] * shape[3])
    assert Study(tiny_recipe, tiny_run).is_done("adapt") and Study(
        with_settings(tiny_recipe, ["track=wandb"]), tiny_run
    ).is_done("adapt")


def test_a_tracker_that_is_not_installed_is_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="track=swanlab"):
        Tracker(with_settings(tiny_recipe, ["track=swanlab"]), tmp_path)


def test_export_model(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "exported"
    code, said = cli("export-model", tiny_run, out)
    assert code == 1 and "--license" in said and not out.exists()
    code, said = cli("export-model", tiny_run, out, "--license", "mit")
    assert code == 0 and "nothing was sent" in said
    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    scores = json.loads((tiny_run / "evaluate" / "scores.json").read_text())
    row = next(line for line in text.splitlines() if line.startswith("| SSIM RGB") or line.startswith("| ssim_rgb"))
    assert f"{scores['ssim_rgb']['value']:.3f}".lstrip("0") in row
    assert (
        "must not be used" in text
        and "a simulated subject" in text
        and "fitted to one person (subject1)" in text
        and "align 6 steps" in text
    )
    assert str(tiny_run) not in text
    pipe, kept = (MindVideoPipeline.from_pretrained(folder) for folder in (out, tiny_run / "model"))
    fmri = torch.randn(1, pipe.fmri_encoder.config.window, pipe.fmri_encoder.config.num_voxels)
    with torch.no_grad():
        np.testing.assert_array_equal(pipe.fmri_encoder(fmri).numpy(), kept.fmri_encoder(fmri).numpy())
    code, said = cli("export-model", tiny_run, out, "--license", "mit")
    assert code == 1 and "expected a new folder" in said


def test_a_run_without_scores_is_refused(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run / "recipe.yaml", run)
    code, said = cli("export-model", run, tmp_path / "out", "--license", "mit")
    assert code == 1 and "expected 'reconstruct'" in said and not (tmp_path / "out").exists()
