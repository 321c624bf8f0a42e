"""Every rival at tiny size: fit, reconstruct, scores, cost; what it may read; a kill and what follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zarr
from safetensors.torch import load_file
from small_study import SIZE, VOXELS, context_of, save_cotrained, write_store

from mindvideo.baselines.base import StoreWithoutTest
from mindvideo.baselines.chosen_windows import ChosenWindows
from mindvideo.baselines.mindvis import MindVis
from mindvideo.baselines.runner import RIVALS, run_rival
from mindvideo.config import Baseline, Recipe, save_recipe, with_settings
from mindvideo.cost import measure_cost
from mindvideo.data.store import Store
from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.models.encoders import new_masked_brain
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.voxel_layout import VoxelLayout

Cli = Callable[..., tuple[int, str]]


def run(name: str, recipe: Recipe, run_dir: Path, store: Store) -> None:
    if name == "ridge":
        save_cotrained(recipe, store, run_dir)
    run_rival(name, recipe, run_dir, store.path, say=lambda line: None)


def test_settings_and_rivals_have_the_same_names() -> None:
    assert set(RIVALS) == set(Baseline.model_fields)


@pytest.mark.parametrize("name", RIVALS)
def test_each_rival_lands_in_the_table(name: str, rival_recipe: Recipe, run_dir: Path, rival_store: Store) -> None:
    run(name, rival_recipe, run_dir, rival_store)
    folder = run_dir / "baselines" / name
    clips = zarr.open_group(folder / "reconstruct" / "clips.zarr", mode="r")
    assert clips.attrs["complete"]
    windows = json.loads((folder / "reconstruct" / "windows.json").read_text())
    assert {clips[key].shape for key in clips.array_keys()} == {(len(windows), 3, SIZE, SIZE, 3)}
    scores = json.loads((folder / "evaluate" / "scores.json").read_text())
    assert {"shuffled", "mean", "random_train", "constant"} == scores["ssim_rgb"]["controls"].keys()
    done = json.loads((folder / "done.json").read_text())
    assert done["seconds"] > 0
    assert done["peak_memory_bytes"] > 50_000_000
    said: list[str] = []
    assert run_rival(name, rival_recipe, run_dir, rival_store.path, say=said.append) is False
    assert said == [f"{name}: up to date"]
    if name in ("linear", "separable"):  # no noise: the mean fMRI gives one clip, a scene's clip is its own map's
        mean, shuffled = (clips[key][:].astype(int) for key in ("mean", "shuffled"))
        other = clips["reconstruction"][:][ChosenWindows(rival_recipe, rival_store).other]
        assert np.abs(mean - mean[0]).max() <= 1  # the last digit of a product of matrices depends on the batch
        assert np.abs(shuffled - other).max() <= 1
    else:
        assert not (clips["shuffled"][:] == clips["reconstruction"][:]).all()


def test_linear_sees_colours_its_shuffled_control_does_not(
    rival_recipe: Recipe, run_dir: Path, rival_store: Store
) -> None:
    run("linear", rival_recipe, run_dir, rival_store)
    clips = zarr.open_group(run_dir / "baselines" / "linear" / "reconstruct" / "clips.zarr", mode="r")
    truth = clips["truth"][:].mean(axis=(1, 2, 3))
    error = {
        name: np.abs(clips[name][:].mean(axis=(1, 2, 3)) - truth).mean() for name in ("reconstruction", "shuffled")
    }
    figures = json.loads((run_dir / "baselines" / "linear" / "categories.json").read_text())
    assert figures.keys() == {"2way"}
    assert 0 <= figures["2way"]["shuffled"] <= 1
    assert error["reconstruction"] < 12 < 30 < error["shuffled"]


@pytest.mark.parametrize("name", ["ridge", "linear", "gan", "separable", "mindvis"])
def test_other_test_data_change_nothing_that_is_fitted(
    name: str, rival_recipe: Recipe, rival_store: Store, tmp_path: Path
) -> None:
    other = write_store(tmp_path / "other.zarr", secret=9)
    assert not np.array_equal(other.fmri("test1"), rival_store.fmri("test1"))
    assert not np.array_equal(other.frames("test2"), rival_store.frames("test2"))
    fmri = np.random.default_rng(1).standard_normal((2, rival_recipe.align.window, VOXELS)).astype(np.float32)
    made = []
    for number, store in enumerate((rival_store, other)):
        run_dir = tmp_path / f"run{number}"
        context = context_of(name, rival_recipe, run_dir)
        if name == "ridge":
            save_cotrained(rival_recipe, rival_store, run_dir)
        module, class_name = RIVALS[name]
        method = getattr(__import__(module, fromlist=[class_name]), class_name)(context)
        method.fit(StoreWithoutTest.of(store))
        extra = {} if name in ("linear", "separable") else {"window": np.array([3, 8])}
        made.append(method.reconstruct(fmri, **extra))
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("changes", [{"negative": "none"}, {"negative": "null"}, {"precision": "bf16"}])
def test_mindvis_samples_as_the_recipe_says(changes: dict, mindvis: MindVis, rival_recipe: Recipe) -> None:
    fmri = np.random.default_rng(1).standard_normal((2, rival_recipe.align.window, VOXELS)).astype(np.float32) * 3
    made = []
    for update in ({}, changes):
        recipe = rival_recipe.model_copy(update={"reconstruct": rival_recipe.reconstruct.model_copy(update=update)})
        mindvis.context = replace(mindvis.context, recipe=recipe)
        made.append(mindvis.reconstruct(fmri, np.array([3, 8])))
    assert not np.array_equal(*made)


@pytest.fixture(scope="module")
def mindvis(rival_recipe: Recipe, rival_store: Store, tmp_path_factory: pytest.TempPathFactory) -> MindVis:
    """Trained for a few steps, with activations computed again, on a masked model that was given."""
    run_dir = tmp_path_factory.mktemp("mindvis") / "run"
    torch.manual_seed(1)
    wide = new_masked_brain("paper", [VoxelLayout(60)], rival_recipe.encoder.model_dump(), mask_ratio=0.5)
    wide.save_pretrained(run_dir / "pretrain" / "model")
    settings = rival_recipe.baseline.mindvis.model_copy(update={"gradient_checkpointing": True, "guidance_scale": 5.0})
    recipe = rival_recipe.model_copy(
        update={
            "pretrain": rival_recipe.pretrain.model_copy(update={"enabled": True, "weights": Path("given")}),
            "baseline": rival_recipe.baseline.model_copy(update={"mindvis": settings}),
        }
    )
    method = MindVis(context_of("mindvis", recipe, run_dir))
    method.fit(rival_store)
    return method


def test_mindvis_starts_as_the_study_does_and_saves_memory(mindvis: MindVis) -> None:
    wide = MaskedBrainModel.from_pretrained(mindvis.context.run_dir / "pretrain" / "model")
    expected = MaskedBrainModel.from_other_voxels(wide, VOXELS, "interpolate").pos_embed
    assert not torch.equal(expected, MaskedBrainModel.from_other_voxels(wide, VOXELS).pos_embed)
    torch.testing.assert_close(mindvis.encoder.pos_embed, expected)
    assert mindvis.encoder.is_gradient_checkpointing
    assert mindvis.unet.is_gradient_checkpointing


@pytest.mark.parametrize("name", ["gan", "separable"])
def test_a_rival_without_blocks_refuses_gradient_checkpointing(
    name: str, rival_recipe: Recipe, rival_store: Store, tmp_path: Path
) -> None:
    recipe = with_settings(rival_recipe, [f"baseline.{name}.gradient_checkpointing=true"])
    with pytest.raises(SettingError, match=f"gradient_checkpointing=false with {name}"):
        run_rival(name, recipe, tmp_path, rival_store.path, say=lambda line: None)


def test_a_store_without_test_refuses_them(rival_store: Store) -> None:
    view = StoreWithoutTest.of(rival_store)
    np.testing.assert_array_equal(view.fmri("seg4"), rival_store.fmri("seg4"))
    assert view.segments("validation") == ["seg4"]
    for read in (view.fmri, view.repeats, view.frames, view.scene, view.captions, view.frame_captions):
        with pytest.raises(DataError, match="test1"):
            read("test1")
    with pytest.raises(DataError, match="test"):
        view.segments("test")
    with pytest.raises(DataError, match="test2"):
        view.frames_at("test2", np.array([0]))


def test_a_killed_rival_ends_with_the_same_bits(rival_recipe: Recipe, rival_store: Store, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    save_recipe(rival_recipe, recipe)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_rival("gan", rival_recipe, whole, rival_store.path, say=lambda line: None)
    program = "import torch; torch.set_num_threads(1); from mindvideo.cli import main; main()"
    command = [sys.executable, "-c", program, "baseline", "gan", rival_store.path, "--out", killed, "--recipe", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINDVIDEO_TEST_KILL": "gan:3"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == -9, result.stderr
    run_rival("gan", rival_recipe, killed, rival_store.path, say=lambda line: None)
    expected, found = (load_file(folder / "baselines/gan/state/tensors.safetensors") for folder in (whole, killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, second = (
        zarr.open_group(folder / "baselines/gan/reconstruct/clips.zarr", mode="r")["reconstruction"][:]
        for folder in (whole, killed)
    )
    np.testing.assert_array_equal(first, second)
    assert json.loads((killed / "baselines/gan/done.json").read_text())["went_on_after_a_kill"]


def test_windows_of_another_store_are_refused(rival_recipe: Recipe, run_dir: Path, rival_store: Store) -> None:
    description = ChosenWindows(rival_recipe, rival_store).description
    description[0]["scan"] += 1
    (run_dir / "reconstruct").mkdir()
    (run_dir / "reconstruct" / "windows.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"windows\.json"):
        run_rival("linear", rival_recipe, run_dir, rival_store.path, say=lambda line: None)


def test_memory_is_that_of_a_process_and_its_children() -> None:
    hungry = "import time; block = bytearray(300_000_000); print('full', flush=True); time.sleep(30)"
    with measure_cost(every_s=0.01) as cost:
        child = subprocess.Popen([sys.executable, "-c", hungry], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        own = psutil.Process().memory_info().rss
        time.sleep(0.1)
        child.kill()
        child.communicate()
    assert cost["peak_memory_bytes"] > own + 300_000_000
    assert cost["seconds"] > 0.1


def test_ridge_needs_the_study(rival_recipe: Recipe, run_dir: Path, rival_store: Store) -> None:
    with pytest.raises(ModelError, match="run the stage cotrain first"):
        run_rival("ridge", rival_recipe, run_dir, rival_store.path, say=lambda line: None)


def test_the_study_runs_the_rivals_its_recipe_names_before_the_report(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path, cli: Cli
) -> None:
    folder, recipe = tmp_path / "copy", tmp_path / "recipe.yaml"
    shutil.copytree(tiny_run, folder)
    save_recipe(tiny_recipe, recipe)
    code, text = cli(
        "run", recipe, "--out", folder, "--set", "baselines=[ridge]", "--set", "baseline.ridge.components=8"
    )
    assert code == 0, text
    assert "cotrain: up to date" in text
    assert text.index("ridge: fitting") < text.index("report: a page")
    rows = json.loads((folder / "baselines" / "table.json").read_text())
    assert [row["method"] for row in rows] == ["mindvideo", "ridge"]
    assert all(row["seconds"] > 0 for row in rows)
    main, rival = (json.loads((folder / place / "windows.json").read_text())
                   for place in ("reconstruct", "baselines/ridge/reconstruct"))  # fmt: skip
    assert main == rival
    clips = [
        zarr.open_group(folder / place / "clips.zarr", mode="r")
        for place in ("reconstruct", "baselines/ridge/reconstruct")
    ]
    for name in ("truth", "random_train", "constant"):
        np.testing.assert_array_equal(clips[0][name][:], clips[1][name][:])
    code, text = cli("baseline", "table", folder)
    assert code == 0
    assert "ridge" in text
    assert "ridge's does not include training the generator" in " ".join(text.split())
