"""Reading released weights safely, and what their names and shapes say.

Pickles are read with ``weights_only=True``; `STAND_INS` become inert objects, and any other class
or function is refused (docs/method.md, What others publish).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file

from mindvideo.errors import ModelError
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.weight_files import refuse_absent

Weights = dict[str, torch.Tensor]
Kind = Literal["FmriEncoder", "MaskedBrainModel", "VideoUNet", "AutoencoderKL"]
CLASSES: dict[Kind, Any] = {
    "FmriEncoder": FmriEncoder,
    "MaskedBrainModel": MaskedBrainModel,
    "VideoUNet": VideoUNet,
    "AutoencoderKL": AutoencoderKL,
}

STAND_INS = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "typing.Any", "numpy.dtype",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "pathlib.PosixPath", "pathlib._local.PosixPath",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "easydict.EasyDict", "yacs.config.CfgNode", "ml_collections.config_dict.config_dict.ConfigDict",
    *(f"config.Config_{name}" for name in ("MBM_fMRI", "MAE_fMRI", "MBM_finetune", "Generative_Model")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "set", "int", "float", "str", "bool")),
)  # fmt: skip
"""Classes, such as configurations, in released checkpoints; each becomes a bag of attributes."""

NESTS = ("model", "state_dict", "model_state_dict", "module", "network", "net", "model_ema", "ema")
"""Keys under which checkpoints keep their weights, in the order in which they are tried."""
SETTINGS = ("config", "args", "hyper_parameters")
"""Keys that checkpoints keep their settings under."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers of a model put into the names of its weights."""

UNUSED = ("cls_token", "mask_token")
"""Weights of an `FmriEncoder` that take no part at all: left out where their shape differs."""
KNOWN_ABSENT = (*UNUSED, "logit_scale")
"""Weights of an `FmriEncoder` that a released file may lack: they take no part in computing a condition."""

# Block classes of inflated UNets, by the names of the 2-D blocks whose weights they hold.
BLOCK_NAMES = {
    "CrossAttnDownBlock3D": "CrossAttnDownBlock2D",
    "DownBlock3D": "DownBlock2D",
    "UpBlock3D": "UpBlock2D",
    "CrossAttnUpBlock3D": "CrossAttnUpBlock2D",
    "UNetMidBlock3DCrossAttn": "UNetMidBlock2DCrossAttn",
}
# The VAE's attention before and after diffusers renamed it.
VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class StandIn:
    """Plain attributes of an object whose class is not at hand and not wanted."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value


def read_release_file(path: Path) -> tuple[Weights, dict[str, Any], list[str]]:
    """Weights by name, the settings stored beside them, and what else of the file was left out.

    It is ``.safetensors``, or a ``torch.save`` file of weights, perhaps under one of `NESTS`.
    ModelError where it is absent, damaged, without weights, or with other objects.
    """
    refuse_absent(path)
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    stated: dict[str, Any] = {}
    notes: list[str] = []
    while isinstance(weights, dict) and not all(isinstance(value, torch.Tensor) for value in weights.values()):
        for value in (weights.get(name) for name in SETTINGS):
            stated |= value if isinstance(value, dict) else vars(value) if isinstance(value, StandIn) else {}
        nests = {name: value for name, value in weights.items() if isinstance(value, dict)}
        known = [name for name in NESTS if name in nests]
        others = [name for name, value in nests.items() if name not in SETTINGS and _has_weights(value)]
        if not known and len(others) != 1:
            break
        taken = known[0] if known else others[0]
        if left_out := [name for name in others if name != taken]:
            notes.append(f"weights under '{taken}' are taken, those under {', '.join(left_out)} left out")
        weights = nests[taken]
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"expected weights by name in {path}, found {type(weights).__name__}; give another file")
    other = sorted(str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor))
    if other:
        raise ModelError(
            f"expected only tensors among the weights in {path}, found {', '.join(other[:8])}; save the model's state_dict"
        )
    return dict(weights), stated, notes


def _has_weights(content: dict[Any, Any]) -> bool:
    """Whether a dictionary, or a nested one, holds tensors by name, unlike an optimiser's state."""
    return any(
        isinstance(name, str) and (isinstance(value, torch.Tensor) or (isinstance(value, dict) and _has_weights(value)))
        for name, value in content.items()
    )


def plain_names(weights: Weights, where: Path) -> Weights:
    """Weights by the model's own names, without `WRAPPERS` and a common prefix."""
    named: Weights = {}
    for name, weight in weights.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in named:
            raise ModelError(f"expected each weight once in {where}, found {plain} twice; save the model's state_dict")
        if name != "n_averaged":  # the counter of torch's AveragedModel
            named[plain] = weight
    while len(first := {name.partition(".")[0] for name in named}) == 1 and all("." in name for name in named):
        named = {name.removeprefix(f"{next(iter(first))}."): weight for name, weight in named.items()}
    return named


