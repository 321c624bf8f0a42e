"""The whole path at tiny size: order, what is up to date, kill and resume, and the saved pipeline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mindvideo import MindVideoPipeline
from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.data.groups import is_complete
from mindvideo.data.store import Store
from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.files import only_one
from mindvideo.models.foundation import Foundation
from mindvideo.stages import STAGES
from mindvideo.study import Study

Cli = Callable[..., tuple[int, str]]
WEIGHTS = ("align/model", "animate/model", "cotrain/fmri_encoder", "cotrain/unet")


def _changed(recipe: Recipe, tmp_path: Path, *settings: str) -> Recipe:
    path = tmp_path / "resolved.yaml"
    save_recipe(recipe, path)
    return load_recipe(str(path), list(settings))


OWN_STAGES = [name for name in STAGES if name != "distill"]
"""Those of the tiny study."""


def _silent(line: str) -> None:
    pass


def test_every_stage_says_what_it_did(tiny_run: Path) -> None:
    for name in OWN_STAGES:
        done = json.loads((tiny_run / name / "done.json").read_text())
        assert done["stage"] == name
        assert len(done["hash"]) == 64
        assert done["seconds"] > 0
        assert done["peak_memory_bytes"] > 50_000_000
    assert json.loads((tiny_run / "cotrain" / "done.json").read_text())["inputs"].keys() == {"align", "animate"}


def test_stages_open_what_the_table_says(tiny_run: Path, opened: list[tuple[str, str]]) -> None:
    seen = set()
    for name, path in opened:
        place = path.removeprefix(f"{tiny_run}/")
        top = place.partition("/")[0]
        if place == path or top in (name, f"{name}.new", "features", "model", "recipe.yaml", ".lock"):
            continue
        if place.endswith("done.json") or "/" not in place:  # the runner's notes
            continue
        known = [opens for opens in STAGES[name].opens if place.startswith(opens)]
        assert known, f"{name} opens {place}"
        seen |= {(name, opens) for opens in known}
    assert {("prepare", "simulate/"), ("cotrain", "align/model"), ("evaluate", "reconstruct/")} < seen


def test_second_run_does_nothing_but_say_so(tiny_run: Path, tiny_recipe: Recipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("done.json")}
    said: list[str] = []
    assert Study(tiny_recipe, tiny_run).run(say=said.append) == []
    assert said == [f"{name}: up to date" for name in OWN_STAGES]
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("done.json")} == before


@pytest.mark.parametrize(
    ("setting", "stale"),
    [
        ("report.none", None),
        ("evaluate.permutations=120", {"evaluate", "report"}),
        ("explain.max_windows=8", {"explain", "report"}),
        ("animate.lr=1e-3", {"animate", "cotrain", "reconstruct", "evaluate", "explain", "report"}),
        ("align.lr=1e-3", {"align", "cotrain", "reconstruct", "evaluate", "explain", "report"}),
        ("adapt.lr=1e-4", {"adapt", "align", "cotrain", "reconstruct", "evaluate", "explain", "report"}),
        ("name=other", set()),
        ("distill.sampler_steps=3", {"distill", "reconstruct", "evaluate", "report"}),
        ("evaluate.block_s=12", {"reconstruct", "evaluate", "report"}),
    ],
)
def test_a_changed_setting_makes_its_stage_and_those_built_on_it_stale(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path, setting: str, stale: set[str] | None
) -> None:
    if stale is None:
        with pytest.raises(SettingError):
            _changed(tiny_recipe, tmp_path, setting + "=1")
        return
    study = Study(_changed(tiny_recipe, tmp_path, setting), tiny_run)
    assert {stage.name for stage in study.stages if not study.is_done(stage.name)} == stale


def test_rerun_of_changed_stages_only(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(tiny_run, run_dir)
    study = Study(_changed(tiny_recipe, tmp_path, "evaluate.permutations=120"), run_dir)
    assert study.run(say=_silent) == ["evaluate", "report"]


KILLED_TWICE = """
import os, sys, torch
torch.set_num_threads(1)
import mindvideo.study
from mindvideo.cli import main
ends = []
for place in ("align:3", "cotrain:3"):
    if not os.fork():
        os.environ["MINDVIDEO_TEST_KILL"] = place
        main()
        sys.exit()
    ends.append(os.wait()[1])
