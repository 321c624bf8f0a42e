"""What the training stages share."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

from torch import nn

from mindvideo import distributed
from mindvideo.config import Optimise, Recipe
from mindvideo.errors import SettingError
from mindvideo.files import beside_folder
from mindvideo.models.foundation import Foundation
from mindvideo.models.loading import WholeModel
from mindvideo.train.loop import step_seed


def stage_seed(seed: int, stage: str) -> int:
    """A seed of its own for each stage, so that no two draw the same batches and noise."""
    return step_seed(seed, zlib.crc32(stage.encode()))


def open_foundation(recipe: Recipe) -> Foundation:
    """The frozen parts that the recipe names."""
    return Foundation(recipe.foundation, distributed.device())


def save_memory(settings: Optimise, *models: Any) -> None:
    """Turn on gradient checkpointing if asked for; SettingError for a model without it."""
    for model in models:
        if settings.gradient_checkpointing:
            if not model._supports_gradient_checkpointing:
                refuse_checkpointing(settings, type(model).__name__)
            model.enable_gradient_checkpointing()


def refuse_checkpointing(settings: Optimise, name: str) -> None:
    """Raise SettingError if gradient checkpointing is asked of a model without it."""
    if settings.gradient_checkpointing:
        raise SettingError(
            f"expected gradient_checkpointing=false with {name}, found true: it has no blocks to compute again; set it "
            "to false"
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_model(model: WholeModel, folder: Path) -> None:
    """Write a model atomically; the main process does, the others wait."""
    if distributed.is_main():
        with beside_folder(folder) as place:
            model.save_pretrained(str(place))
    distributed.barrier()


def note_disabled(folder: Path) -> None:
    """Log that the recipe switched the stage off, and remove the model of an earlier recipe."""
    if not distributed.is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "enabled": False}) + "\n")
