"""Floating-point operations of every stage at the paper's size, counted by torch on tensors without data.

``python benchmarks/operations.py`` prints a table: operations of one sample (forward and backward where it trains), the
samples of the recipe ``wen2018``, the operations of the whole stage, the rate that the hours in the paper come to, and the hours of
one device that sustains ``--tflops``. Multiplications and additions of matrix products and convolutions count, two each;
element-wise work and reading do not. Not in it either: captions, latents of the films, classifiers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from mindvideo.config import load_recipe
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.sizing import HCP_VOXELS, PUBLISHED_VOXELS
from mindvideo.train.loop import named_trainable
from sampling import SD15

FRAMES, SIDE, WINDOWS = 6, 32, 1200
"""Frames of a clip, side of its latents, test windows."""
PAPER_HOURS = {"pretrain": 8 * 3 * 24, "align": 10, "animate": 2, "cotrain": 16}
"""Hours of one RTX 3090 in the paper's supplement B; pre-training had eight for about three days."""
SD_VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
CLIP_IMAGE = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
    projection_dim=768,
)  # fmt: skip
CLIP_TEXT = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
)


def count(call: Callable[[], object]) -> int:
    """Operations of a call on the device without data."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def of_masked_model(voxels: int) -> int:
    """Operations of one scan in a training step of the masked model."""
    with torch.device("meta"):
        model, scan = MaskedBrainModel(voxels).train(), torch.randn(1, voxels)
    return count(lambda: model(scan).loss.backward())


def of_clip() -> dict[str, int]:
    """Operations of CLIP ViT-L/14 for one picture and one caption, frozen."""
    with torch.device("meta"), torch.no_grad():
        image = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_IMAGE))
        text = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT))
        pixels, words = torch.randn(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
        return {"image": count(lambda: image(pixels)), "text": count(lambda: text(words))}


def of_samples() -> dict[str, int]:
    """Operations of one sample of each network: a step's share where it trains, else one pass."""
    with torch.device("meta"):
        encoder, unet, vae = FmriEncoder(PUBLISHED_VOXELS).train(), VideoUNet(**SD15).train(), AutoencoderKL(**SD_VAE)
        window, latents = torch.randn(1, 2, PUBLISHED_VOXELS), torch.randn(1, 4, FRAMES, SIDE, SIDE)
        time, condition = torch.zeros(1, dtype=torch.long), torch.randn(1, 77, 768)
    named_trainable(unet, unet.trained_parts)

    def trained(call: Callable[[], torch.Tensor]) -> int:
        return count(lambda: call().square().mean().backward())

    clip = of_clip()
    found = {
        "pretrain": of_masked_model(HCP_VOXELS),
        "adapt": of_masked_model(PUBLISHED_VOXELS),
        # Every caption is drawn anew, and every second frame is a new crop; whole frames are embedded once.
        "align": trained(lambda: encoder(window)) + clip["text"] + clip["image"] // 2,
        "animate": trained(lambda: unet(latents, time, condition).sample),
        "cotrain": trained(lambda: unet(latents, time, encoder(window)).sample),
    }
    with torch.no_grad():
        found["one pass"] = count(lambda: unet(latents, time, condition))
        found["decoder"] = count(lambda: vae.decode(latents[0].transpose(0, 1)))
    return found


def rows(tflops: float) -> dict[str, tuple[float, int, float, float | None, float]]:
    """Of each stage: 10^12 operations of a sample, samples, 10^15 operations, rate of the paper's hours, hours."""
    recipe, each, found = load_recipe("wen2018"), of_samples(), {}
    # Reconstruction, 'shuffled' and 'caption' are guided: two passes a step. 'mean' is its own negative: one.
    each["reconstruct"] = recipe.reconstruct.steps * 7 * each["one pass"] + 4 * each["decoder"]
    samples = {"reconstruct": WINDOWS}
    for stage in ("pretrain", "adapt", "align", "animate", "cotrain"):
        settings = getattr(recipe, stage)
        samples[stage] = settings.steps * settings.batch_size * settings.accumulate
    for stage in ("pretrain", "adapt", "align", "animate", "cotrain", "reconstruct"):
        whole = samples[stage] * each[stage]
        rate = whole / 1e12 / 3600 / PAPER_HOURS[stage] if stage in PAPER_HOURS else None
        found[stage] = (each[stage] / 1e12, samples[stage], whole / 1e15, rate, whole / 1e12 / 3600 / tflops)
    return found


def table(tflops: float) -> list[str]:
    """The table as the page on what a study takes has it."""
    lines = [
        f"| stage | 10¹² operations a sample | samples | 10¹⁵ operations | 10¹² a second, by the paper's hours | "
        f"hours at {tflops:g} × 10¹² a second |",
        "|---|---|---|---|---|---|",
    ]
    for stage, (one, samples, whole, rate, hours) in rows(tflops).items():
        by_paper, sample = f"{rate:.1f}" if rate is not None else "–", f"{one:,.0f}" if one >= 100 else f"{one:.3g}"
        lines.append(f"| `{stage}` | {sample} | {samples:,} | {whole:,.0f} | {by_paper} | {hours:,.1f} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=10.0, help="10^12 operations a second that a device sustains")
    print("\n".join(table(parser.parse_args().tflops)))


if __name__ == "__main__":
    main()
