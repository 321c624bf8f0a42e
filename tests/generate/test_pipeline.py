from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from tiny_pipeline import LENGTH, VOXELS, WIDTH, WINDOW, tiny_encoder, tiny_unet, tiny_vae

from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.generate.film import Film, FilmSettings, frames_per_scan
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.scheduler import make_scheduler

NOISE = (3, 3, 4, 4, 6)  # B, c, F, h, w


def noise(batch: int = 3, frames: int = 4, seed: int = 6) -> torch.Tensor:
    return torch.randn(batch, 3, frames, 4, 6, generator=torch.Generator().manual_seed(seed))


class ToyUNet(ModelMixin, ConfigMixin):
    """A denoiser whose output is known in closed form."""

    @register_to_config
    def __init__(self, in_channels: int = 3, sample_size: tuple = (4, 6), cross_attention_dim: int = WIDTH) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.4))
        self.batches: list[int] = []

    constant_condition = nullcontext  # it projects none

    def forward(self, latents, timestep, condition):
        self.batches.append(len(latents))
        return SimpleNamespace(sample=toy(latents, float(timestep), condition.mean((1, 2)), float(self.weight)))


def toy(latents, timestep, mean, weight=0.4):
    return weight * latents + 1e-4 * timestep + mean.reshape(-1, 1, 1, 1, 1)


