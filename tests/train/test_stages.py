"""Every stage at tiny size, on a prepared store and a foundation of the standard classes; kills and resumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import kill_stages
from safetensors.torch import load_file

from kit.parts import build_kit
from mindvideo.config import parse_recipe
from mindvideo.data.readers.hcp import prepare_hcp
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import ModelError
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train import adapt, align, animate, cotrain, pretrain
from mindvideo.train.animate import Diffusion
from mindvideo.train.features import Features

VOXELS, SCANS, FRAMES, SIZE = 37, 12, 3, 32
COLOURS, THINGS = ("red", "blue", "green"), ("dog", "car", "man", "boat")
SEGMENTS = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1"]}
STAGES = {"pretrain": pretrain, "adapt": adapt, "align": align, "animate": animate, "cotrain": cotrain}


def write_store(path: Path) -> Store:
    rng = np.random.default_rng(0)
    writer = StoreWriter(
        path, subject="subject1", tr_s=1.5, lag_s=4.0, fps=2, size=SIZE, splits=SEGMENTS, vertex=np.arange(VOXELS) * 7
    )
    scene = 0
    for segment in ("seg1", "seg2", "seg3", "test1"):
        numbers = scene + np.arange(SCANS) // 2
        scene = int(numbers[-1]) + 1
        fmri = rng.standard_normal((SCANS, VOXELS)).astype(np.float32)
        writer.write_fmri(segment, 2 * fmri + 0.5, np.stack([fmri, fmri]))
        if segment == "test1":  # whoever looks at these finds out
            frames = np.zeros((SCANS, FRAMES, SIZE, SIZE, 3), np.uint8)
        else:
            frames = rng.integers(0, 255, (SCANS, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        writer.write_frames(segment, frames)
        writer.write_scene(segment, np.repeat(numbers[:, None], FRAMES, axis=1))
        captions = [f"a {COLOURS[n % 3]} {THINGS[n % 4]} walks" for n in numbers]
        captions = ["a secret of the test"] * SCANS if segment == "test1" else captions
        writer.write_captions(segment, captions, [[caption] * FRAMES for caption in captions])
    return writer.finish()


def make_recipe(foundation: Path, **changes):
    common = {"precision": "fp32", "checkpoint_every": 2, "log_every": 1, "batch_size": 3, "steps": 4, "lr": 1e-3}
    content = {
        "foundation": str(foundation),
        "seed": 7,
        "encoder": {
            "patch_size": 5, "embed_dim": 12, "depth": 2, "num_heads": 3, "patch_weights": "per_patch",
            "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2,
        },
        "pretrain": common,
        "adapt": common,
        "align": {**common, "steps": 5, "token_weight": 1.0, "ema_decay": 0.9, "val_every": 3, "dropout": 0.2},
        "animate": common,
        "cotrain": {**common, "accumulate": 2, "encoder_lr": 2e-3, "token_weight": 0.5},
    }  # fmt: skip
    for key, value in changes.items():
        section, name = key.split("__")
        content[section] = {**content[section], name: value}
    return parse_recipe(content)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return build_kit(tmp_path_factory.mktemp("foundation"), "test", seed=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run folder with only ``prepare``."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(1)
    (folder / "raw").mkdir()
    areas = {
        name: rng.standard_normal((23 * 11, width))
        for name, width in zip(("V1", "V2", "V3", "V4"), (9, 8, 7, 6), strict=True)
    }
    np.savez(folder / "raw" / "HCP_visual_voxel.npz", **areas)
    (folder / "run" / "prepare").mkdir(parents=True)
    prepare_hcp(folder / "raw", folder / "run" / "prepare" / "hcp.zarr")
    write_store(folder / "run" / "prepare" / "store.zarr")
    return folder / "run"


@pytest.fixture(scope="module")
def finished(prepared, kit, tmp_path_factory):
    """The same run folder after every training stage."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(prepared, folder)
    for module in STAGES.values():
        module.run(StageContext.of(make_recipe(kit), folder, module.STAGE))
    return folder


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def same_bits(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_masked_stages_log_their_loss_beside_the_mean_predictors(finished):
    for stage, voxels in (("pretrain", 30), ("adapt", VOXELS)):
        last = read_log(finished / stage)[-1]
        assert last["step"] == 3 and last["validation_loss"] > 0
        assert MaskedBrainModel.from_pretrained(finished / stage / "model").config.num_voxels == voxels
    (scans,) = Windows(Store.open(finished / "prepare" / "store.zarr"), "validation", 1).scans
    # noise around the mean: predicting the mean costs about the variance, which the model's scale makes 1
    scale = MaskedBrainModel.from_pretrained(finished / "adapt" / "model").config.input_scale
    assert scale == pytest.approx(2.0, rel=0.1)
    expected = float(scans.var()) / scale**2
    assert read_log(finished / "adapt")[-1]["mean_predictor_loss"] == pytest.approx(expected, rel=0.2)


def test_the_windowed_encoder_begins_as_the_adapted_model_on_its_own_scans(finished, kit):
    training = Windows(Store.open(finished / "prepare" / "store.zarr"), "train", 2)
    adapted = MaskedBrainModel.from_pretrained(finished / "adapt" / "model").eval()
    encoder = align.new_encoder(make_recipe(kit), finished, training, Foundation(kit)).eval()
    window = torch.from_numpy(training.fmri(np.array([3, 20])))
    with torch.inference_mode():
        tokens = encoder.tokens(window)
        for scan in range(2):
            torch.testing.assert_close(tokens[:, scan], adapted.encode(window[:, scan]))
    # and adapt saw scaled values: far from the raw ones, whose spread is 2
    assert float(adapted.patches(window[:, 0]).std()) == pytest.approx(1.0, abs=0.2)


def test_the_aligned_encoder_knows_its_voxels_and_scale(finished):
    store = Store.open(finished / "prepare" / "store.zarr")
    encoder = FmriEncoder.from_pretrained(finished / "align" / "model")
    train_fmri = np.concatenate([store.fmri(segment) for segment in SEGMENTS["train"]])
    adapted = MaskedBrainModel.from_pretrained(finished / "adapt" / "model")
    assert encoder.config.voxel_id == store.voxel_id
    for model in (encoder, adapted):
        assert model.config.input_mean == pytest.approx(float(train_fmri.mean()), rel=1e-5)
        assert model.config.input_scale == pytest.approx(float(train_fmri.std()), rel=1e-5)
    last = read_log(finished / "align")[-1]
    assert {
        "validation_token_r2",
        "ridge_token_r2",
        "validation_top1",
        "validation_token_top1",
        "token_loss",
        "contrastive_loss",
    } <= last.keys()
    assert [row["step"] for row in read_log(finished / "align") if "validation_top1" in row] == [2, 4]


def test_validation_token_r2_equals_a_direct_computation(finished, kit):
    store, foundation = Store.open(finished / "prepare" / "store.zarr"), Foundation(kit)
    encoder = FmriEncoder.from_pretrained(finished / "align" / "model").eval()
    tokens = {
        split: foundation.encode_text(Windows(store, split, 2).captions)[0].numpy() for split in ("train", "validation")
    }
    windows = Windows(store, "validation", 2)
    with torch.inference_mode():
        condition = encoder(torch.from_numpy(windows.fmri(np.arange(len(windows))))).numpy()
    mean = tokens["train"].mean(axis=0)
    expected = 1 - np.square(tokens["validation"] - condition).sum() / np.square(tokens["validation"] - mean).sum()
    assert read_log(finished / "align")[-1]["validation_token_r2"] == pytest.approx(expected, rel=1e-3)


def test_only_attention_of_the_generator_is_trained(finished, kit):
    before = Foundation(kit).unet.state_dict()
    animated, tuned = weights(finished / "animate" / "model"), weights(finished / "cotrain" / "unet")
    for name, weight in before.items():
        is_tuned = ".attn1." in name or ".attn2." in name
        assert torch.equal(weight, animated[name]) != is_tuned, name
        assert torch.equal(animated[name], tuned[name]) != is_tuned, name
    temporal = [name for name in animated if "attn_temp.to_out.0.weight" in name]
    assert temporal and all(animated[name].abs().max() > 0 for name in temporal)
    assert not same_bits(finished / "align" / "model", finished / "cotrain" / "fmri_encoder")
    last = read_log(finished / "cotrain")[-1]
    assert {"validation_loss", "validation_loss_shuffled", "diffusion_loss", "token_loss"} <= last.keys()


def test_no_stage_looks_at_the_test_windows(kit, finished, tmp_path):
    """With another test segment in the store, adapt, align and cotrain end with the same bits."""
    shutil.copytree(finished, tmp_path / "run")
    for folder in ("features", "adapt", "align", "cotrain"):
        shutil.rmtree(tmp_path / "run" / folder)
    group = tmp_path / "run" / "prepare" / "store.zarr"
    shutil.copytree(group / "fmri" / "seg3", group / "fmri" / "test1", dirs_exist_ok=True)
    shutil.copytree(group / "frames" / "seg3", group / "frames" / "test1", dirs_exist_ok=True)
    shutil.copytree(group / "captions" / "seg3", group / "captions" / "test1", dirs_exist_ok=True)
    for module in (adapt, align, cotrain):
        module.run(StageContext.of(make_recipe(kit), tmp_path / "run", module.STAGE))
    assert same_bits(tmp_path / "run" / "cotrain" / "fmri_encoder", finished / "cotrain" / "fmri_encoder")
    assert same_bits(tmp_path / "run" / "cotrain" / "unet", finished / "cotrain" / "unet")
    assert [row["loss"] for row in read_log(tmp_path / "run" / "align")] == [
        row["loss"] for row in read_log(finished / "align")
    ]


def test_a_killed_stage_goes_on_to_the_same_bits(finished, kit, tmp_path):
    kill_stages(make_recipe(kit), finished, tmp_path, "align", "cotrain")
    for stage, models in (("align", ["model"]), ("cotrain", ["fmri_encoder", "unet"])):
        folder = tmp_path / stage / stage
        assert (folder / "state").is_dir() and not any((folder / model).exists() for model in models)
        STAGES[stage].run(StageContext.of(make_recipe(kit), tmp_path / stage, stage))
        assert all(same_bits(folder / model, finished / stage / model) for model in models)
        assert [row["loss"] for row in read_log(folder)] == [row["loss"] for row in read_log(finished / stage)]


def test_stages_can_be_switched_off(prepared, kit, tmp_path):
    shutil.copytree(prepared, tmp_path / "run")
    off = {f"{stage}__enabled": False for stage in ("pretrain", "adapt", "animate", "cotrain")}
    recipe = make_recipe(kit, **off, align__loss="none", align__token_weight=0.0, align__start_from="scratch")
    for module in (pretrain, adapt, align, animate, cotrain):
        module.run(StageContext.of(recipe, tmp_path / "run", module.STAGE))
    assert read_log(tmp_path / "run" / "pretrain") == [{"step": 0, "enabled": False}]
    assert not (tmp_path / "run" / "pretrain" / "model").exists()
    assert same_bits(tmp_path / "run" / "align" / "model", tmp_path / "run" / "cotrain" / "fmri_encoder")
    inflated = VideoUNet.from_pretrained(tmp_path / "run" / "cotrain" / "unet").state_dict()
    assert all(torch.equal(weight, inflated[name]) for name, weight in Foundation(kit).unet.state_dict().items())


def test_an_encoder_of_other_voxels_is_refused(finished, kit, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "align" / "model" / "config.json"
    config.write_text(config.read_text().replace(Store.open(finished / "prepare" / "store.zarr").voxel_id, "0" * 64))
    with pytest.raises(ModelError, match="voxels of another subject"):
        cotrain.run(StageContext.of(make_recipe(kit), tmp_path / "run", "cotrain"))


def test_animate_pairs_every_runs_windows_with_their_own_captions(prepared, kit, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run")
    monkeypatch.setattr(Store, "keeps_repeats_apart", True)
    seen = []
    monkeypatch.setattr(animate, "train", lambda task, *_, **__: seen.append(task))
    animate.run(StageContext.of(make_recipe(kit), tmp_path / "run", "animate"))
    task, store = seen[0], Store.open(tmp_path / "run" / "prepare" / "store.zarr")
    captions = [caption for segment in ("seg1", "seg1", "seg2", "seg2") for caption in store.captions(segment)]
    assert len(task.latents) == len(captions) == 4 * SCANS
    assert torch.equal(task.row, task.text.rows(captions))


def test_features_equal_the_foundations_own(finished, kit):
    store, foundation = Store.open(finished / "prepare" / "store.zarr"), Foundation(kit)
    seed = align.stage_seed(7, "features")
    features = Features(finished, store, foundation)
    text = features.text(make_recipe(kit))
    assert not any("secret" in caption for caption in text.row)
    captions = store.captions("seg2")
    tokens, pooled = foundation.encode_text(captions)
    rows = text.rows(captions)
    torch.testing.assert_close(text.tokens[rows].float(), tokens.clone(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(text.pooled[rows, 0], pooled.clone(), rtol=1e-4, atol=1e-5)
    images = features.images("train", crops=2, seed=seed)
    latents = features.latents("train")
    frames = store.frames("seg2")[4]
    assert images.shape == (2 * SCANS, FRAMES, 3, foundation.condition_width)
    expected = foundation.encode_image(frames).clone()
    torch.testing.assert_close(images[SCANS + 4, :, 0].float(), expected, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(images[SCANS + 4, :, 1].float(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(
        latents[SCANS + 4].float(), foundation.encode_latents(frames).clone(), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_diffusion_loss_equals_the_textbook(prediction, kit):
    config = {**Foundation(kit).scheduler_config, "prediction_type": prediction}
    diffusion = Diffusion(config)
    generator = torch.Generator().manual_seed(0)
    clean, noise, answer = (torch.randn(2, 4, 3, 5, 6, generator=generator) for _ in range(3))
    seen = {}

    def unet(noisy, timestep, condition):
        seen["noisy"] = noisy
        return type("Output", (), {"sample": answer})

    timestep = torch.tensor([10, 700])
    losses = diffusion.losses(unet, clean, torch.zeros(2, 1, 1), noise, timestep)
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[[10, 700]].reshape(2, 1, 1, 1, 1)
    clean, noise, answer = (part.double().numpy() for part in (clean, noise, answer))
    np.testing.assert_allclose(seen["noisy"], alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, rtol=1e-4, atol=1e-5)
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    target = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]
    np.testing.assert_allclose(losses, np.square(answer - target).mean(axis=(1, 2, 3, 4)), rtol=1e-4)
    with pytest.raises(ModelError, match="prediction_type"):
        Diffusion({**config, "prediction_type": "flow"})


def test_training_and_sampling_take_one_noise_schedule_where_the_foundation_states_none():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's
    for scheduler in (Diffusion({}).scheduler, make_scheduler({}, "ddim")):
        np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-5)
