"""What the rest of the code may ask of an fMRI encoder and of a generator of clips.

All code outside `mindvideo.models.encoders` and `mindvideo.models.generators` uses these two.

Shapes: B windows, W scans per window, V voxels, L condition tokens, C condition width, T tokens of
an encoder, c F h w channels, frames and sides of latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from mindvideo.errors import ModelError, SettingError
from mindvideo.models.loading import WholeModel
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.voxel_layout import VoxelLayout


@dataclass(frozen=True)
class TokenStatistics:
    """Mean (L, C) of the text tokens, their principal components (K, L·C) and variances (K,)."""

    mean: torch.Tensor
    components: torch.Tensor
    spread: torch.Tensor


@dataclass(frozen=True)
class LinearReading:
    """One person's linear read-out of a window: ``((fmri · weight) + bias) · components`` is added to the mean tokens.

    ``weight`` is (W·V, K), scan after scan, ``bias`` (K,) and ``components`` (K, L·C), the
    strongest first; float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    components: torch.Tensor


class Encoder(WholeModel, ABC):
    """A window of fMRI scans to the condition of the generator.

    A subclass registers its constructor's arguments as its configuration, among them ``num_voxels``
    (the most of any person), ``window``, ``condition_length``, ``condition_width``, ``input_mean``,
    ``input_scale`` and ``voxel_id``. It calls `add_logit_scale` and offers `build`, `forward`, and
    perhaps `from_masked_brain`.
    """

    starts_from_masked_brain: ClassVar[bool] = False
    may_leave_out: bool = False
    """Whether some parameters may get no gradient in a step, as those of a person without scans in the batch."""

    holds_readings: ClassVar[bool] = False
    """Whether each person's `LinearReading` is a part of it."""

    logit_scale: nn.Parameter

    @classmethod
    @abstractmethod
    def build(
        cls, layouts: Sequence[VoxelLayout], sizes: Mapping[str, Any], architecture: Mapping[str, Any], **settings: Any
    ) -> Self:
        """A new encoder.

        Parameters
        ----------
        layouts : sequence of VoxelLayout
            One a person.
        sizes : mapping
            ``window``, ``condition_length``, ``condition_width``, and optionally ``input_mean`` and
            ``input_scale``.
        architecture : mapping
            The recipe's section ``encoder``.
        **settings
            The recipe's ``align.dropout`` and ``align.encoder_settings``.
        """

    @classmethod
    def from_masked_brain(cls, model: MaskedBrainModel, **settings: Any) -> Self:
        """A new encoder that goes on from a masked brain model; ModelError if it cannot.

        ``settings`` are those that it does not determine: ``window``, ``condition_length`` …
        """
        raise ModelError(f"expected an encoder that starts from a masked brain model, found {cls.__name__}")

    @abstractmethod
    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """Condition (B, L, C) of windows (B, W, V) of persons (B,), int64; by default the first."""

    def add_logit_scale(self) -> None:
        """Add the learned scale of the contrast's similarities (Radford et al. 2021)."""
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @staticmethod
    def pool(condition: torch.Tensor) -> torch.Tensor:
        """Mean over the condition's tokens: (B, L, C) to (B, C)."""
        return condition.mean(dim=1)

    def start_at(self, tokens: TokenStatistics) -> None:
        """Start from the mean tokens, if the encoder has parameters for it; the paper's has none."""

    def take_readings(self, readings: Sequence[LinearReading]) -> None:
        """Hold each person's linear reading, if the encoder `holds_readings`."""

    def token_voxels(self, person: int = 0) -> list[np.ndarray] | None:
        """Voxel indices of each of the T tokens of `attention_maps`, repeats included.

        None for an encoder without `attention_maps`.
        """
        return None

    def attention_maps(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """Attention each token receives from those of its scan, by layer: float32 (depth, T).

        Mean over heads, queries, scans and windows; rows sum to 1. ModelError for an encoder
        without `token_voxels`.
        """
        raise ModelError(f"expected an encoder that tells its attention, found {type(self).__name__}")

    def temporal_attention(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor | None:
        """Attention between the scans of a window (depth, W, W), float32; None if scans are not mixed.

        Queries by keys; mean over heads, tokens and windows; rows sum to 1.
        """
        return None

    def require_voxels(self, layouts: Sequence[VoxelLayout], where: Path | str) -> None:
        """Raise ModelError if the encoder was made for other people or voxels than the stores'."""
        known = self.config.get("layouts") or [dict(self.config)]
        if len(known) != len(layouts):
            raise ModelError(
                f"expected {len(known)} stores, one for each person that the encoder in {where} was trained on, found "
                f"{len(layouts)}; prepare the same people, or run align again"
            )
        for made, layout in zip(known, layouts, strict=True):
            count, expected, found = made["num_voxels"], made.get("voxel_id"), layout.voxel_id
            if count != layout.num_voxels or (expected is not None and expected != found):
                raise ModelError(
                    f"expected the {count} voxels that the encoder in {where} was trained on (id {str(expected)[:12]}), "
                    f"found {layout.num_voxels} in the store (id {str(found)[:12]}): voxels of another subject or "
                    "selection; prepare the same recordings with the same selection, or run align again on this store"
                )


class OfPerson(nn.Module):
    """One person's view of an encoder of several people: it takes that person's voxels (B, W, V)."""

    def __init__(self, encoder: Encoder, person: int) -> None:
        super().__init__()
        self.encoder, self.person = encoder, person
        own = {name: encoder.config.layouts[person][name] for name in ("num_voxels", "voxel_id")}
        self.config = FrozenDict({**encoder.config, **own})

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.encoder.dtype

    def _given(self, fmri: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        missing = self.encoder.config.num_voxels - fmri.shape[-1]
        person = torch.full((len(fmri),), self.person, dtype=torch.long, device=fmri.device)
        return torch.nn.functional.pad(fmri, (0, missing)), person

    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """See `Encoder.forward`."""
        condition: torch.Tensor = self.encoder(*self._given(fmri))
        return condition

    def token_voxels(self, person: int = 0) -> list[np.ndarray] | None:
        """See `Encoder.token_voxels`."""
        return self.encoder.token_voxels(self.person)

    def attention_maps(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """See `Encoder.attention_maps`."""
        return self.encoder.attention_maps(*self._given(fmri))

    def temporal_attention(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor | None:
        """See `Encoder.temporal_attention`."""
        return self.encoder.temporal_attention(*self._given(fmri))


def of_person(encoder: Encoder, person: int) -> Encoder:
    """The encoder itself, or one person's view of an encoder of several."""
    several = len(encoder.config.get("layouts") or ()) > 1
    return cast(Encoder, OfPerson(encoder, person)) if several else encoder


def only_person(layouts: Sequence[VoxelLayout], name: str) -> VoxelLayout:
    """The layout of the one person that an encoder can have; SettingError for more."""
    if len(layouts) != 1:
        raise SettingError(
            f"expected one person with the encoder '{name}', found {len(layouts)}; give --set align.encoder=areas"
        )
    return layouts[0]


class Generator(WholeModel, ABC):
    """A denoiser of clips, latents (B, c, F, h, w), under a condition (B, L, C).

    Its configuration holds ``in_channels`` (c), ``sample_size`` (h and w) and
    ``cross_attention_dim`` (C).
    """

    trained_parts: ClassVar[tuple[str, ...]] = ()
    """Parts of the names of the parameters that ``animate`` and ``cotrain`` train."""

    @classmethod
    @abstractmethod
    def from_foundation(
        cls,
        unet: nn.Module,
        settings: Mapping[str, Any] | None = None,
        motion: Mapping[str, torch.Tensor] | None = None,
    ) -> Self:
        """The generator that the foundation's 2-D UNet becomes.

        Its part ``motion`` has settings of its own, and weights that a 2-D UNet does not have;
        by default these start as identity.
        """

    @abstractmethod
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor | float, condition: torch.Tensor) -> Any:
        """An object whose ``sample`` (B, c, F, h, w) is of the scheduler's ``prediction_type``."""

    def constant_condition(self) -> AbstractContextManager[None]:
        """Within, conditions do not change, and what follows from them may be kept."""
        return nullcontext()


def share_noise(unet: nn.Module, noise: torch.Tensor) -> torch.Tensor:
    """Independent noise (B, C, F, H, W) with a correlation of ``noise_share`` between its frames.

    The denoiser's ``config`` says how much. Frames that begin alike end alike where nothing moves
    (Ge et al., Preserve Your Own Correlation, 2023). The map is the symmetric square root of the
    frames' covariance: the noise stays standard normal, and no random numbers are drawn.
    """
    share = getattr(unet, "config", {}).get("noise_share", 0.0)
    if not share or noise.shape[2] == 1:
        return noise
    own = (1 - share) ** 0.5
    common = (1 - share + share * noise.shape[2]) ** 0.5 - own
    return own * noise + common * noise.mean(2, keepdim=True)