@pytest.fixture
def toy_pipeline() -> MindVideoPipeline:
    return MindVideoPipeline(
        tiny_encoder(), ToyUNet(), tiny_vae(), make_scheduler({}, "ddim"), train_mean=torch.ones(WINDOW, VOXELS)
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_with_guidance_equals_the_explicit_update(toy_pipeline, prediction) -> None:
    toy_pipeline.scheduler = make_scheduler({"prediction_type": prediction}, "ddim")
    wanted, unwanted = torch.randn(2, 3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(7)).double()
    steps, scale = 4, 3.5
    found = toy_pipeline(
        condition=wanted.float(), negative_tokens=unwanted[:1].float(), latents=noise(), num_frames=4,
        num_inference_steps=steps, guidance_scale=scale, output_type="latent",
    ).frames  # fmt: skip
    alpha = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    z = noise().double().numpy()
    for i in reversed(range(steps)):
        t = i * 250 + 1
        a, before = alpha[t], alpha[t - 250] if t >= 250 else alpha[0]
        positive = toy(z, t, wanted.mean((1, 2)).numpy())
        negative = toy(z, t, unwanted[:1].mean((1, 2)).numpy())
        out = negative + scale * (positive - negative)
        epsilon = out if prediction == "epsilon" else np.sqrt(a) * out + np.sqrt(1 - a) * z
        clean = (z - np.sqrt(1 - a) * epsilon) / np.sqrt(a)
        z = np.sqrt(before) * clean + np.sqrt(1 - before) * epsilon
    np.testing.assert_allclose(found.numpy(), z, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_every_sampler_reaches_the_data_of_a_perfect_denoiser(toy_pipeline, name) -> None:
    """With all data equal to one clip the ideal noise is known, and any solver must end at that clip."""
    clean = noise(seed=8)
    scheduler = make_scheduler({}, name)
    alpha = torch.as_tensor(scheduler.alphas_cumprod)

    def perfect(latents, timestep, condition):
        a = alpha[int(timestep)]
        return SimpleNamespace(sample=(latents - a.sqrt() * clean) / (1 - a).sqrt())

    toy_pipeline.unet.forward = perfect
    toy_pipeline.scheduler = scheduler
    tokens = torch.zeros(3, LENGTH, WIDTH)
    found = toy_pipeline(
        condition=tokens, negative="none", latents=noise(), num_frames=4, num_inference_steps=12, output_type="latent"
    ).frames
    assert (found - clean).abs().max() < 0.15
    assert scheduler.config.steps_offset == 1
    assert scheduler.config.timestep_spacing == ("leading" if name == "ddim" else "trailing")


def test_scheduler_keeps_what_the_foundation_states() -> None:
    config = {
        "num_train_timesteps": 400,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
        "skip_prk_steps": 1,
    }
    for name in ("ddim", "dpm++", "unipc"):
        made = make_scheduler(config, name).config
        assert (made.num_train_timesteps, made.beta_schedule, made.prediction_type) == (400, "linear", "v_prediction")
        assert made.beta_end == 0.012
    assert make_scheduler({}, "ddim").config.set_alpha_to_one is False
    assert make_scheduler({}, "ddim").config.clip_sample is False
    with pytest.raises(SettingError, match=r"ddim, dpm\+\+, unipc, found 'euler'"):
        make_scheduler({}, "euler")


def test_forward_passes_are_not_wasted(toy_pipeline, fmri) -> None:
    def passes(**arguments) -> list[int]:
        toy_pipeline.unet.batches.clear()
        toy_pipeline(
            **({"num_inference_steps": 2, "latents": noise(), "num_frames": 4} | arguments), output_type="latent"
        )
        return toy_pipeline.unet.batches

    assert passes(fmri=fmri) == [6, 6]
    assert passes(fmri=fmri, guidance_scale=1.0) == [3, 3]
    assert passes(fmri=fmri, negative="none") == [3, 3]
    mean = toy_pipeline.encode(toy_pipeline.train_mean[None])
    assert passes(condition=mean.expand(3, -1, -1), negative_tokens=mean) == [3, 3]


def test_negative_variants(pipeline, fmri) -> None:
    def clip(**arguments):
        return pipeline(fmri, num_frames=4, latents=noise(), output_type="latent", **arguments).frames

    default = clip()
    assert torch.equal(default, clip(negative=pipeline.train_mean))
    assert torch.equal(default, clip(negative=pipeline.train_mean.numpy()))
    assert torch.equal(default, clip(negative="test_mean", test_mean=pipeline.train_mean))
    assert torch.equal(clip(negative="null"), clip(negative_tokens=pipeline.null_condition[None]))
    assert torch.equal(clip(negative="none"), clip(guidance_scale=1.0))
    others = [clip(negative="null"), clip(negative="none"), clip(negative=fmri[1])]
    assert all((default - other).abs().max() > 1e-3 for other in others)


def test_a_clip_does_not_depend_on_its_batch(pipeline, fmri) -> None:
    together = pipeline(fmri, num_frames=4, latents=noise(), output_type="float").frames
    for i in range(3):
        alone = pipeline(fmri[i : i + 1], num_frames=4, latents=noise()[i : i + 1], output_type="float").frames
        np.testing.assert_allclose(alone[0], together[i], atol=2e-5)
    generators = [torch.Generator().manual_seed(s) for s in (11, 12, 13)]
    together = pipeline(fmri, num_frames=4, generator=generators, output_type="float").frames
    alone = pipeline(fmri[2:], num_frames=4, generator=torch.Generator().manual_seed(13), output_type="float").frames
    np.testing.assert_allclose(alone[0], together[2], atol=2e-5)


def test_outputs(pipeline, fmri) -> None:
    given = {"fmri": fmri.numpy(), "num_frames": 4, "latents": noise()}
    pixels, values = pipeline(**given).frames, pipeline(**given, output_type="float").frames
    latents = pipeline(**given, output_type="latent").frames
    assert pixels.shape == values.shape == (3, 4, 8, 12, 3) and pixels.dtype == np.uint8 and values.dtype == np.float32
    assert latents.shape == NOISE
    np.testing.assert_array_equal(pixels, np.round(values * 255).astype(np.uint8))
    with torch.no_grad():  # frame 2 of clip 1 by hand
        frame = pipeline.vae.decode(latents[1, :, 2][None] / 0.21).sample[0]
    np.testing.assert_allclose(values[1, 2], (frame / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy(), atol=1e-5)
    again = pipeline(fmri, num_frames=4, generator=torch.Generator().manual_seed(6)).frames
    np.testing.assert_array_equal(again, pixels)


def test_one_frame_and_other_sizes(pipeline, fmri) -> None:
    one = pipeline(fmri, num_frames=1, height=10, width=6)
    assert one.frames.shape == (3, 1, 10, 6, 3)
    with pytest.raises(SettingError, match="height to be a multiple of 2 pixels, found 9"):
        pipeline(fmri, height=9)
    with pytest.raises(SettingError, match="fewer than 1000 denoising steps, found 1000"):
        pipeline(fmri, num_inference_steps=1000)


def test_bf16_stays_close(pipeline, fmri) -> None:
    given = {"fmri": fmri, "num_frames": 4, "latents": noise(), "output_type": "float"}
    difference = np.abs(pipeline(**given).frames - pipeline(**given, precision="bf16").frames)
    assert 0 < difference.mean() < 0.03


def test_save_and_load(pipeline, fmri, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    parts = {path.name for path in tmp_path.iterdir()}
    assert parts == {
        "fmri_encoder", "unet", "vae", "scheduler", "model_index.json", "train_mean.safetensors",
        "null_condition.safetensors",
    }  # fmt: skip
    assert not list(tmp_path.rglob("*.bin"))
    loaded = MindVideoPipeline.from_pretrained(tmp_path)
    assert (loaded.config.num_inference_steps, loaded.config.guidance_scale) == (3, 2.5)
    assert torch.equal(loaded.train_mean, pipeline.train_mean)
    assert torch.equal(loaded.null_condition, pipeline.null_condition)
    given = {"num_frames": 4, "latents": noise()}
    np.testing.assert_array_equal(loaded(fmri, **given).frames, pipeline(fmri, **given).frames)
    loaded.save_pretrained(tmp_path / "again")
    for path in tmp_path.rglob("*.safetensors"):
        if "again" not in path.parts:
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path)).read_bytes()
    for path in (tmp_path / "again").rglob("*.json"):
        assert "_name_or_path" not in path.read_text() and str(tmp_path) not in path.read_text(), path


def test_a_call_makes_what_the_model_was_trained_on(fmri, tmp_path) -> None:
    """Not what the UNet's configuration says: Stable Diffusion 1.5's is 512 pixels, the paper's clips have 256."""
    unet = tiny_unet()  # 4 x 6 latents of 2 pixels
    pipeline = MindVideoPipeline(
        tiny_encoder(), unet, tiny_vae(), make_scheduler({}, "ddim"), num_inference_steps=2,
        train_mean=torch.zeros(WINDOW, VOXELS), num_frames=5, frame_size=14,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path)
    loaded = MindVideoPipeline.from_pretrained(tmp_path)
    assert loaded(fmri).frames.shape == (3, 5, 14, 14, 3)
    assert loaded(fmri, num_frames=2, height=8).frames.shape == (3, 2, 8, 14, 3)
    film = Film(loaded, np.zeros((2, VOXELS), np.float32), FilmSettings(frames_per_scan(2.0, None, None, 5)))
    assert film.n_frames == 10 and film.latent_size == (7, 7)
    unsized = MindVideoPipeline(tiny_encoder(), unet, tiny_vae(), make_scheduler({}, "ddim"))
    assert unsized.latent_shape(1) == (3, 1, 4, 6)


@pytest.mark.parametrize("part", ["fmri_encoder", "unet", "vae", "scheduler", "model_index.json"])
def test_a_missing_part_is_named(pipeline, tmp_path, part) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=part):
        MindVideoPipeline.from_pretrained(tmp_path)


def test_a_missing_weight_is_named(pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    for part, key in (("vae", "decoder.conv_in.bias"), ("unet", "conv_in.bias"), ("fmri_encoder", "norm.bias")):
        path = next((tmp_path / part).glob("*.safetensors"))
        whole = load_file(path)
        save_file({name: tensor for name, tensor in whole.items() if name != key}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=key):
            MindVideoPipeline.from_pretrained(tmp_path)
        save_file(whole, path, {"format": "pt"})


def test_a_foreign_index_is_refused(pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    for wrong, named in (
        ({"_class_name": "OtherPipeline"}, "OtherPipeline"),
        ({"scheduler": ["diffusers", "UNet2DModel"]}, "UNet2DModel"),
        ({"scheduler": None}, "found none"),
    ):
        path.write_text(json.dumps(index | wrong))
        with pytest.raises(ModelError, match=named):
            MindVideoPipeline.from_pretrained(tmp_path)


def test_parts_that_do_not_fit_are_refused() -> None:
    scheduler = make_scheduler({}, "ddim")
    with pytest.raises(ModelError, match=r"\[14\], found 12"):
        MindVideoPipeline(tiny_encoder(), tiny_unet(width=14), tiny_vae(), scheduler)
    with pytest.raises(ModelError, match="VAE's 5 latent channels, found 3"):
        MindVideoPipeline(tiny_encoder(), tiny_unet(), tiny_vae(channels=5), scheduler)
    with pytest.raises(ModelError, match=r"train_mean of shape \(2, 37\) .* found \(37,\)"):
        MindVideoPipeline(tiny_encoder(), tiny_unet(), tiny_vae(), scheduler, train_mean=torch.zeros(37))
    with pytest.raises(ModelError, match=r"null_condition of shape \(5, 12\) .* found \(4, 12\)"):
        MindVideoPipeline(tiny_encoder(), tiny_unet(), tiny_vae(), scheduler, null_condition=torch.zeros(4, 12))


def test_bad_input_is_refused(pipeline, fmri) -> None:
    with pytest.raises(ModelError, match=r"expected fMRI of shape \(B, 2, 37\), found \(3, 2, 36\)"):
        pipeline(fmri[..., :36])
    with pytest.raises(ModelError, match=r"\(B, 2, 37\), found \(2, 37\)"):
        pipeline(fmri[0])
    with pytest.raises(DataError, match="finite"):
        pipeline(fmri.clone().fill_(float("nan")))
    with pytest.raises(SettingError, match="exactly one"):
        pipeline()
    with pytest.raises(ModelError, match=r"condition of shape \(B, 5, 12\)"):
        pipeline(condition=torch.zeros(3, LENGTH, WIDTH + 1))
    with pytest.raises(ModelError, match=r"latents of shape \(3, 3, 6, 4, 6\), found \(3, 3, 4, 4, 6\)"):
        pipeline(fmri, latents=noise())
    with pytest.raises(SettingError, match="one generator per clip, 3, found 1"):
        pipeline(fmri, generator=[torch.Generator()])
    with pytest.raises(SettingError, match="output_type"):
        pipeline(fmri, output_type="pil")
