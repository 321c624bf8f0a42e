"""``gan``: a video GAN on a linear fMRI embedding (Wang et al. 2022).

Follows Wang, Yan, Huang, Li, He, Fan, "Reconstructing rapid natural vision with fMRI-conditional
video generative adversarial network", Cerebral Cortex 32, 2022.

Differences from the paper:

- the embedding is ridge regression to the leading principal components of the training clips'
  latents and stays fixed, and the generator learns from out-of-fold embeddings: a few thousand
  windows would be memorised;
- hinge loss, exact spectral norms, so that a checkpoint needs only weights, and a pixel loss;
- both sides take their step together, with one optimiser and one checkpoint.

Shapes: N windows, B batch, F frames, H W pixels, E embedding, Z noise, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mindvideo.baselines.banded import BandedRidge, Components
from mindvideo.baselines.base import MethodContext, SplitWindows
from mindvideo.baselines.pixels import PixelTask, as_clips, as_tensor, channels_at, halvings, pixel_norm
from mindvideo.data.store import Store
from mindvideo.generate.clips import window_noise
from mindvideo.train.features import Features, Split
from mindvideo.train.loop import Batch, Draw, Metrics
from mindvideo.train.stage import refuse_checkpointing

COARSEST = 4


class SpectralConv(nn.Module):
    """Convolution over (F, H, W) whose matrix is divided by its largest singular value."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.padding = tuple(side // 2 for side in kernel)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(outputs, inputs, *kernel)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W) to (B, C', F', H', W')."""
        weight = self.weight / torch.linalg.matrix_norm(self.weight.flatten(1), ord=2)
        return F.conv3d(x, weight, self.bias, self.stride, self.padding)


class Generator(nn.Module):
    """Embedding (B, E) and noise (B, Z) to clips (B, 3, F, H, W) in [0, 1].

    Every step doubles the sides, then convolves in space and in time.
    """

    def __init__(self, embedding: int, noise: int, width: int, frames: int, size: int) -> None:
        super().__init__()
        self.frames = frames
        count = halvings(size, COARSEST)
        self.side = size // 2**count
        widths = [channels_at(width, max(0, step - 1)) for step in range(count + 1)]
        self.width = widths[0]
        self.start = nn.Linear(embedding + noise, self.width * frames * self.side**2)
        self.space = nn.ModuleList(nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1)) for a, b in itertools.pairwise(widths))
        self.time = nn.ModuleList(nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0)) for b in widths[1:])
        self.end = nn.Conv3d(widths[-1], 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, embedding: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Clips."""
        x = self.start(torch.cat([embedding, noise], dim=1))
        x = x.view(len(x), self.width, self.frames, self.side, self.side)
        for space, time in zip(self.space, self.time, strict=True):
            x = F.interpolate(F.leaky_relu(x, 0.2), scale_factor=(1, 2, 2), mode="nearest")
            x = pixel_norm(space(x))
            x = x + time(F.leaky_relu(x, 0.2))
        return torch.sigmoid(self.end(F.leaky_relu(x, 0.2)))


class Discriminator(nn.Module):
    """A judgement (B,) of clips (B, 3, F, H, W) with their embedding (a projection discriminator).

    One frame at a time (``depth`` 1) it is the image discriminator, with ``depth`` 3 the sequence
    discriminator.
    """

    def __init__(self, embedding: int, width: int, size: int, depth: int) -> None:
        super().__init__()
        channels = [3] + [channels_at(width, 2) * 2**step for step in range(min(3, halvings(size, COARSEST)))]
        self.layers = nn.ModuleList(
            SpectralConv(a, b, (depth, 3, 3), (1, 2, 2)) for a, b in itertools.pairwise(channels)
        )
        self.judge = nn.Linear(channels[-1], 1)
        self.match = nn.Linear(embedding, channels[-1], bias=False)

    def forward(self, clips: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """The higher, the more real."""
        x = clips * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        x = x.mean(dim=(2, 3, 4))
        return self.judge(x).squeeze(1) + (self.match(embedding) * x).sum(dim=1) / embedding.shape[1] ** 0.5


def frozen(module: nn.Module) -> Callable[..., torch.Tensor]:
    """The module as a function: gradients pass through it, and none reaches its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, weights, inputs)


