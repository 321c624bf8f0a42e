"""What the encoder's tokens are regressed on: those of the frozen text encoder.

Shapes: B batch, L condition tokens, C condition width, K principal components.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from mindvideo.models.interfaces import TokenStatistics
from mindvideo.train.features import TextFeatures
from mindvideo.train.ridge import principal_components

WEAKEST = 1e-3
"""Whitening treats components as at least this strong, relative to the first."""


class TokenTarget:
    """The frozen text tokens of each window's caption, with their mean and variance.

    Parameters
    ----------
    whitening : float
        In the distance, components are weighted by their variance to the power of minus this; 0 is
        the mean squared error, in which place and colour drown motion.

    Attributes
    ----------
    mean : Tensor, (L, C) float32
        Mean over the windows.
    variance : float
        Mean squared deviation from it, by which the regression's loss is divided.
    components : Tensor, (K, L * C) float32
        Principal components, the strongest first; their variances are ``spread`` (K,).
    """

    def __init__(self, text: TextFeatures, captions: list[str], whitening: float = 0.0) -> None:
        self.text, self.row = text, text.rows(captions)
        rows, counts = torch.unique(self.row, return_counts=True)
        share = counts.float() / counts.sum()
        total = torch.zeros(text.tokens.shape[1:], dtype=torch.float64)
        for row, part in zip(rows, share, strict=True):
            total += float(part) * text.tokens[row].double()
        self.mean = total.float()
        deviations = (float((text.tokens[row].double() - total).square().mean()) for row in rows)
        self.variance = sum(float(part) * deviation for part, deviation in zip(share, deviations, strict=True))
        self.whitening, self._rows, self._share = whitening, rows, share

    @cached_property
    def _principal(self) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = (self.text.tokens[self._rows].float() - self.mean).flatten(1) * self._share.sqrt()[:, None]
        components, variances = principal_components(scaled.numpy())
        return torch.from_numpy(components), torch.from_numpy(variances)

    @property
    def statistics(self) -> TokenStatistics:
        """What an encoder may start from."""
        return TokenStatistics(self.mean, self.components, self.spread)

    @property
    def components(self) -> torch.Tensor:
        """(K, L * C), orthonormal rows."""
        return self._principal[0]

    @property
    def spread(self) -> torch.Tensor:
        """(K,) variances along the components."""
        return self._principal[1]

    @cached_property
    def _weights(self) -> torch.Tensor:
        weights = (self.spread + WEAKEST * self.spread[0]) ** -self.whitening
        return weights / (weights * self.spread).sum()

    def tokens(self, index: np.ndarray) -> torch.Tensor:
        """Tokens (B, L, C) float32 of the windows ``index``."""
        return self.text.tokens[self.row[index]].float()

    def distances(self, condition_BLC: torch.Tensor, tokens_BLC: torch.Tensor) -> torch.Tensor:
        """Squared distance of each condition from its tokens (B,), relative to their variance.

        With whitening, a tenth of the plain distance covers what lies outside the components.
        """
        error = condition_BLC.float() - tokens_BLC.to(condition_BLC.device)
        plain = error.square().flatten(1).mean(dim=1) / self.variance
        if self.whitening == 0:
            return plain
        along = error.flatten(1) @ self.components.T.to(error.device)
        whitened = (along.square() * self._weights.to(error.device)).sum(dim=1)
        return (whitened + 0.1 * plain) / 1.1
