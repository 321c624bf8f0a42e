"""A whole study of two simulated people: each one's clips, scores, maps and page, what is said over both, and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from mindvideo import MindVideoPipeline
from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.data.store import open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.evaluate.tables import read_scores
from mindvideo.model_card import export_model
from mindvideo.models.encoders import load_encoder
from mindvideo.report.read import read_run
from mindvideo.study import Study

Cli = Callable[..., tuple[int, str]]
SETTINGS = ["simulate.subjects=2", "data.subjects=[1, 2]", "data.k=300", "reconstruct.max_windows=8", "explain.max_windows=4",
            "align.token_weight=1.0", "reconstruct.batch_size=4", "evaluate.block_s=4"]  # fmt: skip
AREAS = ["align.encoder=ridge_areas", "align.encoder_settings={head_rank: 9}"]


def people_recipe(tiny_recipe: Recipe, folder: Path, *settings: str) -> Recipe:
    save_recipe(tiny_recipe, folder / "recipe.yaml")
    return load_recipe(str(folder / "recipe.yaml"), [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return people_recipe(tiny_recipe, tmp_path_factory.mktemp("recipe"), *AREAS)


@pytest.fixture(scope="module")
def run_dir(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished; it was stopped once while the second person's clips were made."""
    folder = tmp_path_factory.mktemp("people") / "run"

    def watch(stage: str) -> Callable[[int, int, dict], None]:
        def told(done: int, total: int, figures: dict) -> None:
            second = folder / "reconstruct.new" / "subject2" / "clips.zarr"
            if stage == "reconstruct" and second.is_dir() and figures["clips"] == "shuffled":
                raise KeyboardInterrupt

        return told

    with pytest.raises(KeyboardInterrupt):
        Study(recipe, folder).run(say=lambda line: None, progress=watch)
    assert Study(recipe, folder).run(say=lambda line: None) == ["reconstruct", "evaluate", "explain", "report"]
    return folder


def clips_of(run_dir: Path, subject: int) -> zarr.Group:
    return zarr.open_group(run_dir / "reconstruct" / f"subject{subject}" / "clips.zarr", mode="r")


def test_each_person_is_reconstructed_through_maps_of_their_own(run_dir: Path, recipe: Recipe) -> None:
    first, second = clips_of(run_dir, 1), clips_of(run_dir, 2)
    assert first.attrs["complete"] and second.attrs["complete"]
    for name in ("truth", "caption", "vae", "random_train", "constant"):
        np.testing.assert_array_equal(first[name][:], second[name][:])
    assert (first["reconstruction"][:] != second["reconstruction"][:]).any()
    pipe, stores = MindVideoPipeline.from_pretrained(run_dir / "model"), open_stores(recipe.data, run_dir)
    encoder = load_encoder(run_dir / "cotrain" / "fmri_encoder").eval()
    for person, store in enumerate(stores):
        windows, own = Windows(store, "test", 2), pipe.of_person(person)
        mean = Windows(store, "train", 2).mean_fmri()
        np.testing.assert_allclose(own.train_mean[:, : store.n_voxels], mean, rtol=1e-5, atol=1e-6)
        fmri = windows.fmri(np.array([3, 7]))
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(fmri), torch.tensor([person, person]))
        torch.testing.assert_close(own.encode(fmri), expected)


def test_scores_of_each_and_over_all(run_dir: Path) -> None:
    both = [read_scores(run_dir / "evaluate" / f"subject{number}" / "scores.json") for number in (1, 2)]
    mean = read_scores(run_dir / "evaluate" / "scores.json")
    assert mean.keys() == both[0].keys() == both[1].keys()
    for name, entry in mean.items():
        first, second = both[0][name], both[1][name]
        assert {"shuffled", "other_person", "same_scene"} <= entry.controls.keys()
        if first.n == second.n == 8 and entry.value is not None:
            assert entry.value == pytest.approx((first.value + second.value) / 2, abs=1e-9)
        for one, other in ((first, second), (second, first)):  # what one is compared with is what the other is
            assert one.controls["same_scene"] == pytest.approx(other.value, nan_ok=True)
            assert one.controls["other_person"] == pytest.approx(other.controls["shuffled"], nan_ok=True)
    about = json.loads((run_dir / "evaluate" / "evaluation.json").read_text())
    assert about["people"] == ["subject1", "subject2"]
    assert mean["ssim_rgb"].p.keys() == both[0]["ssim_rgb"].p.keys() and mean["ssim_rgb"].n == 8


