"""Checkpoints written beside their place, flushed, then renamed: a kill leaves the old one or the new one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mindvideo.errors import TrainingError


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
    """Replace ``folder`` by a checkpoint of flat tensors (safetensors) and plain numbers (JSON).

    Parameters
    ----------
    folder : Path
        Becomes ``tensors.safetensors`` and ``state.json``.
    tensors : dict of str to Tensor
        Parameters, averaged parameters and optimiser moments under flat names.
    numbers : dict
        Whatever else the loop needs to go on, JSON-serialisable.
    """
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, beside / "tensors.safetensors"
    )
    (beside / "state.json").write_text(json.dumps(numbers))
    for path in beside.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The checkpoint in ``folder``, or the one it was replacing when the process was killed, or None."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").is_file():
            try:
                return load_file(candidate / "tensors.safetensors"), json.loads((candidate / "state.json").read_text())
            except Exception as error:
                raise TrainingError(
                    f"checkpoint {candidate} cannot be read ({error}); remove that folder to start the stage anew"
                ) from None
    return None
