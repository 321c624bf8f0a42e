"""What the training stages share: their seed, their device, and how a finished model reaches its place."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mindvideo import processes
from mindvideo.config import Optimise, Recipe
from mindvideo.data.disk import beside_folder
from mindvideo.errors import SettingError
from mindvideo.models.foundation import Foundation
from mindvideo.train.loop import step_seed


class Saveable(Protocol):
    """A model that writes itself as a folder."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write ``config.json`` and safetensors."""
        ...


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage, so that two stages of a study do not draw the same batches and noise."""
    return step_seed(seed, zlib.crc32(stage.encode()))


def open_foundation(recipe: Recipe) -> Foundation:
    """The frozen parts that the recipe names."""
    return Foundation(recipe.foundation, training_device())


def training_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    return processes.device()


def save_memory(settings: Optimise, *models: Any) -> None:
    """Let the models compute activations again in the backward pass, where the recipe asks for it.

    Raises
    ------
    SettingError
        For a model that cannot.
    """
    for model in models:
        if settings.gradient_checkpointing:
            if not model._supports_gradient_checkpointing:
                refuse_checkpointing(settings, type(model).__name__)
            model.enable_gradient_checkpointing()


def refuse_checkpointing(settings: Optimise, name: str) -> None:
    """Raise SettingError where the recipe asks a model without such blocks to compute activations again."""
    if settings.gradient_checkpointing:
        raise SettingError(
            f"expected gradient_checkpointing=false with {name}, found true: it has no blocks to compute again; set it "
            "to false"
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters a model itself marks as trainable (fixed positions are not), by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_model(model: Saveable, folder: Path) -> None:
    """Write a model beside ``folder``, flush it, and rename it into place; the first process does, the others wait."""
    if processes.is_first():
        with beside_folder(folder) as place:
            model.save_pretrained(str(place))
    processes.wait()


def note_disabled(folder: Path) -> None:
    """Leave a log that says the stage was switched off in the recipe, and no model of an earlier recipe."""
    if not processes.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "enabled": False}) + "\n")
