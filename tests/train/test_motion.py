"""The foundation's part 'motion': written by the kit, read by ``animate``, refused where it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.parts import build_kit
from kit.save import save_generator
from mindvideo.errors import ModelError
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators.video_unet import VideoUNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoUNet]:
    """A kit whose generator went on with clips: every weight of it moved."""
    out = build_kit(tmp_path_factory.mktemp("kit"), "test", seed=4)
    video = VideoUNet.from_unet2d(Foundation(out).unet, frame_positions=True, noise_share=0.3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in video.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.01)
    save_generator(video, out)
    return out, video


def test_generator_and_motion_give_back_the_inflated_one(trained: tuple[Path, VideoUNet]) -> None:
    out, video = trained
    foundation = Foundation(out)
    again = VideoUNet.from_foundation(foundation.unet, foundation.motion_settings, foundation.motion())
    expected = {name: weight.half().float() for name, weight in video.state_dict().items()}
    assert all(torch.equal(weight, expected[name]) for name, weight in again.state_dict().items())
    assert any("attn_temp" in name and weight.abs().max() > 0 for name, weight in foundation.motion().items())


def test_a_foundation_without_motion_says_what_to_do(trained: tuple[Path, VideoUNet], tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("motion"))
    with pytest.raises(ModelError, match=r"part 'motion'.*animate\.motion=none"):
        Foundation(folder).motion()
    assert Foundation(folder).identity != Foundation(trained[0]).identity


def test_motion_of_another_generator_is_refused(trained: tuple[Path, VideoUNet], tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(trained[0], folder)
    weights = load_file(folder / "motion" / "model.safetensors")
    lost = min(weights)
    save_file(
        {name: weight for name, weight in weights.items() if name != lost}, folder / "motion" / "model.safetensors"
    )
    foundation = Foundation(folder)
    with pytest.raises(ModelError, match=f"1 missing, unexpected or misshapen, first {lost}"):
        VideoUNet.from_foundation(foundation.unet, foundation.motion_settings, foundation.motion())


def test_a_generator_is_inflated_as_its_motion_was_trained(trained: tuple[Path, VideoUNet]) -> None:
    assert Foundation(trained[0]).motion_settings == {"frame_positions": True, "noise_share": 0.3}


def test_a_card_does_not_change_a_foundation(trained: tuple[Path, VideoUNet], tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(trained[0], folder)
    before = Foundation(folder).identity
    (folder / "vae" / "card.md").write_text("better words")
    assert Foundation(folder).identity == before
    (folder / "vae" / "config.json").write_text((folder / "vae" / "config.json").read_text() + " ")
    assert Foundation(folder).identity != before
