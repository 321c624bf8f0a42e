"""A user's own encoder: any module that maps (B, W, V) to (B, L, C)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.classes import import_class
from mindvideo.errors import ModelError, SettingError
from mindvideo.models.interfaces import Encoder, TokenStatistics, VoxelLayout, only_person
from mindvideo.models.transformer import check_fmri


def import_encoder(name: str) -> type[nn.Module]:
    """The class ``module:Class``; SettingError if it cannot be imported or is no torch module."""
    found = import_class(name, "a torch.nn.Module")
    if not issubclass(found, nn.Module):
        raise SettingError(f"expected module:Class naming a torch.nn.Module, found '{name}'")
    return found


class CustomEncoder(Encoder):
    """A user's own module, and a learned offset.

    Parameters
    ----------
    encoder : str
        ``module:Class``, called as ``Class(num_voxels=V, window=W, condition_length=L,
        condition_width=C, **settings)``, and with ``layouts``, a `VoxelLayout` per person, if it
        takes that (V is then the largest of them, and scans are padded). Its forward maps scaled
        scans (B, W, V) to (B, L, C), and gets ``person`` (B,) if it takes that. `explain` draws its
        ``attention_maps`` and ``token_voxels`` if it has them as `Encoder` does.
    num_voxels, window, condition_length, condition_width : int
    layouts : list of dict, optional
        `VoxelLayout.to_config` of each person.
    settings : dict, optional
        Further arguments of the class, as JSON values.
    input_mean, input_scale, voxel_id
        As in `FmriEncoder`.

    Raises
    ------
    SettingError
        If the class cannot be imported or does not take these arguments.
    """

    _supports_gradient_checkpointing = False
    may_leave_out = True

    @register_to_config
    def __init__(
        self,
        encoder: str,
        num_voxels: int,
        window: int,
        condition_length: int,
        condition_width: int,
        layouts: list[dict[str, Any]] | None = None,
        settings: dict[str, Any] | None = None,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        voxel_id: str | None = None,
    ) -> None:
        super().__init__()
        own = import_encoder(encoder)
        sizes: dict[str, Any] = dict(num_voxels=num_voxels, window=window)
        sizes |= dict(condition_length=condition_length, condition_width=condition_width)
        people = tuple(map(VoxelLayout.from_config, layouts or [{"num_voxels": num_voxels, "voxel_id": voxel_id}]))
        if "layouts" in inspect.signature(own).parameters:
            sizes["layouts"] = people
        else:
            only_person(people, encoder)
        try:
            self.body = own(**sizes, **(settings or {}))
        except TypeError as error:
            raise SettingError(
                f"expected {encoder} to take {', '.join(sizes)} and align.encoder_settings, found: {error}"
            ) from None
        self._is_told_person = "person" in inspect.signature(self.body.forward).parameters
        self.offset = nn.Parameter(torch.zeros(condition_length, condition_width))
        self.add_logit_scale()

    @classmethod
    def build(
        cls, layouts: Sequence[VoxelLayout], sizes: Mapping[str, Any], architecture: Mapping[str, Any], **settings: Any
    ) -> Self:
        """A new encoder of the class ``settings["encoder"]``."""
        return cls(
            encoder=settings["encoder"],
            num_voxels=max(layout.num_voxels for layout in layouts),
            layouts=[layout.to_config() for layout in layouts],
            voxel_id=layouts[0].voxel_id,
            settings=settings["encoder_settings"] or None,
            **sizes,
        )

    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """Condition (B, L, C) of windows (B, W, V); ModelError where the module returns another shape."""
        config = self.config
        condition = self.body(*self._given(fmri, person))
        wanted = (len(fmri), config.condition_length, config.condition_width)
        if tuple(condition.shape) != wanted:
            raise ModelError(
                f"expected a condition of shape {wanted} from {config.encoder}, found {tuple(condition.shape)}"
            )
        return condition + self.offset

    def _given(self, fmri: torch.Tensor, person: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        config = self.config
        check_fmri(fmri, (None, config.window, config.num_voxels), "BWV", config.encoder)
        scaled = (fmri - config.input_mean) / config.input_scale
        if not self._is_told_person:
            return (scaled,)
        return scaled, torch.zeros(len(fmri), dtype=torch.long, device=fmri.device) if person is None else person

    @torch.no_grad()
    def start_at(self, tokens: TokenStatistics) -> None:
        """Begin at the mean token."""
        self.offset.copy_(tokens.mean)

    def token_voxels(self, person: int = 0) -> list[np.ndarray] | None:
        """What the class says, where it says anything."""
        own = getattr(self.body, "token_voxels", None)
        return None if own is None else list(own(person))

    @torch.no_grad()
    def attention_maps(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """What the class says: (depth, T)."""
        own: Any = self.body
        maps: torch.Tensor = own.attention_maps(*self._given(fmri, person))
        return maps
