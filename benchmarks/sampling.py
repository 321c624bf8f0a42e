"""The paper's way of sampling against ours, in one run on one machine: CPU seconds of one thread, in alternation.

``python benchmarks/sampling.py`` measures a guided forward pass at the kit's size, ``--size sd15`` at that of Stable
Diffusion 1.5 (random weights), and says what a clip would take at the number of steps each way needs.
``--run RUN --windows 24`` samples test windows of a finished run folder in each way that changes the output, and prints
what that costs in scores, beside the control "another scene's fMRI"; see ``sampled_scores.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from diffusers import UNet2DConditionModel

from mindvideo.models.generators import video_unet
from mindvideo.models.generators.video_unet import VideoUNet

PAPER_STEPS = 200
SD15 = dict(
    sample_size=32, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
    layers_per_block=2,
)  # fmt: skip
KIT = dict(
    sample_size=16, block_out_channels=(64, 96, 128), cross_attention_dim=128, attention_head_dim=4, layers_per_block=1,
    norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip


def explicit_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax of the whole score matrix, as plainly written code has it."""
    return ((query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


def make_unet(size: str) -> tuple[VideoUNet, int]:
    """A generator of random weights at a size, and the length of its condition."""
    torch.manual_seed(0)
    flat = UNet2DConditionModel(**(KIT if size == "kit" else SD15))
    return VideoUNet.from_unet2d(flat).eval(), 40 if size == "kit" else 77


class Forward:
    """One guided forward pass: negative and positive of ``n_clips`` clips of six frames."""

    def __init__(self, unet: VideoUNet, length: int, n_clips: int) -> None:
        side, width = unet.config.sample_size, unet.config.cross_attention_dim
        self.unet = unet
        self.latents = torch.randn(n_clips, 4, 6, side, side)
        self.condition = torch.randn(2 * n_clips, length, width)

    def __call__(self, *ways: str) -> Callable[[], torch.Tensor]:
        """The pass done in the given ways; none of them is the plain way."""

        def run() -> torch.Tensor:
            is_channels_last = "channels-last" in ways
            self.unet.to(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)
            start = time.process_time()
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled="bf16" in ways))
                if "fused attention" not in ways:
                    stack.enter_context(mock.patch.object(video_unet, "attend", explicit_attention))
                if "held condition" in ways:
                    stack.enter_context(self.unet.constant_condition())
                    self.unet(self.latents.repeat(2, 1, 1, 1, 1), 500, self.condition)  # projects the condition
                    start = time.process_time()
                sample = self.unet(self.latents.repeat(2, 1, 1, 1, 1), 500, self.condition).sample
            self.seconds = time.process_time() - start
            return sample.float()

        return run


def measure_forward(size: str, n_clips: int, rounds: int, is_short: bool) -> float:
    """Print CPU seconds of each way and of all; returns how many times faster all are."""
    forward = Forward(*make_unet(size), n_clips)
    every = ("fused attention", "bf16", "channels-last", "held condition")
    ways = [(), every] if is_short else [(), *((one,) for one in every), every]
    seconds: dict[tuple[str, ...], list[float]] = {way: [] for way in ways}
    outputs = {}
    for round_number in range(rounds):
        for way in ways:
            outputs[way] = forward(*way)()
            if round_number or rounds == 1:  # the first round warms up
                seconds[way].append(forward.seconds)
    reference = outputs[()]
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[()], seconds[way], strict=True))
        error = float((outputs[way] - reference).square().mean().sqrt() / reference.std())
        name = " + ".join(way) if len(way) < 4 else "all four"
        print(f"{size:4s} {name or 'plain':16s} {statistics.median(seconds[way]):8.2f} s  {ratio:5.2f} times as fast, "
              f"relative error {error:.1e}")  # fmt: skip
    return ratio


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("kit", "sd15"), default="kit")
    parser.add_argument("--clips", type=int, default=1, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of alternation; the first warms up")
    parser.add_argument("--short", action="store_true", help="only the plain way and all together")
    parser.add_argument("--run", type=Path, help="a finished run folder to sample and score")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--only", default="", help="with --run: ways whose name contains this")
    parser.add_argument("--batches", type=int, help="with --run: only so many batches of those windows")
    parser.add_argument("--keep", type=Path, help="with --run: keeps clips and seconds, so that a stopped run goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.run is not None:
        from sampled_scores import measure_scores

        measure_scores(arguments.run, arguments.windows, arguments.batches, arguments.only, arguments.keep)
        return
    ratio = measure_forward(arguments.size, arguments.clips, arguments.rounds, arguments.short)
    for steps in (25, 10):
        print(f"     a clip in {steps} steps against {PAPER_STEPS} plain ones: {ratio * PAPER_STEPS / steps:.0f} times as fast "
              "(forward passes extrapolated; the decoder is not in it)")  # fmt: skip


if __name__ == "__main__":
    main()
