"""A training step written plainly against ours, in one run on one machine: CPU seconds of one thread, in alternation.

``python benchmarks/training.py --model masked --batch 8`` for pre-training at the paper's size (4,192 voxels),
``--model encoder --batch 2`` for the windowed encoder of ``align`` and ``cotrain`` (6,016 voxels, two scans). Plain is
float32, explicit attention and AdamW parameter by parameter; ours is what the training loop does. With
``--all-patches`` the plain masked model also runs the masked patches through its encoder, which masked autoencoders are
made to avoid: it says what that is worth. Both see the same data; the losses of the first step are printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

from mindvideo.models import transformer
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.masked_brain import MaskedBrainModel
from sampling import explicit_attention

PAPER = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16, mlp_ratio=1.0)
SMALL = dict(patch_size=16, embed_dim=64, depth=2, num_heads=4, mlp_ratio=1.0)


def plain_masked_loss(model: MaskedBrainModel, fmri: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The masked autoencoder's loss with every patch in the encoder's batch of tokens and the masked ones hidden there.

    Attention to masked patches is barred, so that the visible tokens, and the loss, are those of the model itself.
    """
    patches = transformer.split_patches(fmri, model.config.patch_size)
    kept, restore, is_masked = model._choose_patches(noise, patches.shape[:2], None)
    tokens = model.patch_embed(patches) + model.pos_embed[:, 1:]
    tokens = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(tokens), -1, -1), tokens], dim=1)
    hidden = torch.cat([is_masked.new_zeros(len(tokens), 1), is_masked], dim=1)[:, None, None]

    def barred(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
        return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value

    with mock.patch.object(transformer, "attend", barred):
        for block in model.blocks:
            tokens = block(tokens)
    tokens = model.norm(tokens)
    visible = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    with mock.patch.object(transformer, "attend", explicit_attention):
        decoded = model._decode(torch.cat([tokens[:, :1], visible], dim=1), restore)
    error = (model.decoder_pred(decoded) - patches).square().mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum()


def steps(model: nn.Module, loss: Callable[[Any], torch.Tensor], is_plain: bool) -> Callable[[], float]:
    """A training step of ``model`` that returns its loss."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=not is_plain, foreach=False if is_plain else None
    )

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=not is_plain):
            value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimiser.step()
        return float(value.detach())

    return step


def explicitly(step: Callable[[], float]) -> Callable[[], float]:
    """A step whose attention holds the whole score matrix."""

    def run() -> float:
        with mock.patch.object(transformer, "attend", explicit_attention):
            return step()

    return run


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("masked", "encoder"), default="masked")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds of alternation; where several, the first warms up"
    )
    parser.add_argument("--all-patches", action="store_true", help="the plain masked model encodes masked patches too")
    parser.add_argument("--small", action="store_true", help="a size that takes seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size, batch = SMALL if arguments.small else PAPER, arguments.batch
    if arguments.model == "masked":
        model: Any = MaskedBrainModel(4192, **size)
        fmri, noise = torch.randn(batch, 4192), torch.rand(batch, 262)
        ours = steps(model, lambda own: own(fmri, noise=noise).loss, is_plain=False)
        if arguments.all_patches:
            plain = steps(copy.deepcopy(model), lambda own: plain_masked_loss(own, fmri, noise), is_plain=True)
        else:
            plain = explicitly(steps(copy.deepcopy(model), lambda own: own(fmri, noise=noise).loss, is_plain=True))
    else:
        model = FmriEncoder(6016, window=2, dropout=0.0, **size)
        fmri, target = torch.randn(batch, 2, 6016), torch.randn(batch, 77, 768)
        ours = steps(model, lambda own: (own(fmri).float() - target).square().mean(), is_plain=False)
        plain = explicitly(steps(copy.deepcopy(model), lambda own: (own(fmri) - target).square().mean(), is_plain=True))

    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(arguments.rounds):
        for name, step in (("plain", plain), ("ours", ours)):
            start = time.process_time()
            loss = step()
            taken = time.process_time() - start
            if number == 0:
                print(f"{name}: loss of the first step {loss:.4f}, {taken:.2f} s with warming up", flush=True)
            if number or arguments.rounds == 1:
                seconds[name].append(taken)
    for name, taken_each in seconds.items():
        print(f"{arguments.model}, batch {batch}, {name}: {statistics.median(taken_each):.2f} s a step")
    ratio = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True))
    print(f"ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