@dataclass
class GanTask(PixelTask):
    """Random training clips: the generator against both discriminators, in one loss."""

    context: MethodContext
    networks: nn.ModuleDict
    windows: SplitWindows
    embedding: dict[Split, torch.Tensor]

    def __post_init__(self) -> None:
        self.settings = self.context.recipe.baseline.gan
        self.device = self.context.device
        self.networks.to(self.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Of the generator and both discriminators."""
        return dict(self.networks.named_parameters())

    def sample(self, draw: Draw) -> Batch:
        """Embeddings, clips, noise, and the frame that the image discriminator sees."""
        windows = self.windows["train"]
        index = draw.rows(len(windows))
        return {
            "index": index, "real": as_tensor(windows.frames(index), self.device),
            "embedding": self.embedding["train"][index].to(self.device),
            "noise": torch.randn(draw.size, self.settings.noise_width).to(self.device),
            "frame": np.full(draw.size, draw.rng.integers(windows.store.num_frames)),
        }  # fmt: skip

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Generator's and discriminators' losses of each window."""
        settings, networks = self.settings, self.networks
        real = batch["real"]
        embedding = batch["embedding"]
        frame = int(batch["frame"][0])
        fake = networks["generator"](embedding, batch["noise"])
        pixel = (fake - real).abs().flatten(1).mean(dim=1)
        total = settings.reconstruction_weight * pixel
        logged = {"pixel_loss": pixel.detach().mean()}
        judged = (
            ("image", settings.image_weight, slice(frame, frame + 1)),
            ("sequence", settings.sequence_weight, slice(None)),
        )
        for name, weight, frames in judged:
            judge = networks[name]
            total = total - weight * frozen(judge)(fake[:, :, frames], embedding)
            on_real = judge(real[:, :, frames], embedding)
            on_fake = judge(fake[:, :, frames].detach(), embedding)
            hinge = F.relu(1 - on_real) + F.relu(1 + on_fake)
            total = total + hinge
            logged[f"{name}_hinge_loss"] = hinge.detach().mean()
        return total, logged

    def make(self, rows: np.ndarray) -> torch.Tensor:
        """Clips from embeddings of validation windows, without noise."""
        embedding = self.embedding["validation"][rows].to(self.device)
        noise = torch.zeros(len(rows), self.settings.noise_width, device=self.device)
        return self.networks["generator"](embedding, noise)


class VideoGan:
    """Linear fMRI embedding and a conditional video GAN; `Method`."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.settings = context.recipe.baseline.gan

    def fit(self, store: Store) -> None:
        """Fit the embedding, then train the GAN or resume training."""
        context, settings = self.context, self.settings
        refuse_checkpointing(settings, "gan")
        windows = context.windows(store)
        embedding: dict[Split, torch.Tensor] = {"train": self._fit_embedding(store, windows)}
        if "validation" in windows:
            embedding["validation"] = torch.from_numpy(self.ridge.chosen_MT / self.scale)
        torch.manual_seed(context.seed)
        width = settings.width
        size = store.size
        frames = store.num_frames
        n_embedding = embedding["train"].shape[1]
        self.networks = nn.ModuleDict(
            {
                "generator": Generator(n_embedding, settings.noise_width, width, frames, size),
                "image": Discriminator(n_embedding, width, size, 1),
                "sequence": Discriminator(n_embedding, width, size, 3 if frames > 1 else 1),
            }
        )
        context.train(GanTask(context, self.networks, windows, embedding), settings)
        self.networks.eval()

    def _fit_embedding(self, store: Store, windows: SplitWindows) -> torch.Tensor:
        """Embeddings (N, E) of the training windows, out of fold."""
        context = self.context
        features = Features(context.run_dir, store, context.foundation, context.progress)
        targets = {split: features.latents(split).flatten(1).float().numpy() for split in windows}
        components = Components(targets["train"], self.settings.components)
        scores = {split: components.scores(rows) for split, rows in targets.items()}
        self.ridge = BandedRidge(self.settings.alphas).fit_windows(windows, scores, keeps_out_of_fold=True)
        self.scale = float(self.ridge.out_of_fold.std()) or 1.0
        self.ridge.note(context.folder, embedding=self.ridge.r2)
        return torch.from_numpy(self.ridge.out_of_fold / self.scale)

    @torch.inference_mode()
    def reconstruct(self, fmri: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3); a window's index determines its noise."""
        noise = [window_noise(self.context.recipe.seed, int(number), (self.settings.noise_width,)) for number in window]
        embedding = torch.from_numpy(self.ridge.predict(fmri) / self.scale)
        device = self.context.device
        return as_clips(self.networks["generator"](embedding.to(device), torch.stack(noise).to(device)))
