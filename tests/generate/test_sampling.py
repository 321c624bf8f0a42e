"""What sampling may leave out: exactly nothing in the output, or what was asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from tiny_pipeline import LENGTH, WIDTH, tiny_unet

from mindvideo.generate.sampling import Plan, denoise
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.generators.video_unet import ClipCrossAttention, ContiguousGEGLU


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(2, 3, 4, 4, 6, generator=generator)
    return (
        latents,
        torch.randn(2, LENGTH, WIDTH, generator=generator),
        torch.randn(1, LENGTH, WIDTH, generator=generator),
    )


class Counting:
    """A UNet that notes how many clips each pass holds."""

    def __init__(self, unet):
        self.unet, self.passes = unet, []
        unet.register_forward_pre_hook(lambda module, args: self.passes.append(len(args[0])))


def plainly(unet, latents, positive, negative, steps, scale):
    """The sampler's loop (docs/method.md, The generator), two passes a step, nothing kept."""
    scheduler = make_scheduler({}, "ddim")
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            wanted = unet(latents, timestep, positive).sample
            unwanted = unet(latents, timestep, negative.expand_as(positive)).sample
            latents = scheduler.step(unwanted + scale * (wanted - unwanted), timestep, latents).prev_sample
    return latents


def test_held_conditions_and_doubled_batches_change_nothing(inputs):
    unet = tiny_unet()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn_temp" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    found = denoise(unet, make_scheduler({}, "ddim"), *inputs, Plan(4, 3.5))
    torch.testing.assert_close(found, plainly(unet, *inputs, 4, 3.5), rtol=1e-4, atol=1e-4)
    assert unet.clip.held is None


def test_a_condition_is_projected_once_a_clip(inputs):
    unet = tiny_unet()
    projected = []
    layers = [module for module in unet.modules() if isinstance(getattr(module, "processor", None), ClipCrossAttention)]
    for layer in layers:
        layer.to_k.register_forward_hook(lambda *_: projected.append(1))
    denoise(unet, make_scheduler({}, "ddim"), *inputs, Plan(5, 3.5))
    assert len(layers) > 1 and len(projected) == len(layers)
    denoise(unet, make_scheduler({}, "ddim"), inputs[0], inputs[1] + 1, inputs[2], Plan(5, 3.5))
    assert len(projected) == 2 * len(layers)


def test_the_gate_laid_out_by_itself_computes_the_same():
    torch.manual_seed(1)
    theirs = GEGLU(6, 10)
    ours = copy.deepcopy(theirs)
    ours.__class__ = ContiguousGEGLU
    tokens = torch.randn(3, 5, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-6, atol=1e-7)


def test_bf16_stays_near_fp32(inputs):
    """Bound: 3 % of the latents' spread after three guided steps (SD-1.5-size passes differ by less than 1 %)."""
    unet = tiny_unet()
    exact = denoise(unet, make_scheduler({}, "dpm++"), *inputs, Plan(3, 2.0))
    rough = denoise(unet, make_scheduler({}, "dpm++"), *inputs, Plan(3, 2.0, is_bf16=True))
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).square().mean().sqrt()) < 0.03 * float(exact.std())