def _read_safetensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"expected safetensors in {path}, found a damaged file ({error}); fetch it again") from None


def _read_pickle(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            foreign = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - set(STAND_INS))
            if foreign:
                raise ModelError(
                    f"expected tensors and plain settings in the pickle {path}, found {', '.join(foreign)}, which "
                    "would have to be executed; save the model's state_dict, or ask its authors for safetensors"
                )
        with torch.serialization.safe_globals([(StandIn, name) for name in STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        named = re.search(r"GLOBAL (\S+) (?:was not|whose module)", reason)
        found = f"{named[1]}, which would have to be executed" if named else f"none that can be read ({reason[:160]})"
        raise ModelError(
            f"expected tensors and plain settings in the pickle {path}, found {found}; fetch it again or ask its "
            "authors for safetensors"
        ) from None


def classify(weights: Weights, where: Path) -> Kind:
    """What kind of model the names belong to; ModelError for none of ours."""
    marks: tuple[tuple[str, Kind], ...] = (
        ("proj_head.channel_mapper.weight", "FmriEncoder"),
        ("decoder_pred.weight", "MaskedBrainModel"),
        ("time_embedding.linear_1.weight", "VideoUNet"),
        ("encoder.conv_in.weight", "AutoencoderKL"),
    )
    for mark, kind in marks:
        if mark in weights:
            return kind
    some = ", ".join(sorted(weights)[:4])
    raise ModelError(
        f"expected the weights of an fMRI encoder, a masked brain model, a UNet or a VAE in {where}, found names like "
        f"{some}; give a released MinD-Video folder or a MinD-Vis pre-training checkpoint"
    )


def _count(weights: Weights, stem: str) -> int:
    numbers = [int(found[1]) for name in weights if (found := re.match(rf"{re.escape(stem)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _need(weights: Weights, kind: Kind, *names: str) -> None:
    missing = [name for name in names if name not in weights]
    if missing:
        raise ModelError(f"expected every weight of {kind}, found missing {', '.join(missing)}; fetch the file again")


def brain_settings(kind: Kind, weights: Weights) -> dict[str, Any]:
    """Settings of an `FmriEncoder` or `MaskedBrainModel` that shapes determine; heads are not.

    ``num_voxels`` counts whole patches, padding included.
    """
    _need(weights, kind, "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    shapes = tuple(weights["patch_embed.proj.weight"].shape), tuple(weights["pos_embed"].shape)
    if len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[1][1] < 2:
        raise ModelError(
            f"expected patch_embed.proj.weight (D, 1, patch) and pos_embed (1, P + 1, D) of a released {kind}, found "
            f"{shapes[0]} and {shapes[1]}"
        )
    embed_dim, _, patch_size = shapes[0]
    num_patches = weights["pos_embed"].shape[1] - 1
    settings: dict[str, Any] = {
        "num_voxels": num_patches * patch_size,
        "patch_size": patch_size,
        "patch_weights": "shared",
        "embed_dim": embed_dim,
        "depth": _count(weights, "blocks"),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }
    if kind == "MaskedBrainModel":
        _need(weights, kind, "decoder_embed.weight")
        settings["decoder_embed_dim"] = weights["decoder_embed.weight"].shape[0]
        settings["decoder_depth"] = _count(weights, "decoder_blocks")
        return settings
    _need(weights, kind, "proj_head.projection.weight")
    length, num_tokens = weights["proj_head.channel_mapper.weight"].shape
    return settings | {
        "window": num_tokens // num_patches,
        "condition_length": length,
        "condition_width": weights["proj_head.projection.weight"].shape[0],
        "layer_norm": any(name.startswith("proj_head.layer_norm.") for name in weights),
        "has_temporal_attention": any(".attn_temp." in name for name in weights),
    }


def unet_settings(stated: dict[str, Any]) -> dict[str, Any]:
    """A UNet's stated settings with the 2-D names of its blocks."""
    settings = dict(stated)
    for key in ("down_block_types", "up_block_types"):
        if key in settings:
            settings[key] = tuple(BLOCK_NAMES.get(name, name) for name in settings[key])
    if "mid_block_type" in settings:
        settings["mid_block_type"] = BLOCK_NAMES.get(settings["mid_block_type"], settings["mid_block_type"])
    return settings


def rename_vae(weights: Weights) -> Weights:
    """VAE weights by diffusers' present names; attention stored as 1 x 1 convolutions becomes linear."""
    renamed = {}
    for name, weight in weights.items():
        stem, _, leaf = name.rpartition(".")
        place, _, layer = stem.rpartition(".")
        if ".attentions." in name and layer in VAE_ATTENTION:
            name = f"{place}.{VAE_ATTENTION[layer]}.{leaf}"
        if ".attentions." in name and ".to_" in name and weight.ndim == 4 and weight.shape[2:] == (1, 1):
            weight = weight[:, :, 0, 0]
        renamed[name] = weight
    return renamed
