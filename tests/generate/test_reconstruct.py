from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipeline import tiny_encoder

from kit.parts import Sizes, build_kit
from mindvideo.config import Recipe, parse_recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, ModelError
from mindvideo.generate import reconstruct
from mindvideo.generate.clips import ClipMaker, choose_windows, derange_scenes, pick_frames, window_noise
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.reconstruct import write_preview
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.stages import Progress, StageContext

VOXELS, FRAMES, SIZE = 37, 3, 16
SIZES = Sizes(
    size=SIZE, num_frames=4, length=12, width=20, vae_channels=(8, 8, 16), unet_channels=(8, 16, 24), unet_heads=2,
    text_layers=1, vision_width=16, vision_layers=1, heads=2, video_width=16, norm_groups=8,
)  # fmt: skip
SCANS = {"seg1": 6, "seg2": 5, "seg3": 4, "test1": 7, "test2": 4}
SPLITS = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1", "test2"]}


def write_store(path: Path, first_vertex: int = 100) -> Store:
    rng = np.random.default_rng(0)
    vertex = first_vertex + 5 * np.arange(VOXELS)
    with StoreWriter(
        path, subject="1", tr_s=1.0, lag_s=4.0, fps=FRAMES, size=SIZE, splits=SPLITS, vertex=vertex
    ) as writer:
        scene = 0
        for segment, n in SCANS.items():
            repeats = rng.normal(size=(2, n, VOXELS)).astype(np.float32)
            writer.write_fmri(segment, repeats.mean(axis=0), repeats)
            writer.write_frames(segment, rng.integers(0, 256, (n, FRAMES, SIZE, SIZE, 3), dtype=np.uint8))
            scenes = scene + np.repeat(np.arange(n) // 2, FRAMES).reshape(n, FRAMES)
            writer.write_scene(segment, scenes)
            scene = int(scenes.max()) + 1
            captions = [f"a dog number {i}" for i in range(n)]
            writer.write_captions(segment, captions, [[caption] * FRAMES for caption in captions])
        return writer.finish()


def run(settings: Recipe, run_dir: Path, progress: Progress | None = None) -> None:
    """The stage by itself, which leaves the pipeline beside its clips."""
    reconstruct.run(StageContext.of(settings, run_dir, "reconstruct", progress))


def recipe(**changes) -> Recipe:
    settings = {"steps": 2, "guidance_scale": 2.0, "batch_size": 4, "precision": "fp32"} | changes
    seed = settings.pop("seed", 3)
    return parse_recipe(
        {"seed": seed, "foundation": FOLDERS["kit"], "reconstruct": settings, "evaluate": {"block_s": 2}}
    )


FOLDERS: dict[str, str] = {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder as ``cotrain`` leaves it."""
    folder = tmp_path_factory.mktemp("run")
    FOLDERS["kit"] = str(build_kit(folder / "kit", SIZES))
    foundation = Foundation(FOLDERS["kit"])
    store = write_store(folder / "prepare" / "store.zarr")
    length, width = foundation.condition_length, foundation.condition_width
    encoder = tiny_encoder(condition_length=length, condition_width=width, voxel_id=store.voxel_id)
    encoder.save_pretrained(folder / "cotrain" / "fmri_encoder")
    VideoUNet.from_unet2d(foundation.unet).save_pretrained(folder / "cotrain" / "unet")
    return folder


@pytest.fixture(scope="module")
def finished(trained: Path) -> Path:
    run(recipe(), trained)
    return trained


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Path:
    for part in ("prepare", "cotrain"):
        shutil.copytree(trained / part, tmp_path / part)
    return tmp_path


def clips_of(folder: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder / "reconstruct" / "clips.zarr", mode="r")
    return {name: group[name][:] for name in group.attrs["names"]}


def assert_nearly(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_run_writes_clips_with_their_description(finished) -> None:
    group = zarr.open_group(finished / "reconstruct" / "clips.zarr", mode="r")
    names = ["truth", "reconstruction", "shuffled", "mean", "caption", "vae", "random_train", "constant"]
    assert group.attrs["names"] == names and sorted(group.array_keys()) == sorted(names)
    assert group.attrs["complete"] and not group.attrs["is_transductive"]
    assert group.attrs["labels"]["reconstruction"].endswith("mean training fMRI (inductive)")
    assert all(clips.shape == (11, FRAMES, SIZE, SIZE, 3) for clips in clips_of(finished).values())
    described = json.loads((finished / "reconstruct" / "windows.json").read_text())
    assert [item["segment"] for item in described] == ["test1"] * 7 + ["test2"] * 4
    assert [item["block"] for item in described] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5]
    assert described[8] == {"segment": "test2", "scan": 1, "scene": 12, "block": 4, "caption": "a dog number 1"}
    preview = cv2.imread(str(finished / "reconstruct" / "preview.png"))
    assert preview.shape == (2 * (2 * 96 + 8), 6 * 100, 3)


def test_the_clips_that_need_no_generator(finished) -> None:
    clips, store = clips_of(finished), Store.open(finished / "prepare" / "store.zarr")
    truth = np.concatenate([store.frames(segment) for segment in ("test1", "test2")])
    train = np.concatenate([store.frames(segment) for segment in ("seg1", "seg2")])
    np.testing.assert_array_equal(clips["truth"], truth)
    assert all((clip == train).all(axis=(1, 2, 3, 4)).any() for clip in clips["random_train"])
    mean = train.reshape(-1, SIZE, SIZE, 3).astype(float).mean(axis=0).round()
    np.testing.assert_array_equal(clips["constant"], np.broadcast_to(mean, truth.shape))
    foundation = Foundation(FOLDERS["kit"])
    decoded = foundation.decode_latents(foundation.encode_latents(truth.reshape(-1, SIZE, SIZE, 3)))
    assert_nearly(clips["vae"], decoded.reshape(truth.shape))


def test_each_generated_clip_can_be_made_alone(finished) -> None:
    """Reconstruction and controls differ in the condition only: same pipeline, same noise, any batch."""
    clips, store = clips_of(finished), Store.open(finished / "prepare" / "store.zarr")
    pipe, foundation = MindVideoPipeline.from_pretrained(finished / "reconstruct" / "model"), Foundation(FOLDERS["kit"])
    windows, train = Windows(store, "test", 2), Windows(store, "train", 2)
    mean = train.fmri(np.arange(11)).astype(float).mean(axis=0)
    np.testing.assert_allclose(pipe.train_mean, mean, atol=1e-6)
    everyone = pipe.encode(windows.fmri(np.arange(11)))
    assert (everyone[0] - everyone[1]).abs().max() > 0.05  # or the controls below would be no test

    def clip(i: int, **condition) -> np.ndarray:
        latents = window_noise(3, i, (4, FRAMES, 4, 4))[None]
        return pipe(num_frames=FRAMES, height=SIZE, width=SIZE, latents=latents, **condition).frames[0]

    for i in (1, 9):
        assert_nearly(clips["reconstruction"][i], clip(i, fmri=windows.fmri(np.array([i]))))
        matches = [
            np.abs(clips["shuffled"][i].astype(int) - clip(i, fmri=windows.fmri(np.array([j])))).max() <= 1
            for j in np.flatnonzero(windows.scene != windows.scene[i])
        ]
        assert any(matches)
        assert_nearly(clips["mean"][i], clip(i, fmri=mean[None], negative="none"))
        tokens, empty = foundation.encode_text([f"a dog number {windows.scan[i]}"])[0], foundation.encode_text([""])[0]
        assert_nearly(clips["caption"][i], clip(i, condition=tokens, negative_tokens=empty))


def test_a_stopped_run_goes_on_to_the_same_bits(finished, fresh, monkeypatch) -> None:
    def stop(done: int, total: int, figures: dict) -> None:
        assert total == 4 * 3
        if done == 8:  # two batches of "shuffled"
            raise KeyboardInterrupt

    settings = recipe(controls=["shuffled", "constant"])
    with pytest.raises(KeyboardInterrupt):
        run(settings, fresh, stop)
    group = zarr.open_group(fresh / "reconstruct" / "clips.zarr", mode="r")
    assert not group.attrs["complete"]
    assert group.attrs["done"] == {"truth": 3, "reconstruction": 3, "shuffled": 2, "constant": 0}
    made: list[str] = []
    make = ClipMaker.make
    monkeypatch.setattr(ClipMaker, "make", lambda self, name, at: made.append(name) or make(self, name, at))
    run(settings, fresh)
    assert made == ["shuffled", "constant", "constant", "constant"]
    for name, clips in clips_of(fresh).items():
        np.testing.assert_array_equal(clips, clips_of(finished)[name])
    made.clear()
    run(settings, fresh)
    assert not made
    encoder = FmriEncoder.from_pretrained(fresh / "cotrain" / "fmri_encoder")
    encoder.norm.weight.data.mul_(1.5)
    encoder.save_pretrained(fresh / "cotrain" / "fmri_encoder")
    run(settings, fresh)
    assert len(made) == 4 * 3  # other weights: every clip again


def test_results_do_not_depend_on_the_batch_size(finished, fresh) -> None:
    run(recipe(batch_size=3, controls=["shuffled", "random_train"]), fresh)
    for name, clips in clips_of(fresh).items():
        assert_nearly(clips, clips_of(finished)[name])


def test_fewer_windows_one_frame_and_a_transductive_negative(finished, fresh) -> None:
    run(recipe(max_windows=5, num_frames=1, negative="test_mean", controls=["mean"], scheduler="unipc"), fresh)
    group = zarr.open_group(fresh / "reconstruct" / "clips.zarr", mode="r")
    assert group.attrs["is_transductive"] and "transductive" in group.attrs["labels"]["reconstruction"]
    described = json.loads((fresh / "reconstruct" / "windows.json").read_text())
    assert [item["block"] for item in described] == [1, 1, 4, 4]
    np.testing.assert_array_equal(clips_of(fresh)["truth"], clips_of(finished)["truth"][[2, 3, 7, 8], 1:2])
    store = Store.open(fresh / "prepare" / "store.zarr")
    pipe, windows = MindVideoPipeline.from_pretrained(fresh / "reconstruct" / "model"), Windows(store, "test", 2)
    mean = windows.mean_fmri()
    alone = pipe(
        windows.fmri(np.array([7])), num_frames=1, height=SIZE, width=SIZE, negative="test_mean", test_mean=mean,
        latents=window_noise(3, 7, (4, 1, 4, 4))[None],
    ).frames  # fmt: skip
    assert_nearly(clips_of(fresh)["reconstruction"][2:3], alone)


def test_what_cannot_be_reconstructed_is_refused(trained, fresh, tmp_path) -> None:
    shutil.rmtree(fresh / "prepare")
    write_store(fresh / "prepare" / "store.zarr", first_vertex=101)
    with pytest.raises(ModelError, match="voxels of another subject"):
        run(recipe(), fresh)
    shutil.rmtree(fresh / "cotrain" / "unet")
    shutil.copytree(trained / "prepare", fresh / "prepare", dirs_exist_ok=True)
    with pytest.raises(ModelError, match="cotrain/unet, found none; run the stage cotrain first"):
        run(recipe(), fresh)
    assert not (fresh / "reconstruct" / "model").exists() and not (fresh / "reconstruct" / "clips.zarr").exists()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 99))
def test_derangement_is_a_permutation_that_leaves_no_scene_in_place(scene: list[int], seed: int) -> None:
    names = np.array(scene) * 11
    if 2 * max(np.unique(names, return_counts=True)[1]) > len(names):
        with pytest.raises(DataError, match="more than half"):
            derange_scenes(names, np.random.default_rng(seed))
        return
    found = derange_scenes(names, np.random.default_rng(seed))
    assert sorted(found) == list(range(len(names)))
    assert (names[found] != names).all()


def test_derangement_mixes() -> None:
    """Windows of one scene do not all go to one other scene, and every other scene is reached about equally often."""
    scene = np.repeat(np.arange(6), 4)
    rng = np.random.default_rng(0)
    reached = np.zeros((6, 6))
    for _ in range(400):
        np.add.at(reached, (scene, scene[derange_scenes(scene, rng)]), 1)
    share = reached / reached.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share[~np.eye(6, dtype=bool)], 0.2, atol=0.05)


def test_choose_windows_takes_whole_blocks_evenly() -> None:
    blocks = np.repeat(np.arange(12), 5)
    assert list(choose_windows(blocks, None)) == list(range(60)) == list(choose_windows(blocks, 60))
    assert list(np.unique(blocks[choose_windows(blocks, 17)])) == [2, 6, 10]
    assert len(choose_windows(blocks, 17)) == 15
    assert list(blocks[choose_windows(blocks, 2)]) == [6] * 5


def test_noise_follows_from_seed_and_window_alone() -> None:
    noises = {(s, w): window_noise(s, w, (2, 50, 20)) for s in (0, 1) for w in (0, 1, 300)}
    flat = torch.stack([value.flatten() for value in noises.values()])
    assert torch.equal(noises[1, 300], window_noise(1, 300, (2, 50, 20)))
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.1
    assert abs(float(flat.std()) - 1) < 0.02


def test_pick_frames_takes_the_middle_of_each_part() -> None:
    clips = np.arange(2 * 6).reshape(2, 6, 1, 1, 1)
    assert pick_frames(clips, 3)[0].ravel().tolist() == [1, 3, 5]
    assert pick_frames(clips, 1)[1].ravel().tolist() == [9]
    assert pick_frames(clips, 6)[0].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert pick_frames(clips, 12)[0].ravel().tolist() == sorted([*range(6)] * 2)


def test_preview_has_truth_above_reconstruction(tmp_path) -> None:
    truth = np.zeros((3, 5, 40, 40, 3), np.uint8)
    truth[:, 2] = [200, 10, 30]
    write_preview(tmp_path / "preview.png", truth, 255 - truth)
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "preview.png")), cv2.COLOR_BGR2RGB)
    assert picture.shape == (2 * 80 + 8, 3 * 84, 3)
    assert picture[40, 100].tolist() == [200, 10, 30] and picture[120, 100].tolist() == [55, 245, 225]
