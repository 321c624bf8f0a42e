"""Checkpoints, written so that a kill leaves the old one or the new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mindvideo.errors import TrainingError
from mindvideo.files import beside_folder


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
    """Write a checkpoint: ``tensors.safetensors``, and plain numbers in ``state.json``."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with beside_folder(folder) as place:
        save_file(flat, place / "tensors.safetensors")
        (place / "state.json").write_text(json.dumps(numbers))


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The checkpoint in ``folder``, or the one it was replacing, or None."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").is_file():
            try:
                return load_file(candidate / "tensors.safetensors"), json.loads((candidate / "state.json").read_text())
            except Exception as error:
                raise TrainingError(
                    f"checkpoint {candidate} cannot be read ({error}); remove that folder to start the stage anew"
                ) from None
    return None
