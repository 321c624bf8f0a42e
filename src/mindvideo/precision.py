"""The precision that networks compute in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch

from mindvideo import distributed
from mindvideo.config import Precision, Recipe
from mindvideo.errors import DataError
from mindvideo.files import write_text

Chosen = Literal["fp32", "bf16"]

FILE = "precision.txt"


def fastest_precision(device: torch.device) -> Chosen:
    """``bf16`` on CUDA from Ampere on and CPUs with avx512_bf16 or AMX; else slower."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        found = torch.cpu.get_capabilities()
        has_bf16 = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return "bf16" if has_bf16 else "fp32"


def resolve_precision(asked: Precision, device: torch.device) -> Chosen:
    """What ``auto`` means on a device; anything else as it is."""
    return fastest_precision(device) if asked == "auto" else asked


def settle_precision(folder: Path, asked: Precision, device: torch.device) -> Chosen:
    """The precision of what is made in ``folder``: chosen once and noted there.

    Work that goes on, perhaps on another machine, goes on in the precision it was begun in.

    Raises
    ------
    DataError
        When the note cannot be understood.
    """
    precision = settled_precision(folder) if asked == "auto" else None
    precision = distributed.broadcast(precision or resolve_precision(asked, device))
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, precision)
    return cast(Chosen, precision)


def settled_precision(folder: Path) -> Chosen | None:
    """The precision noted in ``folder``; None if there is no note."""
    path = folder / FILE
    if not path.is_file():
        return None
    found = path.read_text(errors="replace").strip()
    if found not in ("fp32", "bf16"):
        raise DataError(
            f"expected fp32 or bf16 in {path}, found {found[:20]!r}; remove {folder} to start that stage anew"
        )
    return cast(Chosen, found)


def sampling_in(recipe: Recipe, precision: Precision) -> Recipe:
    """The recipe with the precision that clips are sampled in."""
    return recipe.model_copy(update={"reconstruct": recipe.reconstruct.model_copy(update={"precision": precision})})


def resolve_precisions(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with every stage's precision as it would be chosen on a device."""
    changes = {
        name: section.model_copy(update={"precision": resolve_precision(section.precision, device)})
        for name, section in recipe
        if hasattr(section, "precision")
    }
    return recipe.model_copy(update=changes)
