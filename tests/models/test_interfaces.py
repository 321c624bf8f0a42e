"""Encoders and generators through their interfaces: one that knows two people, one that draws attention maps, names, settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mindvideo.errors import SettingError
from mindvideo.models.encoders import CustomEncoder, encoder_arguments, encoder_class, load_encoder
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.encoders.read_out import ReadOutEncoder
from mindvideo.models.generators import generator_class
from mindvideo.voxel_layout import VoxelLayout

SIZES = dict(window=2, condition_length=3, condition_width=4)


def _two_people() -> CustomEncoder:
    layouts = [VoxelLayout(7, "a", np.arange(7), np.ones(7)), VoxelLayout(5, "b")]
    own = encoder_arguments("two_people_encoder:TwoPeople", 0.1, {})
    return encoder_class("two_people_encoder:TwoPeople").build(layouts, SIZES | {"input_scale": 2.0}, {}, **own).eval()


def test_a_custom_encoder_is_told_who_it_is(tmp_path: Path) -> None:
    encoder, person = _two_people(), torch.tensor([1, 0, 1])
    fmri = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(2))
    found = encoder(fmri, person)
    for row, voxels in enumerate((5, 7, 5)):
        one = encoder.body.maps[person[row]]((fmri[row, :, :voxels] / 2).flatten()).unflatten(0, (3, 4))
        torch.testing.assert_close(found[row], one)
    torch.testing.assert_close(encoder(fmri[1:2]), found[1:2])  # the first person where nothing is said
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder").eval()
    torch.testing.assert_close(loaded(fmri, person), found)
    assert [len(voxels) for voxels in loaded.token_voxels(1)] == [2, 2, 1]
    assert loaded.attention_maps(fmri).tolist() == [pytest.approx([0.5, 0.3, 0.2])]


def test_an_encoder_of_one_person_refuses_two() -> None:
    layouts = [VoxelLayout(7), VoxelLayout(5)]
    architecture = dict(patch_size=4, patch_weights="shared", embed_dim=8, depth=1, num_heads=2, mlp_ratio=1.0)
    with pytest.raises(
        SettingError, match=r"one person with the encoder 'FmriEncoder', found 2; .*align\.encoder=areas"
    ):
        FmriEncoder.build(layouts, SIZES, architecture)
    with pytest.raises(SettingError, match="one person with the encoder"):
        encoder_class("convolution_encoder:ConvolutionEncoder").build(
            layouts, SIZES, {}, encoder="convolution_encoder:ConvolutionEncoder", encoder_settings={}
        )


def test_names_and_their_settings() -> None:
    assert encoder_class("paper") is FmriEncoder and encoder_class("read_out") is ReadOutEncoder
    assert encoder_arguments("read_out", 0.2, {"head_rank": 5}) == {"dropout": 0.2, "head_rank": 5}
    with pytest.raises(
        SettingError, match=r"one of paper, read_out, areas, ridge_areas or module:Class, found 'transformer'"
    ):
        encoder_class("transformer")
    with pytest.raises(SettingError, match=r"'paper' among has_temporal_attention, layer_norm, found head_rank"):
        encoder_arguments("paper", 0.2, {"head_rank": 5})
    with pytest.raises(SettingError, match=r"animate\.generator to be one of video_unet, found 'gan'"):
        generator_class("gan")


def test_a_layout_comes_back_from_json() -> None:
    layout = VoxelLayout(3, "abc", np.array([5, 59_411, 0], np.int32), np.array([1, 360, 181], np.int16))
    again = VoxelLayout.from_config(layout.to_config())
    assert again.vertex.tolist() == [5, 59_411, 0] and again.area.tolist() == [1, 360, 181]
    assert again.place.tolist() == layout.place.tolist() and again.place[[0, 2]].tolist() == [
        0,
        1,
    ]  # V1, left and right
    parcels = VoxelLayout(2, "def", np.array([-9, -7], np.int32), np.array([1, 3], np.int16), ("a", "b", "c"))
    again = VoxelLayout.from_config(parcels.to_config())
    assert again.parcels == ("a", "b", "c") and again.place.tolist() == [0, 2] and again.num_places == 3
