"""The kit's losses against plain loops, and towers that start from the image classifier's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from transformers import BlipForConditionalGeneration, CLIPVisionModelWithProjection, ViTForImageClassification

from mindvideo.foundation import kit
from mindvideo.foundation.generator_tasks import MotionTask
from mindvideo.foundation.pool import Pool
from mindvideo.foundation.tasks import (
    ClassifierTask,
    VaeDecoderTask,
    dense_loss,
    move,
    patch_cover,
    start_blip_from_images,
    start_clip_from_images,
)
from mindvideo.simulate.scenes import plan_clip, render_scene
from mindvideo.train.loop import Optimise


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_dense_loss_against_a_loop() -> None:
    logits, label = randn(3, 5, 8), torch.tensor([2, 6, 0])
    cover = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    total, weights = 0.0, 0.0
    for row in range(3):
        for patch in range(5):
            chance = logits[row, patch].softmax(0)
            c = float(cover[row, patch])
            entropy = -(c * float(chance[label[row]].log()) + (1 - c) * float(chance[7].log()))
            total += (c + 0.05) * entropy
            weights += c + 0.05
    assert float(dense_loss(logits, label, cover)) == pytest.approx(total / weights, rel=1e-5)


def test_patch_cover_is_the_mean_of_its_cells() -> None:
    cover = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(3))
    coarse = patch_cover(cover, 8)
    assert coarse.shape == (2, 64)
    assert float(coarse[1, 8 * 3 + 5]) == pytest.approx(float(cover[1, 6:8, 10:12].mean()), rel=1e-5)


def test_thing_cover_counts_the_pixels_that_the_thing_changes() -> None:
    clip = plan_clip(np.random.default_rng(5), 3, 3.0)
    cover = clip.thing_cover(32, 8)
    assert cover.shape == (3, 8, 8)
    hidden = render_scene(clip.scene, clip.times_s, 32, clip.duration_s, hide_thing=True)
    changed = (np.abs(clip.frames(32).astype(int) - hidden).max(-1) > 12).sum()
    assert cover.sum() * 16 == pytest.approx(changed)
    assert 0 < cover.max() <= 1


def test_blip_sees_what_the_classifier_sees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = kit.build_image_classifier(kit.TEST).eval()
    blip: BlipForConditionalGeneration = kit.build_captioner(kit.TEST, kit.build_caption_tokenizer()).eval()
    for weight in image.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    start_blip_from_images(blip, image)
    pixels = randn(2, 3, kit.TEST.size, kit.TEST.size)
    with torch.inference_mode():
        ours, theirs = image.vit(pixels).last_hidden_state, blip.vision_model(pixels).last_hidden_state
    eps = image.config.layer_norm_eps, blip.config.vision_config.layer_norm_eps
    assert max(eps) < 1e-4
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_clip_takes_blocks_and_embeddings() -> None:
    torch.manual_seed(0)
    image: ViTForImageClassification = kit.build_image_classifier(kit.TEST)
    clip: CLIPVisionModelWithProjection = kit.build_image_encoder(kit.TEST)
    start_clip_from_images(clip, image)
    pixels = randn(2, 3, kit.TEST.size, kit.TEST.size, seed=4)
    with torch.inference_mode():
        torch.testing.assert_close(
            image.vit.embeddings(pixels), clip.vision_model.embeddings(pixels), atol=1e-5, rtol=1e-5
        )
    assert torch.equal(
        image.vit.state_dict()["layers.0.mlp.fc2.weight"],
        clip.vision_model.state_dict()["encoder.layers.0.mlp.fc2.weight"],
    )


def test_motion_weights_have_mean_one_and_favour_the_thing() -> None:
    frames = np.zeros((4, 3, 8, 8, 3), np.uint8)
    cover = np.zeros((4, 3, 16, 16), np.uint8)
    cover[2, 1, :8] = 255
    scenes = [plan_clip(np.random.default_rng(seed), 3).scene for seed in range(4)]
    task = MotionTask(torch.nn.Linear(1, 1), None, randn(4, 3, 4, 2, 2), lambda captions: randn(1), Pool(frames, scenes, cover),
                      Optimise(steps=1, batch_size=2))  # fmt: skip
    weight = task.weight(np.array([0, 2]), np.tile(np.arange(3), (2, 1)))
    assert weight.shape == (2, 1, 3, 2, 2)
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight[1, 0, 1, 0, 0] / weight[0, 0, 0, 0, 0]) == pytest.approx(3.0)
    assert float(weight[1, 0, 1, 1, 0] / weight[0, 0, 0, 0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, -1), (-1, 1), (2, 0)])
def test_pictures_and_their_cover_move_together(down: int, right: int) -> None:
    pixels, cover = randn(2, 3, 12, 12), torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) + 0.1
    moved, moved_cover = move(pixels, cover, down, right)
    for y in range(12):
        for x in range(12):
            source = pixels[..., min(max(y - 3 * down, 0), 11), min(max(x - 3 * right, 0), 11)]
            assert torch.equal(moved[..., y, x], source)
    for y in range(4):
        for x in range(4):
            is_inside = 0 <= y - down < 4 and 0 <= x - right < 4
            expected = cover[:, y - down, x - right] if is_inside else torch.zeros(2)
            assert torch.equal(moved_cover[:, y, x], expected)


def random_pool(clips: int, frames: int, size: int) -> Pool:
    rng = np.random.default_rng(5)
    scenes = [plan_clip(np.random.default_rng(seed), frames).scene for seed in range(clips)]
    cover = rng.integers(0, 256, (clips, frames, 16, 16), dtype=np.uint8)
    return Pool(rng.integers(0, 256, (clips, frames, size, size, 3), dtype=np.uint8), scenes, cover)


def test_decoder_learns_the_ratio_that_the_gate_measures() -> None:
    """The logged ratio is scikit-image's, averaged over pictures; the loss is its negative in natural logarithms."""
    torch.manual_seed(0)
    vae, pool, moments = kit.build_vae(kit.TEST).eval(), random_pool(3, 5, kit.TEST.size), (0, 3)
    side = kit.TEST.size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = randn(6, vae.config.latent_channels, side, side)
    task = VaeDecoderTask(vae, latents, moments, pool, Optimise(steps=1, batch_size=4))
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in task.parameters())
    loss, figures = task.loss(0, 0, np.random.default_rng(8))
    drawn = np.sort(np.random.default_rng(8).integers(6, size=4))
    with torch.no_grad():
        decoded = vae.decode(latents[drawn] / vae.config.scaling_factor).sample.permute(0, 2, 3, 1).numpy()
    ratios = []
    for row, number in enumerate(drawn):
        truth = pool.frames[number // 2, moments[number % 2]].astype(np.float64)
        ratios.append(peak_signal_noise_ratio(truth, (decoded[row].astype(np.float64) + 1) * 127.5, data_range=255))
    assert figures["psnr"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert float(loss) == pytest.approx(np.log(4) - np.log(10) / 10 * np.mean(ratios), rel=1e-4)


@pytest.mark.parametrize("is_video", [False, True])
def test_classifiers_see_pictures_that_light_and_noise_changed_a_little(is_video: bool) -> None:
    torch.manual_seed(0)
    pool = random_pool(4, 3, 48)
    pool.frames[:] = 128 + (pool.frames.astype(int) - 128) // 8  # bright enough for no clipping, one grey level a cell
    pool.frames[:] = pool.frames[:, :, :1, :1]
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"hidden_size": 4})()  # type: ignore[assignment]
    second = "motion" if is_video else "colour"
    task = ClassifierTask(model, pool, "thing", second, Optimise(steps=1, batch_size=2), is_video)
    index = np.array([0, 2, 3])
    seen, cover = task._see(index, flip=False, rng=np.random.default_rng(1))
    assert seen.shape == ((3, 3, 3, 48, 48) if is_video else (3, 3, 48, 48))
    assert cover.shape == ((3, 3, 16, 16) if is_video else (3, 16, 16))
    rng = np.random.default_rng(1)
    moments = None if is_video else rng.integers(3, size=3)
    for row, clip in enumerate(index):
        shown = pool.frames[clip] if moments is None else pool.frames[clip, moments[row]][None]
        grey = torch.from_numpy(shown[:, 0, 0].astype(np.float32)) / 127.5  # brightness above black, (F, 3)
        found = seen[row].reshape(-1, 3, 48 * 48).mean(-1) + 1
        gain = found / grey
        assert float(gain.std()) < 0.01 and 0.85 < float(gain.mean()) < 1.15  # one gain a clip
        assert float(seen[row].reshape(-1, 3, 48 * 48).std(-1).mean()) == pytest.approx(0.05, rel=0.1)
