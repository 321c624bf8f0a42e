"""The foundation's image classifier (a ViT) in parts.

Shapes: N frames, H W pixels, h w pixels as the network takes them, P patches, D embedding, S side
of a patch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from mindvideo.errors import ModelError
from mindvideo.generate.clips import split_batches
from mindvideo.models.foundation import Foundation

BATCH = 64
RIDGE = 1e-9
"""Added to the features' covariance, relative to its mean diagonal."""


class VisionNetwork:
    """Early feature maps (patch embedding) and semantic features (class token) of frames.

    Attributes
    ----------
    kernel : Tensor, float64 (D, 3 · S · S)
        The patch embedding's convolution, one row a feature.
    """

    def __init__(self, foundation: Foundation) -> None:
        self.foundation = foundation
        self.model = foundation.image_classifier
        projection = self.model.vit.embeddings.patch_embeddings.projection
        self.side = int(projection.kernel_size[0])
        self.size = int(self.model.config.image_size)
        self.kernel = projection.weight.detach().cpu().double().flatten(1)
        self.bias = projection.bias.detach().cpu().double()
        blank = np.stack([np.full((self.size, self.size, 3), grey, np.uint8) for grey in (0, 255)])
        low, high = foundation._pixels("image_classifier", blank)[:, :, :1, :1].double().cpu()
        self.offset, self.range = low, high - low

    def pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (N, 3, H, W) in [0, 1] as the network takes them, (N, 3, h, w); differentiable."""
        if frames.shape[-2:] != (self.size, self.size):
            frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", antialias=True)
        return frames * self.range.to(frames) + self.offset.to(frames)

    def patches(self, frames: np.ndarray) -> torch.Tensor:
        """Patches (N, P, 3 · S · S) float64 of frames uint8 (N, H, W, 3), as the network takes them."""
        pixels = self.pixels(torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255)
        return F.unfold(pixels, self.side, stride=self.side).transpose(1, 2)

    def early(self, frames: np.ndarray) -> np.ndarray:
        """Feature maps of frames uint8 (N, H, W, 3): float32 (N, P · D)."""
        return (self.patches(frames) @ self.kernel.T + self.bias).flatten(1).float().numpy()

    def fit_deconvolution(self, read: Callable[[int], np.ndarray], n_batches: int) -> None:
        """Find the least-squares map from feature maps back to pixels of training frames.

        With mean m and covariance S of the training patches and the kernel K, it is f → m + S Kᵀ (K
        S Kᵀ)⁻¹ (f − K m − b). Patches do not overlap, so each is solved alone. ``read`` gives the frames
        uint8 (N, H, W, 3) of a batch.
        """
        width = self.kernel.shape[1]
        total = torch.zeros(width).double()
        square = torch.zeros(width, width).double()
        count = 0
        for number in range(n_batches):
            rows = self.patches(read(number)).flatten(0, 1)
            total = total + rows.sum(dim=0)
            square = square + rows.T @ rows
            count = count + len(rows)
        self.mean = total / count
        covariance = square / count - torch.outer(self.mean, self.mean)
        features = self.kernel @ covariance @ self.kernel.T
        features += RIDGE * features.diagonal().mean() * torch.eye(len(features)).double()
        self.inverse = torch.linalg.solve(features, self.kernel @ covariance).T

    def deconvolve(self, early_NPD: np.ndarray, size: int) -> np.ndarray:
        """Frames uint8 (N, size, size, 3) of feature maps (N, P · D)."""
        count = (self.size // self.side) ** 2
        maps = torch.from_numpy(early_NPD).double().view(len(early_NPD), count, -1)
        patches = (maps - self.bias - self.kernel @ self.mean) @ self.inverse.T + self.mean
        pixels = F.fold(patches.transpose(1, 2), (self.size, self.size), self.side, stride=self.side)
        frames = (pixels - self.offset) / self.range
        if size != self.size:
            frames = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
        return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    @torch.inference_mode()
    def semantic(self, frames: np.ndarray) -> np.ndarray:
        """Class token before the classifier, float32 (N, D), of frames uint8 (N, H, W, 3)."""
        rows = []
        for index in split_batches(len(frames), BATCH):
            pixels = self.foundation._pixels("image_classifier", frames[index])
            rows.append(self.model.vit(pixel_values=pixels).last_hidden_state[:, 0].float().cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def categories(self, semantic_ND: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) float32 of semantic features."""
        logits = self.model.classifier(torch.from_numpy(semantic_ND).to(self.foundation.device))
        return F.softmax(logits.float(), -1).cpu().numpy()

    def tokens(self, frames: torch.Tensor, layer: int) -> torch.Tensor:
        """Patch tokens (N, P, D) after ``layer`` blocks; differentiable."""
        states = self.model.vit(pixel_values=self.pixels(frames), output_hidden_states=True).hidden_states
        if layer >= len(states):
            raise ModelError(f"expected a layer from 0 to {len(states) - 1} of the image classifier, found {layer}")
        return states[layer][:, 1:]