assert ends == [9, 9], ends
"""
"""Two processes, one after the other; what they import is imported once."""


def test_a_killed_study_ends_with_the_same_bits(tiny_run: Path, tiny_recipe: Recipe, cli: Cli, tmp_path: Path) -> None:
    run_dir, recipe = tmp_path / "killed", tmp_path / "recipe.yaml"
    run_dir.mkdir()
    for stage in ("simulate", "prepare", "pretrain", "adapt", "features"):
        shutil.copytree(tiny_run / stage, run_dir / stage)
    save_recipe(tiny_recipe, recipe)
    command = ["run", str(recipe), "--out", str(run_dir), "--until", "cotrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_TWICE, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode == 0, killed.stderr
    code, said = cli(*command)
    assert code == 0, said
    for part in WEIGHTS:
        (file,) = (tiny_run / part).glob("*.safetensors")
        expected, found = load_file(file), load_file(run_dir / part / file.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), part
    for stage in ("align", "cotrain"):
        rows = [json.loads(line) for line in (run_dir / stage / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps))


def test_pipeline_from_the_run_folder(tiny_run: Path) -> None:
    pipe = MindVideoPipeline.from_pretrained(tiny_run / "model")
    store = Store.open(tiny_run / "prepare" / "store.zarr")
    fmri = np.random.default_rng(1).standard_normal((3, 2, store.n_voxels)).astype(np.float32)
    for num_frames in (1, 6):
        frames = pipe(
            fmri, num_frames=num_frames, num_inference_steps=2, generator=torch.Generator().manual_seed(2)
        ).frames
        assert frames.shape == (3, num_frames, 32, 32, 3)
        assert frames.dtype == np.uint8
    again = pipe(fmri, num_frames=6, num_inference_steps=2, generator=torch.Generator().manual_seed(2)).frames
    np.testing.assert_array_equal(frames, again)
    with pytest.raises(ModelError, match=str(store.n_voxels)):
        pipe(fmri[..., :-5], num_inference_steps=2)


def test_scores_have_the_promised_form(tiny_run: Path) -> None:
    scores = json.loads((tiny_run / "evaluate" / "scores.json").read_text())
    assert {"ssim_rgb", "image_2way", "image_50way", "video_2way", "video_50way"} <= scores.keys()
    for entry in scores.values():
        assert {"value", "interval", "n", "chance", "controls", "p"} <= entry.keys()
        low, high = entry["interval"]
        assert low <= entry["value"] <= high
    assert {"shuffled", "mean"} <= scores["ssim_rgb"]["controls"].keys()
    assert {"shuffled", "mean"} <= scores["ssim_rgb"]["p"].keys()


def test_two_at_once_in_one_folder_are_refused(tiny_run: Path, tiny_recipe: Recipe) -> None:
    with only_one(tiny_run / ".lock", "at it"), pytest.raises(DataError, match="found another at work"):
        Study(tiny_recipe, tiny_run).run(say=_silent)


def test_a_stage_alone_needs_those_before_it(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--until adapt"):
        Study(tiny_recipe, tmp_path / "empty").run(only="align", say=_silent)


def test_stage_as_its_own_command(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(tiny_run, run_dir)
    code, text = cli("evaluate", run_dir)
    assert code == 0
    assert "ssim_rgb" in text
    code, text = cli("report", run_dir)
    assert code == 0
    assert str(run_dir / "report" / "index.html") in text.replace("\n", "")


def test_an_interrupted_prepare_goes_on_with_what_is_missing(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    run_dir = tmp_path / "copy"
    for stage in ("simulate", "prepare"):
        shutil.copytree(tiny_run / stage, run_dir / stage)
    (run_dir / "prepare" / "done.json").unlink()
    (run_dir / "prepare").rename(run_dir / "prepare.new")
    shutil.rmtree(run_dir / "prepare.new" / "hcp.zarr")
    written = (run_dir / "prepare.new" / "store.zarr" / "zarr.json").stat().st_mtime_ns
    # people are prepared whether or not pre-training is on: the stage stays up to date when it is turned on
    recipe = _changed(tiny_recipe, tmp_path, "pretrain.enabled=false")
    assert Study(recipe, run_dir).run(until="prepare", say=_silent) == ["prepare"]
    assert (run_dir / "prepare" / "store.zarr" / "zarr.json").stat().st_mtime_ns == written
    assert is_complete(run_dir / "prepare" / "hcp.zarr")
    assert Study(tiny_recipe, run_dir).is_done("prepare")


def test_the_length_of_blocks_is_reconstructs_only_where_it_chooses_windows(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    whole = ("reconstruct.max_windows=null",)
    hashes = [
        Study(_changed(tiny_recipe, tmp_path, *settings), tiny_run).key("reconstruct").digest
        for settings in (whole, (*whole, "evaluate.block_s=12"))
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("stage", "setting", "name"),
    [
        ("prepare", "data.captions", "captions.csv"),
        ("prepare", "data.published.vertex", "vertex.npy"),
        ("pretrain", "pretrain.weights", "weights"),
    ],
)
def test_a_file_named_by_a_setting_makes_its_stage_stale(
    tiny_recipe: Recipe, tmp_path: Path, stage: str, setting: str, name: str
) -> None:
    place = tmp_path / name
    if "." not in name:
        place.mkdir()
    file = place if "." in name else place / "config.json"
    recipe = _changed(tiny_recipe, tmp_path, f"{setting}={place}", "data.source=published")
    hashes = []
    for text in ("one", "three", "three"):
        if not hashes or text != file.read_text():
            file.write_text(text)
        hashes.append(Study(recipe, tmp_path / "run").key(stage).digest)
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_refused_stage_changes_no_recipe(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    run_dir.mkdir()
    shutil.copy(tiny_run / "recipe.yaml", run_dir)
    before = (run_dir / "recipe.yaml").read_bytes()
    code, text = cli("cotrain", run_dir, "--set", "align.lr=3e-3")
    assert code == 1 and "--until" in text
    assert (run_dir / "recipe.yaml").read_bytes() == before
    (run_dir / "recipe.yaml").write_text("align: {")
    code, text = cli("cotrain", run_dir)
    assert code == 1 and "not valid YAML" in text and "Traceback" not in text


def test_captions_outlive_the_store_and_follow_the_captioner_alone(
    tiny_run: Path, tiny_recipe: Recipe, random_kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, run_dir, asked = shutil.copytree(random_kit, tmp_path / "kit"), tmp_path / "run", []
    shutil.copytree(tiny_run / "simulate", run_dir / "simulate")

    def caption(self: Foundation, frames: np.ndarray) -> list[str]:
        asked.append(len(frames))
        return [f"grey {frame.mean():.2f}" for frame in frames]

    monkeypatch.setattr(Foundation, "caption", caption)
    recipe = _changed(tiny_recipe, tmp_path, "data.captions=blip", f"foundation={kit}")
    Study(recipe, run_dir).run(until="prepare", say=_silent)
    assert sum(asked) > 100
    (kit / "image_classifier" / "other.json").write_text("{}")
    assert Study(recipe, run_dir).is_done("prepare")
    asked.clear()
    other = _changed(recipe, tmp_path, "data.k=300")
    assert Study(other, run_dir).run(until="prepare", say=_silent) == ["prepare"] and not asked
    assert "grey" in Store.open(run_dir / "prepare" / "store.zarr").captions("seg1")[0]
    (kit / "captioner" / "other.json").write_text("{}")
    assert not Study(other, run_dir).is_done("prepare")
