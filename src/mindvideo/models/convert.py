"""A released model's parts as our own classes in safetensors, every weight accounted for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mindvideo.errors import ModelError, SettingError
from mindvideo.files import is_there
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.released import (
    CLASSES,
    KNOWN_ABSENT,
    UNUSED,
    Kind,
    Weights,
    brain_settings,
    classify,
    plain_names,
    read_release_file,
    rename_vae,
    unet_settings,
)
from mindvideo.models.transformer import count_patches
from mindvideo.models.weight_files import find_weights

PARTS: dict[str, Kind] = {"fmri_encoder": "FmriEncoder", "unet": "VideoUNet", "vae": "AutoencoderKL"}
PRIVATE = ("_class_name", "_diffusers_version", "_name_or_path")


@dataclass
class Conversion:
    """What was converted: our class by part (``""`` for a single model), and notes."""

    parts: dict[str, Kind] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert_parts(
    release: Path,
    out: Path,
    *,
    num_voxels: int | None = None,
    overrides: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
) -> Conversion:
    """Write every model found in a release as ``config.json`` and safetensors.

    Parameters
    ----------
    release : Path
        A released MinD-Video folder (``unet/ vae/ fmri_encoder/``), one such part, or a checkpoint
        file.
    out : Path
        Receives a folder for each part, or a single model itself.
    num_voxels : int, optional
        Another number of voxels: positions are interpolated, nearest neighbour.
    overrides : dict, optional
        Settings that the release does not state, such as ``num_heads``.
    drop : tuple of str
        Settings of the release that may be left out.

    Raises
    ------
    ModelError
        Names every weight that is missing, unexpected or misshapen, and every unknown setting.
    """
    found = Conversion()
    if release.is_dir():
        parts = {name: kind for name, kind in PARTS.items() if (release / name).is_dir()}
        if parts:
            for name in parts:
                files = _weight_files(release / name)
                found.parts[name] = _convert_files(files, out / name, f"{name}: ", num_voxels, overrides, drop, found)
                if found.parts[name] != PARTS[name]:
                    raise ModelError(f"expected the weights of {PARTS[name]} in {files[0]}, found {found.parts[name]}")
            return found
    files = _weight_files(release) if release.is_dir() else (release,)
    found.parts[""] = _convert_files(files, out, "", num_voxels, overrides, drop, found)
    return found


def _weight_files(folder: Path) -> tuple[Path, ...]:
    own = folder / "model.pth"  # as the fMRI encoder is released
    if is_there(own):
        return (own,)
    if (folder / ".metadata").is_file():
        raise ModelError(
            f"expected weights in one file or in the shards of an index in {folder}, found torch's sharded checkpoint; join "
            f"it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} joined.pth; then convert joined.pth"
        )
    try:
        return find_weights(folder).paths
    except ModelError as error:
        raise ModelError(f"{error}, or give a folder with the parts {', '.join(PARTS)}") from None


def _convert_files(
    files: tuple[Path, ...],
    out: Path,
    label: str,
    num_voxels: int | None,
    overrides: dict[str, Any] | None,
    drop: tuple[str, ...],
    found: Conversion,
) -> Kind:
    weights: Weights = {}
    stated: dict[str, Any] = {}
    notes: list[str] = []
    for file in files:  # the shards of one model
        part, beside, left_out = read_release_file(file)
        weights, stated = weights | part, stated | beside
        notes += left_out
    file, weights = files[0], plain_names(weights, files[0])
    stated |= _stated_settings(file.parent / "config.json")
    kind = classify(weights, file)
    if kind in ("FmriEncoder", "MaskedBrainModel"):
        settings = _brain_settings(kind, weights, stated, overrides or {}, file, notes)
    else:
        settings = _diffusers_settings(kind, stated, file, drop, notes)
        weights = rename_vae(weights) if kind == "AutoencoderKL" else weights
    model = load_checked(kind, settings, weights, file, notes)
    if num_voxels is not None and kind in ("FmriEncoder", "MaskedBrainModel"):
        model = _with_voxels(kind, model, num_voxels, notes)
    model.save_pretrained(out)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    found.notes += [f"{label}{kind}, {count:,} values from {file.name}", *(f"{label}{note}" for note in notes)]
    return kind


def _stated_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ModelError(f"expected JSON in {path}, found something else; fetch it again") from None
    return {name: value for name, value in content.items() if name not in PRIVATE}


def _brain_settings(
    kind: Kind, weights: Weights, stated: dict[str, Any], overrides: dict[str, Any], file: Path, notes: list[str]
) -> dict[str, Any]:
    """Settings from the shapes, over them what the release states, over that what the user says."""
    known = CLASSES[kind]._get_init_keys(CLASSES[kind])
    for name in overrides:
        if name not in known:
            raise SettingError(f"expected a setting of {kind} ({', '.join(sorted(known))}), found '{name}'")
    derived = brain_settings(kind, weights)
    taken = {name: value for name, value in stated.items() if name in known and value is not None}
    num_patches = derived["num_voxels"] // derived["patch_size"]
    voxels = taken.get("num_voxels")
    if voxels is not None and count_patches(voxels, derived["patch_size"]) != num_patches:
        notes.append(
            f"the release states {voxels} voxels, its weights are for {num_patches} patches: fMRI must be padded "
            f"(wrapped round) to {derived['num_voxels']} voxels, as its own data preparation does"
        )
        del taken["num_voxels"]
    unused = sorted(set(stated) - known)
    if unused:
        notes.append(f"settings of the release that the weights make superfluous: {', '.join(unused)}")
    settings = derived | taken | overrides
    heads = ["num_heads", *(["decoder_num_heads"] if kind == "MaskedBrainModel" else [])]
    unknown = [name for name in heads if name not in settings]
    if unknown:
        raise SettingError(
            f"expected the number of attention heads beside the weights in {file}, found none, and shapes do not tell "
            f"it; give {' '.join(f'--set {name}=16' for name in unknown)} (16 in the paper)"
        )
    return settings


def _diffusers_settings(
    kind: Kind, stated: dict[str, Any], file: Path, drop: tuple[str, ...], notes: list[str]
) -> dict[str, Any]:
    if not stated:
        raise ModelError(f"expected config.json beside {file}, found none; a {kind} cannot be told from weights alone")
    known = CLASSES[kind]._get_init_keys(CLASSES[kind])
    unknown = sorted(name for name in set(stated) - known if not name.startswith("_") and name not in drop)
    active = [name for name in unknown if stated[name] not in (None, False)]
    if active:
        raise ModelError(
            f"expected only settings of {kind} in {file.parent / 'config.json'}, found {', '.join(active)}; where they "
            f"do not change what is computed, give {' '.join(f'--drop {name}' for name in active)}"
        )
    left_out = sorted((set(unknown) | set(drop)) & set(stated))
    if left_out:
        notes.append(f"settings left out: {', '.join(left_out)}")
    settings = {name: value for name, value in stated.items() if name in known}
    return unet_settings(settings) if kind == "VideoUNet" else settings


def load_checked(kind: Kind, settings: dict[str, Any], weights: Weights, where: Path, notes: list[str]) -> Any:
    """A model with exactly these ``weights``, in float32; ModelError with every other name."""
    try:
        model = CLASSES[kind](**settings)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"expected settings of a {kind} beside {where}, found some that contradict: {reason}"
        ) from None
    own: Weights = model.state_dict()
    missing = sorted(set(own) - set(weights))
    absent = [name for name in missing if kind == "FmriEncoder" and name in KNOWN_ABSENT]
    if kind == "VideoUNet" and not any(".attn_temp." in name for name in weights):
        absent = [name for name in missing if ".attn_temp." in name or ".norm_temp." in name]
        notes.append(f"a 2-D UNet: {len(absent)} temporal weights (attn_temp, norm_temp) are new and start as identity")
    elif absent:
        notes.append(f"known to be absent, left as they start: {', '.join(absent)}")
    if kind == "FmriEncoder" and not settings["has_temporal_attention"]:
        notes.append("a plain encoder: no temporal attention (attn_temp, norm_temp) in its weights")
    misshapen = {name for name in set(own) & set(weights) if own[name].shape != weights[name].shape}
    unused = misshapen & set(UNUSED if kind == "FmriEncoder" else ())
    if unused:
        notes.append(f"without a part in the model, left out for their shape: {', '.join(sorted(unused))}")
    problems = [
        ("missing", [name for name in missing if name not in absent]),
        ("unexpected", sorted(set(weights) - set(own))),
        (
            "misshapen",
            [
                f"{name} (expected {tuple(own[name].shape)}, found {tuple(weights[name].shape)})"
                for name in sorted(misshapen - unused)
            ],
        ),
    ]
    told = "; ".join(f"{what} {', '.join(names)}" for what, names in problems if names)
    if told:
        raise ModelError(f"expected every weight of {kind} in {where}, found {told}")
    taken = {name: weight.to(torch.float32) for name, weight in weights.items() if name not in unused}
    model.load_state_dict(own | taken)
    return model.eval()


def _with_voxels(kind: Kind, model: Any, num_voxels: int, notes: list[str]) -> Any:
    old, patches = model.num_patches, count_patches(num_voxels, model.config.patch_size)
    if num_voxels == model.config.num_voxels:
        return model
    if kind == "FmriEncoder":
        if patches != old:
            mapper = tuple(model.proj_head.channel_mapper.weight.shape)
            raise ModelError(
                f"expected as many patches as the encoder's {old} for {num_voxels} voxels, found {patches}: misshapen "
                f"proj_head.channel_mapper.weight {mapper} (its head reads every patch); pad the fMRI to "
                f"{model.config.num_voxels} voxels, or convert a pre-training checkpoint instead"
            )
        model.register_to_config(num_voxels=num_voxels)
        notes.append(f"{num_voxels} voxels, wrapped round to {patches} patches")
        return model
    notes.append(
        f"positions interpolated (nearest) from {old} to {patches} patches for {num_voxels} voxels"
        if patches != old
        else f"{num_voxels} voxels, wrapped round to the same {patches} patches; positions unchanged"
    )
    return MaskedBrainModel.from_other_voxels(model, num_voxels, positions="interpolate")
