"""Encoders of fMRI, by the name a recipe gives them (`align.encoder`).

To add one, write a file here with a subclass of `mindvideo.models.interfaces.Encoder`, and a line
in `ENCODERS`; or name a class anywhere as ``module:Class``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mindvideo.config import AREA_ENCODERS, MaskedBrain
from mindvideo.errors import ModelError, SettingError
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.models.encoders.custom import CustomEncoder, import_encoder
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.encoders.read_out import ReadOutEncoder
from mindvideo.models.encoders.ridge_areas import RidgeAreaEncoder
from mindvideo.models.interfaces import Encoder, only_person
from mindvideo.models.loading import class_named
from mindvideo.models.masked_areas import MaskedAreaModel
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.voxel_layout import VoxelLayout

MASKED = (MaskedBrainModel, MaskedAreaModel)
"""What `pretrain` and `adapt` train: for encoders of patches, and of areas."""
BY_RECIPE = {"self", "num_voxels", "layouts", "voxel_id", "window", "condition_length", "condition_width", "dropout"}
BY_RECIPE |= {"input_mean", "input_scale", *MaskedBrain.model_fields}
"""Constructor's arguments that other settings, the recordings and the foundation determine."""

ENCODERS: dict[str, type[Encoder]] = {
    "paper": FmriEncoder, "read_out": ReadOutEncoder, "areas": AreaEncoder, "ridge_areas": RidgeAreaEncoder
}  # fmt: skip


def encoder_class(name: str) -> type[Encoder]:
    """The class behind a name of `ENCODERS` or ``module:Class``; SettingError for neither."""
    if name in ENCODERS:
        return ENCODERS[name]
    if ":" not in name:
        raise SettingError(f"expected align.encoder to be one of {', '.join(ENCODERS)} or module:Class, found '{name}'")
    import_encoder(name)
    return CustomEncoder


def takes_several(name: str) -> bool:
    """Whether an encoder can be of several people, as ours of areas and classes that take ``layouts``."""
    if encoder_class(name) is not CustomEncoder:
        return name in AREA_ENCODERS
    return "layouts" in inspect.signature(import_encoder(name)).parameters


def encoder_arguments(name: str, dropout: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Encoder.build` for this encoder alone; SettingError for unknown ones."""
    if name not in ENCODERS:
        return {"encoder": name, "encoder_settings": dict(settings)}
    offered = sorted(set(inspect.signature(ENCODERS[name].__init__).parameters) - BY_RECIPE)
    unknown = sorted(set(settings) - set(offered))
    if unknown:
        raise SettingError(
            f"expected align.encoder_settings of the encoder '{name}' among {', '.join(offered)}, found {', '.join(unknown)}"
        )
    return {"dropout": dropout, **settings}


def load_encoder(folder: str | Path, **kwargs: Any) -> Encoder:
    """The encoder in a folder; arguments as `WholeModel.from_pretrained`."""
    return class_named(folder, [*ENCODERS.values(), CustomEncoder]).from_pretrained(folder, **kwargs)


def new_masked_brain(
    name: str, layouts: Sequence[VoxelLayout], architecture: Mapping[str, Any], **settings: Any
) -> MaskedBrainModel:
    """A new masked brain model that the encoder ``name`` can go on from, of one person per layout.

    ``architecture`` is the recipe's section ``encoder``; others are ``mask_ratio``, ``input_mean``
    and ``input_scale``.
    """
    if name in AREA_ENCODERS:
        chosen = {part: value for part, value in architecture.items() if not part.startswith("patch_")}
        return MaskedAreaModel([layout.to_config() for layout in layouts], **chosen, **settings)
    return MaskedBrainModel(only_person(layouts, name).num_voxels, **architecture, **settings)


def load_masked_brain(folder: str | Path, name: str | None = None) -> MaskedBrainModel:
    """The masked brain model in a folder; ModelError if the encoder ``name`` cannot go on from it."""
    if name is not None:
        require_masked_brain(folder, name)
    return class_named(folder, MASKED).from_pretrained(folder)


def require_masked_brain(folder: str | Path, name: str) -> None:
    """Raise ModelError if the encoder ``name`` cannot go on from the masked brain model in a folder."""
    found, wanted = class_named(folder, MASKED), MASKED[name in AREA_ENCODERS]
    if found is not wanted:
        other = "paper" if wanted is MaskedAreaModel else "areas"
        raise ModelError(
            f"expected a {wanted.__name__} for the encoder '{name}' in {folder}, found a {found.__name__}; give other "
            f"weights, or --set align.encoder={other}"
        )


def masked_brain_of(
    model: MaskedBrainModel,
    layouts: Sequence[VoxelLayout],
    positions: Literal["recompute", "interpolate"] = "recompute",
    **scale: float,
) -> MaskedBrainModel:
    """``model`` for other voxels, see `MaskedBrainModel.from_other_voxels`."""
    if isinstance(model, MaskedAreaModel):
        return MaskedAreaModel.from_other_people(model, layouts, **scale)
    voxels = only_person(layouts, "paper").num_voxels
    return MaskedBrainModel.from_other_voxels(model, voxels, positions, **scale)
