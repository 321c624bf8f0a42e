"""Train the kit's generator: a video UNet from scratch, on films from the first step.

    python -m kit.generator STATE --kit KIT --clips 400000

``STATE`` holds everything a killed run needs to go on; ``KIT`` is a foundation folder with tokenizer, text tower,
autoencoder and classifiers. The learning rate falls to zero over the last fifth, so a run that is to end earlier is
given fewer clips; ``STATE/plateau.pt`` is what it was before that, and a longer run goes on from there.

What differs from plain denoising, and why:
* an 8 x 8 head on the first up-block is aligned with what frozen classifiers see in pictures and films (REPA, Yu et al.
  2025): shapes come several times sooner;
* cells of the thing, and cells that change between frames, weigh more; timesteps are shifted towards noise, where the
  layout and the direction of movement are decided;
* errors of the change from frame to frame count once more, since movement is little of a clip's plain error;
* frames share most of their noise (Ge et al. 2023), so that what stands still stays still;
* what a frozen network reads of the guessed clip counts beside its squared error (`kit.reader`);
* some conditions are drawn to the mean and mixed with others', as those decoded from a brain are.

Shapes: B clips, F frames, L condition tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from kit.loop import has_bf16
from kit.reader import labels_of, load_reader, read_loss
from kit.scans import Chunk, draw_chunk, encode_chunk
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.interfaces import share_noise
from mindvideo.simulate.scenes import Clip, plan_clip

CHUNK, KEPT = 1024, 6
BATCH, USES = 16, 6
LR, WARM_UP, DECAY_SHARE = 1e-3, 200, 0.2
EMA = 0.999
SHIFT = 3.0
REPA = 0.35
CHANGE = 0.5
FAR, TOLD = 0.1, 0.008
NOISE_SHARE = 0.95
EMPTY, ROUGH = 0.1, 0.35
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
GAP_STEPS = (400, 600, 800, 950)


def build_generator(kit: Path) -> VideoUNet:
    """The kit's UNet with random weights, inflated; it is told which frame is which."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(kit / "unet"))
    return VideoUNet.from_unet2d(unet, frame_positions=True, noise_share=NOISE_SHARE)


