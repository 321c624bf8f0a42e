from __future__ import annotations

import pytest
import torch
from tiny_pipeline import LENGTH, VOXELS, WIDTH, WINDOW, tiny_encoder, tiny_unet, tiny_vae

from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.scheduler import make_scheduler

torch.set_num_threads(1)  # tensors this small are only slowed down by more


@pytest.fixture
def pipeline() -> MindVideoPipeline:
    mean = torch.randn(WINDOW, VOXELS, generator=torch.Generator().manual_seed(4))
    null = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(9))
    return MindVideoPipeline(
        tiny_encoder(), tiny_unet(), tiny_vae(), make_scheduler({}, "ddim"), num_inference_steps=3, guidance_scale=2.5,
        train_mean=mean, null_condition=null,
    )  # fmt: skip


@pytest.fixture
def fmri() -> torch.Tensor:
    return torch.randn(3, WINDOW, VOXELS, generator=torch.Generator().manual_seed(5))
