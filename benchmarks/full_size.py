"""One training step of a stage, or one clip sampled, at the paper's size with random weights: does it fit?

``python benchmarks/full_size.py --stage cotrain --batch 1 --checkpointing`` prints the peak resident memory of this
process and the CPU seconds of the step. The whole step is real: forward, backward, clipping and AdamW in bfloat16
autocast over float32 weights, as the training loop has it; only data and weights are random. ``--stage reconstruct`` is the
whole pipeline: encoder, guided steps of DPM-Solver++, decoder. ``--areas visual`` or ``cortex`` puts an encoder of areas with
all of their vertices in the place of the paper's. ``--count`` only says how much ``mindvideo check`` counts
for the step, and the largest batch of that stage that it counts within ``--room`` GiB.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from mindvideo.atlas import area_labels, parse_areas
from mindvideo.config import load_recipe
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.needs import Needs
from mindvideo.sizing import HCP_VOXELS, PUBLISHED_VOXELS
from mindvideo.train.animate import Diffusion
from mindvideo.train.loop import named_trainable
from mindvideo.voxel_layout import VoxelLayout
from operations import SD_VAE
from sampling import SD15

PAPER_BATCH = {"pretrain": 500, "adapt": 100, "align": 20, "animate": 14, "cotrain": 9, "reconstruct": 1}
"""The paper's batches; ``adapt`` has that of our recipe, because the paper does not say."""
FRAMES, SIDE = 6, 32


def randomly(build: Callable[[], nn.Module]) -> nn.Module:
    """A network of small uniform weights and fresh norms, without the time and memory of its usual start."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(-0.02, 0.02)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
    return network


def layout_of(areas: str) -> dict[str, Any]:
    """Every vertex of these areas, as an encoder's configuration has it."""
    vertex = parse_areas(areas)
    return VoxelLayout(len(vertex), None, vertex, area_labels()[vertex]).to_config()


def networks_of(stage: str, areas: str | None = None) -> list[Any]:
    """What the stage trains, or samples with; with an encoder of ``areas`` instead of the paper's."""
    models: list[Any] = []
    if stage in ("pretrain", "adapt"):
        models.append(randomly(lambda: MaskedBrainModel(HCP_VOXELS if stage == "pretrain" else PUBLISHED_VOXELS)))
    if stage in ("align", "cotrain", "reconstruct"):
        models.append(AreaEncoder([layout_of(areas)]) if areas else randomly(lambda: FmriEncoder(PUBLISHED_VOXELS)))
    if stage in ("animate", "cotrain", "reconstruct"):
        models.append(randomly(lambda: VideoUNet(**SD15)))
    return models


def train_step(stage: str, batch: int, has_checkpointing: bool, areas: str | None = None) -> float:
    """CPU seconds of one step."""
    models = [model.train() for model in networks_of(stage, areas)]
    if has_checkpointing:
        for model in models:
            model.enable_gradient_checkpointing()
    parameters = [
        parameter
        for model in models
        for parameter in named_trainable(model, getattr(model, "trained_parts", ("",))).values()
    ]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    for parameter in parameters:  # Adam's moments are there in every step but the first
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(stage, models, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 0.8)
    optimiser.step()
    return time.process_time() - start


def _loss(stage: str, models: list[Any], batch: int) -> torch.Tensor:
    first: Any = models[0]
    if isinstance(first, MaskedBrainModel):
        return first(torch.randn(batch, first.config.num_voxels)).loss
    if stage == "animate":
        condition = torch.randn(batch, 77, 768)
    else:
        condition = first(torch.randn(batch, 2, first.config.num_voxels)).float()
    if stage == "align":
        return condition.square().mean()
    latents = torch.randn(batch, 4, FRAMES, SIDE, SIDE)
    unet = models[-1]
    assert isinstance(unet, VideoUNet)
    diffusion = Diffusion({})
    return diffusion.drawn_losses(unet, diffusion.draw(latents), condition).mean()


def sample(batch: int, steps: int) -> float:
    """CPU seconds of the whole pipeline."""
    encoder, unet = networks_of("reconstruct")
    vae: Any = randomly(lambda: AutoencoderKL(**SD_VAE))
    for network in (encoder, unet, vae):
        network.eval()
    for network in (unet, vae):
        network.to(memory_format=torch.channels_last)
    mean = torch.randn(2, PUBLISHED_VOXELS)
    pipeline = MindVideoPipeline(encoder, unet, vae, make_scheduler({}, "dpm++"), train_mean=mean)
    start = time.process_time()
    clips = pipeline(
        torch.randn(batch, 2, PUBLISHED_VOXELS), FRAMES, num_inference_steps=steps, precision="bf16"
    ).frames
    assert clips.shape == (batch, FRAMES, SIDE * 8, SIDE * 8, 3)
    return time.process_time() - start


def counted(stage: str, batch: int) -> tuple[float, float]:
    """GiB that ``mindvideo check`` counts for a step without its data, and for each further sample of the batch."""
    stages = ("pretrain", "adapt", "align", "animate", "cotrain", "reconstruct")
    needed = Needs(load_recipe("wen2018", [f"{each}.precision=bf16" for each in stages]), Path("nowhere"))
    if stage == "reconstruct":
        size, frames = needed.sizes.size, needed.sizes.num_frames
        one, two = (2 * needed.networks.sampling_bytes(size, frames, n) for n in (1, 2))
        weights = 4.0 * needed.network("cotrain").parameters + needed.networks.part_bytes("vae")
        return (needed.base + weights + one + (batch - 1) * (two - one)) / 2**30, (two - one) / 2**30
    network = needed.network(stage)
    kept = 4.0 * network.parameters + 8.0 * network.trainable + network.fixed_bytes
    return (needed.base + kept + batch * network.item_bytes) / 2**30, network.item_bytes / 2**30


def main() -> None:
    """Run one stage once, or count it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=tuple(PAPER_BATCH), required=True)
    parser.add_argument("--batch", type=int, help="the paper's where not given")
    parser.add_argument("--areas", help="of an encoder of areas, for --stage align and cotrain")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of reconstruct")
    parser.add_argument("--count", action="store_true", help="say what 'mindvideo check' counts, run nothing")
    parser.add_argument("--room", type=float, default=24.0, help="with --count: GiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = arguments.batch or PAPER_BATCH[arguments.stage]
    if arguments.count:
        whole, each = counted(arguments.stage, batch)
        largest = batch + int((arguments.room - whole) // each)
        print(f"{arguments.stage}, batch {batch}: {whole:.1f} GiB counted without checkpointing, {each:.2f} a sample; "
              f"in {arguments.room:g} GiB a batch of {max(largest, 0)}")  # fmt: skip
        return
    if arguments.stage == "reconstruct":
        seconds = sample(batch, arguments.steps)
    else:
        seconds = train_step(arguments.stage, batch, arguments.checkpointing, arguments.areas)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.stage}, batch {batch}{', checkpointed' if arguments.checkpointing else ''}: "
          f"{seconds:.1f} CPU seconds, peak memory {peak:.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
