"""The smallest pipeline with every part real; all its dimensions differ."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet

WINDOW, VOXELS, LENGTH, WIDTH = 2, 37, 5, 12


def tiny_encoder(seed: int = 1, **changes) -> FmriEncoder:
    torch.manual_seed(seed)
    settings = {
        "num_voxels": VOXELS, "window": WINDOW, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2,
        "condition_length": LENGTH, "condition_width": WIDTH, "dropout": 0.3,
    }  # fmt: skip
    return FmriEncoder(**(settings | changes)).eval()


def tiny_unet(width: int = WIDTH, channels: int = 3) -> VideoUNet:
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=(4, 6), in_channels=channels, out_channels=channels, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=width, attention_head_dim=2,
        norm_num_groups=4,
    )  # fmt: skip
    return VideoUNet.from_unet2d(unet).eval()


def tiny_vae(channels: int = 3) -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=2, scaling_factor=0.21,
    ).eval()  # fmt: skip
