"""The foundation folder: parts load with their own libraries, wrong ones are refused, the tokenizer knows every word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.parts import IMAGE_CLASSES, VIDEO_CLASSES, build_tokenizer, caption_corpus
from mindvideo.errors import ModelError
from mindvideo.foundation.check import VISIBLE, caption_accuracy, near_miss
from mindvideo.foundation.drawn import fresh_clips
from mindvideo.models.foundation import PARTS, Foundation, embedded_kit

Cli = Callable[..., tuple[int, str]]


def test_classes_are_many_enough_for_50_way() -> None:
    assert len(set(IMAGE_CLASSES)) >= 60
    assert len(set(VIDEO_CLASSES)) >= 60


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for caption in caption_corpus(50)[:50]:
        words = caption.replace(",", " ,").split()
        assert len(tokenizer(caption).input_ids) == len(words) + 2
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).split() == words


def test_latents_against_the_vae_itself(random_kit: Path) -> None:
    foundation = Foundation(random_kit)
    frames = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = foundation.vae.encode(pixels).latent_dist.mean * foundation.vae.config.scaling_factor
        decoded = foundation.vae.decode(mean / foundation.vae.config.scaling_factor).sample
    torch.testing.assert_close(foundation.encode_latents(frames), mean)
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(foundation.decode_latents(mean), expected)


def test_text_and_image_against_the_models_themselves(random_kit: Path) -> None:
    foundation = Foundation(random_kit)
    captions = ["a big red car", "", "a small dog running left on a beach"]
    tokens, pooled = foundation.encode_text(captions)
    assert tokens.shape == (3, foundation.condition_length, foundation.condition_width)
    for row, caption in enumerate(captions):
        ids = foundation.tokenizer([caption], padding="max_length", max_length=52, return_tensors="pt").input_ids
        with torch.no_grad():
            output = foundation.text_encoder(ids)
        torch.testing.assert_close(tokens[row], output.last_hidden_state[0])
        torch.testing.assert_close(pooled[row], output.text_embeds[0])
    frames = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        images = foundation.image_encoder(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1).image_embeds
    torch.testing.assert_close(foundation.encode_image(frames), images, atol=1e-5, rtol=1e-4)


def test_probabilities_and_captions(random_kit: Path) -> None:
    foundation = Foundation(random_kit)
    planned = fresh_clips(5)
    clips = np.stack([clip.frames(32) for clip in planned])
    for found, classes in (
        (foundation.classify_images(clips[:, 2]), len(IMAGE_CLASSES)),
        (foundation.classify_videos(clips), len(VIDEO_CLASSES)),
    ):
        assert found.shape == (5, classes)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert all(isinstance(caption, str) for caption in foundation.caption(clips[:, 0]))
    assert set(caption_accuracy(foundation, planned, clips[:, 0])) == {"thing", "colour", "place"}


def test_missing_part_is_named(random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    shutil.rmtree(kit / "captioner")
    with pytest.raises(ModelError, match="captioner"):
        Foundation(kit).require("captioner")
    with pytest.raises(ModelError, match=r"no such|found none"):
        Foundation(tmp_path / "nowhere")


def test_missing_weights_are_an_error_not_random_numbers(random_kit: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    kit = shutil.copytree(random_kit, tmp_path / "kit")
    path = kit / "image_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop("visual_projection.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="visual_projection"):
        Foundation(kit).encode_image(np.zeros((1, 32, 32, 3), np.uint8))


def test_broken_json_is_named(random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    (kit / "vae" / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="vae"):
        Foundation(kit).latent_channels  # noqa: B018


def test_near_miss_changes_one_visible_word() -> None:
    rng = np.random.default_rng(3)
    for scene in [clip.scene for clip in fresh_clips(12)]:
        other = near_miss(scene, rng)
        changed = [name for name in vars(scene) if getattr(scene, name) != getattr(other, name)]
        assert len(changed) == 1
        assert changed[0] in VISIBLE


def test_check_of_an_untrained_kit_fails(cli: Cli, random_kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindvideo.foundation import check

    full = check.check_kit
    monkeypatch.setattr(check, "check_kit", lambda folder, progress=None: full(folder, count=64, progress=progress))
    code, text = cli("foundation", "check", random_kit, "--json")
    assert code == 1
    gates = json.loads(text)
    assert {gate["passed"] for gate in gates} == {False}


def test_the_shipped_kit_is_whole_and_small() -> None:
    kit = embedded_kit()
    Foundation(kit).require(*PARTS)
    assert sum(path.stat().st_size for path in kit.rglob("*") if path.is_file()) < 40e6
