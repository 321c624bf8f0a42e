"""An encoder of the user's own in the place of the paper's: any module that maps (B, W, V) to (B, L, C).

Shapes: B batch, W scans per window, V voxels, L condition tokens, C condition width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.classes import import_class
from mindvideo.errors import ModelError, SettingError
from mindvideo.models.fmri_encoder import FmriEncoder
from mindvideo.models.loading import WholeModel
from mindvideo.models.transformer import check_fmri


def import_encoder(name: str) -> type[nn.Module]:
    """The class behind ``module:Class``; SettingError where it cannot be imported or is no torch module."""
    found = import_class(name, "a torch.nn.Module")
    if not issubclass(found, nn.Module):
        raise SettingError(f"expected module:Class naming a torch.nn.Module, found '{name}'")
    return found


class OwnEncoder(WholeModel):
    """A window of fMRI scans to the condition, by a module of the user's own.

    Parameters
    ----------
    encoder : str
        ``module:Class``, imported when the model is made or loaded. Called as ``Class(num_voxels=V, window=W,
        condition_length=L, condition_width=C, **settings)``; its forward maps scaled scans (B, W, V) to (B, L, C).
    num_voxels, window, condition_length, condition_width : int
    settings : dict, optional
        Further arguments of the class; what JSON can hold.
    input_mean, input_scale, voxel_id, token_bias
        As in `FmriEncoder`.

    Raises
    ------
    SettingError
        Where the class cannot be imported or does not take these arguments.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        encoder: str,
        num_voxels: int,
        window: int,
        condition_length: int,
        condition_width: int,
        settings: dict[str, Any] | None = None,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        voxel_id: str | None = None,
        token_bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(num_voxels=num_voxels, window=window)
        sizes |= dict(condition_length=condition_length, condition_width=condition_width)
        try:
            self.body = import_encoder(encoder)(**sizes, **(settings or {}))
        except TypeError as error:
            raise SettingError(
                f"expected {encoder} to take {', '.join(sizes)} and align.encoder_settings, found: {error}"
            ) from None
        self.offset = nn.Parameter(torch.zeros(condition_length, condition_width)) if token_bias else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, fmri: torch.Tensor) -> torch.Tensor:
        """Condition (B, L, C) of windows (B, W, V); ModelError where the module returns another shape."""
        config = self.config
        check_fmri(fmri, (None, config.window, config.num_voxels), "BWV", config.encoder)
        condition = self.body((fmri - config.input_mean) / config.input_scale)
        wanted = (len(fmri), config.condition_length, config.condition_width)
        if tuple(condition.shape) != wanted:
            raise ModelError(
                f"expected a condition of shape {wanted} from {config.encoder}, found {tuple(condition.shape)}"
            )
        return condition if self.offset is None else condition + self.offset

    @staticmethod
    def pool(condition: torch.Tensor) -> torch.Tensor:
        """Mean over the condition's tokens: (B, L, C) to (B, C)."""
        return condition.mean(dim=1)


AnyEncoder = FmriEncoder | OwnEncoder


def load_encoder(folder: str | Path, **kwargs: Any) -> AnyEncoder:
    """The encoder in a folder, of the class its ``config.json`` names; arguments as `WholeModel.from_pretrained`."""
    path = Path(folder) / "config.json"
    try:
        name = json.loads(path.read_text()).get("_class_name") if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        name = None
    chosen: Any = OwnEncoder if name == OwnEncoder.__name__ else FmriEncoder
    return chosen.from_pretrained(folder, **kwargs)


def token_offset(encoder: AnyEncoder) -> nn.Parameter | None:
    """The learned offset of the condition (L, C), where the encoder has one."""
    return encoder.offset if isinstance(encoder, OwnEncoder) else encoder.proj_head.offset