def test_maps_of_each(run_dir: Path, recipe: Recipe) -> None:
    for number, store in enumerate(open_stores(recipe.data, run_dir), 1):
        maps = np.load(run_dir / "explain" / f"subject{number}" / "maps.npz")
        assert set(np.flatnonzero(np.isfinite(maps["occlusion_tokens"]))) == set(store.vertex.tolist())
        truth = json.loads((run_dir / "explain" / f"subject{number}" / "truth.json").read_text())
        assert truth["n_voxels"] == store.n_voxels


def test_a_page_of_each_and_of_all(run_dir: Path) -> None:
    page = (run_dir / "report" / "index.html").read_text()
    assert "2 people, each and together" in page and 'data-run="2"' in page
    for number in (1, 2):
        alone = read_run(run_dir / "people" / f"subject{number}")
        assert alone.clips and alone.scores and alone.explain and not alone.problems
        assert all(state.state in ("done", "off") for state in alone.stages.values())
        assert alone.setting("data.subject") == number


def test_the_model_card_names_everybody_it_was_fitted_to(run_dir: Path, tmp_path: Path) -> None:
    text = " ".join(export_model(run_dir, tmp_path / "model", "mit").read_text().split())
    assert "fitted to 2 people (subject1 and subject2) and does not work on anybody else without maps" in text
    assert (
        "2 simulated subjects, no person" in text and "of each, 300 and 300 voxels" in text and "one person" not in text
    )


def test_all_is_up_to_date_and_damage_of_one_persons_store_is_told(
    run_dir: Path, recipe: Recipe, tmp_path: Path
) -> None:
    assert set(Study(recipe, run_dir).status().values()) == {"up to date"}
    copy = shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    piece = copy / "prepare" / "subject2.zarr" / "fmri" / "seg2" / "c" / "0" / "0"
    content = bytearray(piece.read_bytes())
    content[9] ^= 1
    piece.write_bytes(bytes(content))
    other = recipe.model_copy(update={"align": recipe.align.model_copy(update={"steps": 7})})
    with pytest.raises(DataError, match=r"subject2\.zarr/fmri/seg2/c/0/0 as the stage 'prepare' wrote it, found other"):
        Study(other, copy).run(say=lambda line: None)
    piece.unlink()
    assert "no such file" in Study(recipe, copy).status()["prepare"]


def test_a_film_says_whose_scans_it_is_of(run_dir: Path, cli: Cli, tmp_path: Path) -> None:
    code, text = cli("reconstruct", run_dir, "test1", "--out", tmp_path / "a.mp4", "--scans", 2, "--steps", 1)
    assert code == 1 and "one of the 2 people" in " ".join(text.split()) and not (tmp_path / "a.mp4").exists()
    store = run_dir / "prepare" / "subject2.zarr"
    code, text = cli("reconstruct", run_dir, "test1", "--store", store, "--out", tmp_path / "a.mp4", "--scans", 2,
                     "--steps", 1)  # fmt: skip
    assert code == 0, text
    assert (tmp_path / "a.mp4").stat().st_size > 0


def test_an_encoder_of_ones_own_for_two_people_runs_through(run_dir: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    own = tmp_path / "run"
    own.mkdir()
    for stage in ("simulate", "prepare", "animate", "features"):
        shutil.copytree(run_dir / stage, own / stage)
    settings = [
        "align.encoder=two_people_encoder:TwoPeople",
        "align.start_from=scratch",
        "adapt.enabled=false",
        "pretrain.enabled=false",
    ]
    ran = Study(people_recipe(tiny_recipe, tmp_path, *settings), own).run(say=lambda line: None)
    assert "align" in ran and not {"prepare", "animate"} & set(ran)
    assert {path.name for path in (own / "explain").iterdir()} >= {"subject1", "subject2"}
    assert (clips_of(own, 1)["reconstruction"][:] != clips_of(own, 2)["reconstruction"][:]).any()
