"""Floating-point operations of every stage at the paper's size, counted by torch on tensors without data.

``python benchmarks/operations.py`` prints, for each stage, operations of one sample (forward and backward where it
trains), of the whole stage in the recipe ``wen2018``, and the hours of one device that sustains ``--tflops``. Multiplications and additions
of matrix products and convolutions count, two each; element-wise work, frozen networks (the decoder too) and reading do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mindvideo.config import load_recipe
from mindvideo.models.fmri_encoder import FmriEncoder
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.video_unet import VideoUNet
from mindvideo.sizing import HCP_VOXELS, PUBLISHED_VOXELS
from mindvideo.train.animate import TUNED
from mindvideo.train.loop import named_trainable
from sampling import SD15

FRAMES, SIDE, WINDOWS = 6, 32, 1200
"""Frames of a clip, side of its latents, test windows."""


def count(call: Callable[[], object]) -> int:
    """Operations of a call on the device without data."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def of_samples() -> dict[str, int]:
    """Operations of one sample of each network: a step's share where it trains, else one pass."""
    with torch.device("meta"):
        masked = {n: MaskedBrainModel(n).train() for n in (HCP_VOXELS, PUBLISHED_VOXELS)}
        encoder, unet = FmriEncoder(PUBLISHED_VOXELS).train(), VideoUNet(**SD15).train()
        window, latents = torch.randn(1, 2, PUBLISHED_VOXELS), torch.randn(1, 4, FRAMES, SIDE, SIDE)
        time, condition = torch.zeros(1, dtype=torch.long), torch.randn(1, 77, 768)
        scans = {n: torch.randn(1, n) for n in masked}
    named_trainable(unet, TUNED)

    def trained(module: nn.Module, *given: torch.Tensor) -> int:
        return count(lambda: module(*given).square().mean().backward())

    found = {
        stage: count(lambda n=n: masked[n](scans[n]).loss.backward())  # type: ignore[misc]
        for stage, n in (("pretrain", HCP_VOXELS), ("adapt", PUBLISHED_VOXELS))
    }
    found["align"] = trained(encoder, window)
    found["animate"] = count(lambda: unet(latents, time, condition).sample.square().mean().backward())
    found["cotrain"] = count(lambda: unet(latents, time, encoder(window)).sample.square().mean().backward())
    with torch.no_grad():
        found["generator, one pass"] = count(lambda: unet(latents, time, condition))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=100.0, help="10^12 operations a second that a device sustains")
    tflops = parser.parse_args().tflops
    recipe, each = load_recipe("wen2018"), of_samples()
    rows = {}
    for stage in ("pretrain", "adapt", "align", "animate", "cotrain"):
        settings = getattr(recipe, stage)
        rows[stage] = (each[stage], settings.steps * settings.batch_size * settings.accumulate * each[stage])
    steps, passes = (
        recipe.reconstruct.steps,
        2 + 2 + 2 + 1,
    )  # reconstruction, shuffled and caption are guided, mean is not
    clip = steps * passes * each["generator, one pass"]
    rows["reconstruct"] = (clip, WINDOWS * clip)
    for stage, (one, whole) in rows.items():
        print(f"{stage:12s} {one / 1e12:12.4f} {whole / 1e15:14.0f} {whole / 1e12 / tflops / 3600:10.1f} h")
    print(f"generator, one pass of a clip: {each['generator, one pass'] / 1e12:.3f}")


if __name__ == "__main__":
    main()
