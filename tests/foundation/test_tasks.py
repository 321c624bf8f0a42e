"""The kit's losses against plain loops, and towers that start from the image classifier's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlipForConditionalGeneration, CLIPVisionModelWithProjection, ViTForImageClassification

from mindvideo.foundation import kit
from mindvideo.foundation.generator_tasks import MotionTask
from mindvideo.foundation.pool import Pool
from mindvideo.foundation.tasks import (
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