class Heads(nn.Module):
    """What the first up-block's output (B F, C, 8, 8) says of the classifiers' patch tokens; thrown away afterwards."""

    def __init__(self, channels: int, image: int, video: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(channels, 256, 1), nn.SiLU(), nn.Conv2d(256, image, 1))
        self.video = nn.Sequential(nn.Conv2d(2 * channels, 256, 1), nn.SiLU(), nn.Conv2d(256, video, 1))

    def forward(self, hidden: torch.Tensor, image: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        """One minus the mean cosine, of pictures and of pairs of frames."""
        frames = self.image(hidden).flatten(2).transpose(1, 2)
        pairs = self.video(hidden.unflatten(0, (-1, 2)).flatten(1, 2)).flatten(2).transpose(1, 2)
        off = [1 - F.cosine_similarity(a.float(), b.flatten(0, 1).float(), dim=-1).mean()
               for a, b in ((frames, image), (pairs, video))]  # fmt: skip
        return off[0] + off[1]


class Training:
    """Weights, optimiser, averaged weights and the rolling pool."""

    def __init__(self, kit: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed, self.foundation = seed, Foundation(kit)
        self.is_bf16 = has_bf16()
        self.scheduler = DDIMScheduler.from_config(self.foundation.scheduler_config)
        self.unet = build_generator(kit).to(memory_format=torch.channels_last)
        self.heads = Heads(
            self.unet.config.block_out_channels[-1],
            self.foundation.image_classifier.config.hidden_size,
            self.foundation.video_classifier.config.hidden_size,
        )
        self.unet.up_blocks[0].register_forward_hook(self._keep_hidden)
        self.parameters = [*self.unet.parameters(), *self.heads.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.averaged = {name: value.detach().clone() for name, value in self.unet.state_dict().items()}
        self.reader = load_reader(kit)
        self.step = 0
        self.chunks: dict[int, Chunk] = {}

    def _keep_hidden(self, module: nn.Module, given: Any, hidden: torch.Tensor) -> None:
        self.hidden = hidden

    @torch.no_grad()
    def condition(self, captions: list[str]) -> torch.Tensor:
        """The text tower's tokens (B, L, D)."""
        return self.foundation.encode_text(captions)[0].float()

    def chunk_numbers(self) -> list[int]:
        """Which chunks the present step draws from."""
        newest = self.step // (CHUNK * USES // BATCH) + KEPT - 1
        return list(range(newest - KEPT + 1, newest + 1))

    def fill(self, folder: Path, say: Any) -> None:
        """Have the present chunks at hand, from ``folder`` or made anew."""
        numbers = self.chunk_numbers()
        for number in [n for n in self.chunks if n not in numbers]:
            del self.chunks[number]
            (folder / f"chunk{number}.pt").unlink(missing_ok=True)
        for number in [n for n in numbers if n not in self.chunks]:
            path, begun = folder / f"chunk{number}.pt", time.time()
            clips = draw_chunk(self.seed, number, CHUNK)
            if path.is_file():
                self.chunks[number] = Chunk(clips, *torch.load(path))
                continue
            chunk = self.chunks[number] = encode_chunk(self.foundation, clips, self.is_bf16)
            torch.save((chunk.latents, chunk.weight, chunk.image_tokens, chunk.video_tokens), path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            say(f"chunk {number}: {time.time() - begun:.0f} s")

    def batch(self, rng: np.random.Generator) -> tuple[Any, ...]:
        """Latents, weights, tokens of both kinds, conditions and labels of clips drawn from the pool."""
        numbers = self.chunk_numbers()
        picked = [(self.chunks[numbers[rng.integers(KEPT)]], int(rng.integers(CHUNK))) for _ in range(BATCH)]
        captions = ["" if rng.random() < EMPTY else chunk.clips[i].caption(rng) for chunk, i in picked]
        condition = self.condition(captions)
        if self.step > 2500:  # what it is told is clear at first
            condition = roughen(condition, rng)
        fields = [torch.stack([getattr(chunk, name)[i] for chunk, i in picked]).float()
                  for name in ("latents", "weight", "image_tokens", "video_tokens")]  # fmt: skip
        labels = labels_of([chunk.clips[i] for chunk, i in picked])
        told = np.array([caption != "" for caption in captions])
        return *fields, condition, {name: np.where(told, label, -1) for name, label in labels.items()}

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted squared error of v, the same of its change from frame to frame, and the alignment."""
        latents, weight, image, video, condition, labels = self.batch(rng)
        noise = share_noise(self.unet, torch.randn_like(latents))
        uniform = torch.rand(BATCH)
        timestep = (1000 * SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).long().clamp(0, 999)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        target = self.scheduler.get_velocity(latents, noise, timestep)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            output = self.unet(noisy, timestep, condition).sample.float()
            off = self.heads(self.hidden, image, video)
        wrong = output - target
        error = (weight * wrong**2).mean()
        stray = (weight[:, :, 1:] * (wrong[:, :, 1:] - wrong[:, :, :-1]) ** 2).mean()
        kept = self.scheduler.alphas_cumprod[timestep]
        guess = to_rank(kept.sqrt()) * noisy - to_rank((1 - kept).sqrt()) * output
        far, told = read_loss(self.reader, guess, latents, labels, kept**0.25)
        figures = {"error": float(error.detach()), "stray": float(stray.detach()), "off": float(off.detach()),
                   "far": float(far.detach()), "told": float(told.detach())}  # fmt: skip
        return error + CHANGE * stray + REPA * off + FAR * far + TOLD * told, figures

    def train_step(self, clips: int) -> dict[str, float]:
        """One step of a run of ``clips`` in all."""
        total = clips // BATCH
        left = (total - self.step) / (DECAY_SHARE * total)
        for group in self.optimiser.param_groups:
            group["lr"] = LR * min(1.0, (self.step + 1) / WARM_UP, left)
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        loss, figures = self.loss(np.random.default_rng([self.seed, 7, self.step]))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)} at step {self.step}")
        self.optimiser.zero_grad()
        loss.backward()
        figures["gradient"] = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        self.optimiser.step()
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        own = self.unet.state_dict()
        torch._foreach_lerp_(list(self.averaged.values()), list(own.values()), 1 - keep)
        self.step += 1
        return figures

    def save(self, path: Path) -> None:
        """Write the whole state beside its place, then rename."""
        state = {"unet": self.unet.state_dict(), "heads": self.heads.state_dict(), "averaged": self.averaged,
                 "optimiser": self.optimiser.state_dict(), "step": self.step}  # fmt: skip
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Go on from a state."""
        state = torch.load(path)
        self.unet.load_state_dict(state["unet"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.averaged, self.step = state["averaged"], state["step"]


def to_rank(values: torch.Tensor) -> torch.Tensor:
    """(B,) to (B, 1, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1, 1)


def roughen(condition: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Make some conditions (B, L, D) like those read from a brain: drawn to the mean, with other captions mixed in.

    A regression that explains the share r of the tokens' variance gives r of a caption's deviation from the mean, and
    errors of variance r (1 - r), here the deviations of four other captions and a little white noise.
    """
    mean = condition.mean(0)
    away, result = condition - mean, condition.clone()
    for i in range(len(condition)):
        if rng.random() < ROUGH:
            r = 0.1 + 0.9 * rng.random()
            others = torch.from_numpy((rng.standard_normal(4) / 2).astype(np.float32))
            error = torch.einsum("k,kld->ld", others, away[rng.integers(len(condition), size=4)])
            white = torch.from_numpy(rng.standard_normal(error.shape).astype(np.float32)) * away.std()
            result[i] = mean + r * away[i] + (r * (1 - r)) ** 0.5 * (0.9 * error + 0.4 * white)
    return result


@torch.no_grad()
def direction_gap(training: Training, count: int = 64, seed: int = 5) -> dict[str, float]:
    """By how many per cent the plain loss rises when the word for the direction is the opposite one, by timestep."""
    clips: list[Clip] = []
    number = 0
    while len(clips) < count:
        clip = plan_clip(np.random.default_rng([31_337, seed, number]))
        number += 1
        if clip.scene.motion in OPPOSITE:
            clips.append(clip)
    latents = encode_chunk(training.foundation, clips).latents.float()
    right, wrong = [clip.caption() for clip in clips], [opposite_caption(clip) for clip in clips]
    noise = share_noise(training.unet, torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)))
    model, gaps = training.unet, {}
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(training.averaged)
    model.eval()
    for t in GAP_STEPS:
        timestep = torch.full((count,), t)
        noisy = training.scheduler.add_noise(latents, noise, timestep)
        target = training.scheduler.get_velocity(latents, noise, timestep)
        errors = []
        for captions in (right, wrong):
            condition = training.condition(captions)
            output = torch.cat([model(noisy[i : i + 16], timestep[i : i + 16], condition[i : i + 16]).sample
                                for i in range(0, count, 16)])  # fmt: skip
            errors.append(float((output - target).square().mean()))
        gaps[f"gap{t}"] = 100 * (errors[1] / errors[0] - 1)
    model.load_state_dict(own)
    model.train()
    return gaps


def opposite_caption(clip: Clip) -> str:
    """The caption of a clip of one scene with the opposite direction, everything else kept."""
    caption, motion = clip.caption(), clip.scene.motion
    for slowly in ("", "slowly ", "quickly "):
        if f"ing {slowly}{motion} " in caption:
            return caption.replace(f"ing {slowly}{motion} ", f"ing {slowly}{OPPOSITE[motion]} ", 1)
    raise ValueError(f"expected a direction in '{caption}'")


def main() -> None:
    """Train until ``--clips`` were seen; a killed run goes on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    training = Training(given.kit, given.seed)
    kept, plateau = given.state / "last.pt", given.state / "plateau.pt"
    log = given.state / "log.jsonl"

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    if kept.is_file():
        training.load(kept)
        say(f"goes on at step {training.step}")
    total, begun, recent = given.clips // BATCH, time.time(), []
    decays_at = int((1 - DECAY_SHARE) * total)
    while training.step < total:
        if training.chunk_numbers() != sorted(training.chunks):
            training.fill(given.state, say)
        recent.append(training.train_step(given.clips))
        step = training.step
        if step == decays_at:
            training.save(plateau)
        if step % 50 == 0:
            row: dict[str, Any] = {"step": step, "clips": step * BATCH}
            row |= {name: float(np.mean([each[name] for each in recent])) for name in recent[0]}
            row["s_per_step"] = (time.time() - begun) / len(recent)
            if step % 500 == 0:
                row |= direction_gap(training)
            say(json.dumps({name: round(value, 4) for name, value in row.items()}))
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            recent, begun = [], time.time()
        if step % 250 == 0 or step == total:
            training.save(kept)


if __name__ == "__main__":
    main()
