"""``separable``: encoder and decoder of spatio-temporally separable layers (Kupershmidt et al. 2022).

Follows Kupershmidt, Beliy, Gaziv, Irani, "A penny for your (visual) thoughts: self-supervised
reconstruction of natural movies from brain activity", 2022: a decoder learns from pairs and,
through a fixed encoder, from films without fMRI (frames → encoder → decoder → the same frames).

Differences from the paper:

- the foundation's image classifier replaces VGG in the perceptual loss;
- a voxel's read-out of the encoder is a receptive field times channel weights, and the decoder's
  projection back starts as its adjoint;
- without a folder of films, the unlabelled clips are the training films half a TR later;
- test fMRI is never used for self-supervision, not even without its frames.

Shapes: B batch, W scans, V voxels, R = W · V read-outs, F frames, H W pixels, C channels, S places
of the coarsest map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from torch import nn

from mindvideo.baselines.base import MethodContext, SplitWindows
from mindvideo.baselines.pixels import (
    VALIDATION_BATCH,
    PixelTask,
    as_clips,
    as_tensor,
    channels_at,
    halvings,
    pixel_norm,
)
from mindvideo.baselines.vision import VisionNetwork
from mindvideo.data.store import Store
from mindvideo.data.video import SUFFIXES, probe, read_frames
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.files import walk_files
from mindvideo.generate.clips import split_batches
from mindvideo.train.features import compute_table
from mindvideo.train.loop import Batch, Draw, Metrics, named_trainable
from mindvideo.train.stage import refuse_checkpointing

COARSEST = 8
COSINE_WEIGHT = 0.1

Clips = Callable[[np.ndarray], np.ndarray]


class SeparableConv(nn.Module):
    """A convolution of every frame (3 x 3), then one along time (3)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.space = nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1))
        self.time = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W) to (B, C', F, H / stride, W / stride)."""
        return self.time(self.space(x))


class FramesToFmri(nn.Module):
    """Encoder: clips (B, 3, F, H, W) in [0, 1] to fMRI (B, W, V)."""

    def __init__(self, window: int, voxels: int, frames: int, size: int, width: int) -> None:
        super().__init__()
        self.shape = (window, voxels)
        count = halvings(size, COARSEST)
        places = (size // 2**count) ** 2
        readouts = window * voxels
        width = channels_at(width, 0)
        widths = [3] + [width] * max(1, count)
        self.layers = nn.ModuleList(SeparableConv(a, b, 2 if count else 1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in self.layers)
        self.moments = nn.Parameter(torch.full((frames,), 1 / frames))
        self.field = nn.Parameter(torch.full((readouts, places), 1 / places))
        self.channel = nn.Parameter(torch.randn(readouts, width) * 0.1 * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(readouts))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Predicted fMRI."""
        x = clips * 2 - 1
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), 0.1)
        maps_BCS = torch.einsum("bcfhw,f->bchw", x, self.moments).flatten(2)
        seen_BCR = maps_BCS @ self.field.T
        return ((seen_BCR * self.channel.T).sum(dim=1) + self.bias).view(len(clips), *self.shape)


class FmriToFrames(nn.Module):
    """Decoder: fMRI (B, W, V) to maps, by the read-out's adjoint, to clips (B, 3, F, H, W)."""

    def __init__(self, encoder: FramesToFmri, frames: int, size: int, width: int) -> None:
        super().__init__()
        count = halvings(size, COARSEST)
        self.side = size // 2**count
        readouts = len(encoder.field)
        width = channels_at(width, 0)
        self.field = nn.Parameter(encoder.field.detach().clone())
        # Fields sum to about 1 over the places: this gives maps of about unit variance.
        scale = self.side**2 * readouts**-0.5 / encoder.channel.detach().std()
        self.channel = nn.Parameter(encoder.channel.detach() * scale)
        self.moments = nn.Parameter(torch.ones(width, frames) + 0.1 * torch.randn(width, frames))
        self.offset = nn.Parameter(torch.zeros(width, 1, self.side, self.side))
        widths = [channels_at(width, 0)] + [channels_at(width, step) for step in range(count)]
        self.layers = nn.ModuleList(SeparableConv(a, b) for a, b in itertools.pairwise(widths))
        self.end = nn.Conv3d(widths[-1], 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, fmri: torch.Tensor) -> torch.Tensor:
        """Reconstructed clips."""
        weighted_BRC = fmri.flatten(1)[..., None] * self.channel
        maps_BCS = torch.einsum("brc,rs->bcs", weighted_BRC, self.field)
        x = maps_BCS.view(len(fmri), -1, 1, self.side, self.side) * self.moments[None, :, :, None, None] + self.offset
        for layer in self.layers:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
            x = F.leaky_relu(pixel_norm(layer(x)), 0.1)
        return torch.sigmoid(self.end(x))


class EncoderTask:
    """Predicted against recorded fMRI, by squared error and by cosine."""

    def __init__(self, encoder: FramesToFmri, windows: SplitWindows, device: torch.device) -> None:
        self.encoder = encoder.to(device)
        self.windows = windows
        self.device = device

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything."""
        return named_trainable(self.encoder)

    def sample(self, draw: Draw) -> Batch:
        """Clips and the fMRI they were seen with."""
        return draw_pairs(self.windows["train"], draw, self.device)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Loss of each pair."""
        predicted = self.encoder(batch["clips"]).flatten(1).float()
        fmri = batch["fmri"].flatten(1)
        cosine = F.cosine_similarity(predicted, fmri)
        error = (predicted - fmri).square().mean(dim=1)
        return error + COSINE_WEIGHT * (1 - cosine), {"cosine": cosine.detach().mean()}

    @torch.inference_mode()
    def validate(self, step: int) -> dict[str, float]:
        """Mean over voxels of the correlation between predicted and recorded validation fMRI."""
        windows = self.windows["validation"]
        batches = split_batches(len(windows), VALIDATION_BATCH)
        found = [self.encoder(as_tensor(windows.frames(index), self.device)).cpu() for index in batches]
        first = torch.cat(found).flatten(1)
        second = torch.from_numpy(windows.fmri(np.arange(len(windows)))).flatten(1)
        r = F.cosine_similarity(first - first.mean(dim=0), second - second.mean(dim=0), dim=0)
        return {"validation_voxel_r": float(r.mean())}


@dataclass
class DecoderTask(PixelTask):
    """Random training pairs, and unlabelled clips through the fixed encoder and back."""

    context: MethodContext
    decoder: FmriToFrames
    encoder: FramesToFmri
    windows: SplitWindows
    unlabelled: tuple[int, Clips]

    def __post_init__(self) -> None:
        self.settings = self.context.recipe.baseline.separable
        self.device = self.context.device
        self.network = VisionNetwork(self.context.foundation)
        self.decoder.to(self.device)
        self.encoder.eval().requires_grad_(False)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The decoder alone."""
        return named_trainable(self.decoder)

    def likeness(self, made: torch.Tensor, real: torch.Tensor, frame: int) -> torch.Tensor:
        """Pixel loss of each clip (B,), and the distance of one frame's tokens."""
        loss = (made.float() - real).abs().flatten(1).mean(dim=1)
        if self.settings.perceptual_weight > 0:
            with torch.no_grad():
                wanted = self.network.tokens(real[:, :, frame], self.settings.perceptual_layer)
            found = self.network.tokens(made[:, :, frame], self.settings.perceptual_layer)
            distance = (found.float() - wanted).square().flatten(1).mean(dim=1)
            loss = loss + self.settings.perceptual_weight * distance / wanted.var()
        return loss

    def sample(self, draw: Draw) -> Batch:
        """Pairs, unlabelled clips, and the frames that the vision network sees."""
        windows = self.windows["train"]
        batch = draw_pairs(windows, draw, self.device)
        if self.settings.self_supervised_weight > 0:
            count, read = self.unlabelled
            # With replacement: a folder of films may hold fewer clips than a batch.
            batch["unlabelled"] = as_tensor(read(draw.rng.integers(count, size=draw.size)), self.device)
        frames = draw.rng.integers(windows.store.num_frames, size=2)
        return batch | {"frame": np.tile(frames, (draw.size, 1))}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Supervised loss of each pair, self-supervised loss of each unlabelled clip."""
        first, second = batch["frame"][0].tolist()
        supervised = self.likeness(self.decoder(batch["fmri"]), batch["clips"], first)
        logged = {"supervised_loss": supervised.detach().mean()}
        if "unlabelled" not in batch:
            return supervised, logged
        with torch.no_grad():
            imagined = self.encoder(batch["unlabelled"])
        cycle = self.likeness(self.decoder(imagined), batch["unlabelled"], second)
        logged["cycle_loss"] = cycle.detach().mean()
        return supervised + self.settings.self_supervised_weight * cycle, logged

    def make(self, rows: np.ndarray) -> torch.Tensor:
        """Clips from the fMRI of validation windows."""
        fmri = self.windows["validation"].fmri(rows)
        return self.decoder(torch.from_numpy(fmri).to(self.device))


def draw_pairs(windows: Windows, draw: Draw, device: torch.device) -> Batch:
    """Clips (B, 3, F, H, W) and the fMRI (B, W, V) of some windows."""
    index = draw.rows(len(windows))
    fmri = torch.from_numpy(windows.fmri(index)).to(device)
    return {"index": index, "fmri": fmri, "clips": as_tensor(windows.frames(index), device)}


def later_clips(windows: Windows) -> tuple[int, Clips]:
    """Clips that start half a TR after a window: how many, and what reads them."""
    is_followed = np.append(windows.scan[1:] == windows.scan[:-1] + 1, False)
    starts = np.flatnonzero(is_followed)
    half = windows.store.num_frames // 2

    def read(index: np.ndarray) -> np.ndarray:
        first = starts[index]
        return np.concatenate([windows.frames(first)[:, half:], windows.frames(first + 1)[:, :half]], axis=1)

    return len(starts), read


def film_clips(context: MethodContext, store: Store) -> tuple[int, Clips]:
    """Consecutive clips of one TR of a folder of films, cut once."""
    folder = context.recipe.baseline.separable.films
    assert folder is not None
    films = [path for path in walk_files(folder) if path.suffix.lower() in SUFFIXES]
    places = [(path, number) for path in films for number in range(int(probe(path).duration_s // store.tr_s))]
    if not places:
        raise DataError(f"expected films ({', '.join(SUFFIXES)}) of at least one TR in {folder}, found none")

    def compute(start: int, stop: int) -> dict[str, np.ndarray]:
        rows = [
            read_frames(path, number * store.tr_s + (np.arange(store.num_frames) + 0.5) / store.fps, store.size)
            for path, number in places[start:stop]
        ]
        return {"clips": np.stack(rows)}

    key = {"films": [[str(path.relative_to(folder)), path.stat().st_size, number] for path, number in places],
           "size": store.size, "frames": store.num_frames}  # fmt: skip
    table = compute_table(context.folder / "films", key, len(places), 8, compute, context.progress)
    clips = cast(zarr.Array, table["clips"])
    return len(places), lambda index: np.stack([np.asarray(clips[int(i)]) for i in index])


class Separable:
    """Separable encoder and decoder; `Method`."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.settings = context.recipe.baseline.separable

    def fit(self, store: Store) -> None:
        """Train the encoder, then the decoder, or resume where a killed run stopped."""
        context, settings = self.context, self.settings
        refuse_checkpointing(settings, "separable")
        windows = context.windows(store)
        unlabelled = later_clips(windows["train"]) if settings.films is None else film_clips(context, store)
        torch.manual_seed(context.seed)
        shape = (store.num_frames, store.size, settings.width)
        encoder = FramesToFmri(context.recipe.align.window, store.n_voxels, *shape)
        first = settings.model_copy(update={"steps": settings.encoder_steps})
        context.train(EncoderTask(encoder, windows, context.device), first, "encoder")
        torch.manual_seed(context.seed + 1)
        self.decoder = FmriToFrames(encoder, *shape)
        decoding = DecoderTask(context, self.decoder, encoder, windows, unlabelled)
        context.train(decoding, settings, "decoder", seed=context.seed + 1)
        self.decoder.eval()

    @torch.inference_mode()
    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3)."""
        return as_clips(self.decoder(torch.from_numpy(fmri).to(self.context.device)))
