"""One training step of a stage, or one sampling forward, at the paper's size with random weights: does it fit?

``python benchmarks/full_size.py --stage cotrain --batch 1 --checkpointing`` prints the peak resident memory of this
process and the CPU seconds of the step. The whole step is real: forward, backward, clipping and AdamW in bfloat16
autocast over float32 weights, as the training loop has it; only data and weights are random.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import nn

from mindvideo.generate.sampling import Plan, denoise
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.fmri_encoder import FmriEncoder
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.video_unet import VideoUNet
from mindvideo.train.animate import TUNED, Diffusion
from mindvideo.train.loop import named_trainable
from sampling import make_unet

PAPER_BATCH = {"pretrain": 500, "adapt": 20, "align": 20, "animate": 14, "cotrain": 9, "reconstruct": 1}
FRAMES, SIDE = 6, 32


def train_step(stage: str, batch: int, has_checkpointing: bool) -> float:
    """CPU seconds of one step."""
    models: list[nn.Module] = []
    if stage in ("pretrain", "adapt"):
        models.append(MaskedBrainModel(4192 if stage == "pretrain" else 6016))
    if stage in ("align", "cotrain"):
        models.append(FmriEncoder(6016))
    if stage in ("animate", "cotrain"):
        models.append(make_unet("sd15")[0].train())
    if has_checkpointing:
        for model in models:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
    parameters = [
        parameter
        for model in models
        for parameter in named_trainable(model, TUNED if isinstance(model, VideoUNet) else None).values()
    ]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(stage, models, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 0.8)
    optimiser.step()
    return time.process_time() - start


def _loss(stage: str, models: list[nn.Module], batch: int) -> torch.Tensor:
    first = models[0]
    if isinstance(first, MaskedBrainModel):
        return first(torch.randn(batch, first.config.num_voxels)).loss
    condition = first(torch.randn(batch, 2, 6016)).float() if stage != "animate" else torch.randn(batch, 77, 768)
    if stage == "align":
        return condition.square().mean()
    latents = torch.randn(batch, 4, FRAMES, SIDE, SIDE)
    unet = models[-1]
    assert isinstance(unet, VideoUNet)
    return Diffusion({}).random_losses(unet, latents, condition).mean()


def sample(batch: int, steps: int) -> float:
    """CPU seconds of ``steps`` guided steps."""
    unet = make_unet("sd15")[0].to(memory_format=torch.channels_last)
    start = time.process_time()
    positive, negative = torch.randn(batch, 77, 768), torch.randn(1, 77, 768)
    plan = Plan(steps, 12.5, is_bf16=True)
    scheduler = make_scheduler({}, "dpm++")
    denoise(unet, scheduler, torch.randn(batch, 4, FRAMES, SIDE, SIDE), positive, negative, plan)
    return time.process_time() - start


def main() -> None:
    """Run one stage once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=tuple(PAPER_BATCH), required=True)
    parser.add_argument("--batch", type=int, help="the paper's where not given")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps of reconstruct")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = arguments.batch or PAPER_BATCH[arguments.stage]
    if arguments.stage == "reconstruct":
        seconds = sample(batch, arguments.steps)
    else:
        seconds = train_step(arguments.stage, batch, arguments.checkpointing)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.stage}, batch {batch}{', checkpointed' if arguments.checkpointing else ''}: "
          f"{seconds:.1f} CPU seconds, peak memory {peak:.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
