"""The whole recipe, the dotted names of its settings, and what is said of a wrong one."""

from __future__ import annotations

import difflib
import typing
from typing import Any, Literal

from pydantic import Field, ValidationError

from mindvideo.config import settings
from mindvideo.config.rivals import Baseline
from mindvideo.config.settings import Data, Section, reader_settings
from mindvideo.errors import SettingError
from mindvideo.sources import READERS


class Recipe(Section):
    """Every number of a study."""

    name: str = "study"
    seed: int = Field(0, ge=0, lt=2**32)
    foundation: str = Field("embedded", description="'embedded' (the shipped kit) or a folder in Hugging Face layout")
    kit_on_real_films: bool = Field(
        False,
        description="try the plumbing with the embedded kit, which knows one drawn world, on films of a real recording",
    )
    track: (
        Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"] | None
    ) = Field(None, description="a tracker for losses, rates, scores and sample clips; some send them to a host")
    simulate: settings.Simulate | None = None
    data: Data = Field(default_factory=Data)
    encoder: settings.MaskedBrain = settings.MaskedBrain()
    pretrain: settings.Pretrain = settings.Pretrain()
    adapt: settings.Adapt = settings.Adapt()
    align: settings.Align = settings.Align()
    animate: settings.Animate = settings.Animate()
    cotrain: settings.Cotrain = settings.Cotrain()
    distill: settings.Distill | None = Field(
        None, description="train a student that samples in few steps; empty: no student"
    )
    reconstruct: settings.Reconstruct = settings.Reconstruct()
    evaluate: settings.Evaluate = settings.Evaluate()
    explain: settings.Explain = settings.Explain()
    baselines: tuple[Literal["ridge", "linear", "gan", "separable", "mindvis"], ...] = Field(
        (), description="rival methods to run after evaluate"
    )
    baseline: Baseline = Baseline()


def as_sampled(recipe: Recipe) -> Recipe:
    """The recipe with the sampler in use, which may be a student's."""
    if recipe.distill is None:
        return recipe
    student: dict[str, Any] = {"scheduler": "ddim", "steps": recipe.distill.sampler_steps, "guidance_scale": 1.0}
    return recipe.model_copy(update={"reconstruct": recipe.reconstruct.model_copy(update=student)})


def inner_section(section: type[Section], name: str) -> type[Section] | None:
    """The section that a setting holds, or None for a value."""
    if issubclass(section, Data) and name in READERS:
        return reader_settings(name)
    annotation = section.model_fields[name].annotation
    options = typing.get_args(annotation) or (annotation,)  # settings.Simulate | None, or settings.Align
    return next((each for each in options if isinstance(each, type) and issubclass(each, Section)), None)


def is_setting(dotted: str) -> bool:
    """Whether a dotted name is one of a recipe's settings or sections."""
    section: type[Section] | None = Recipe
    for name in dotted.split("."):  # part by part: a list of all names would import every reader
        if section is None or name not in section.model_fields:
            return False
        section = inner_section(section, name)
    return True


def setting_names(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted setting name, e.g. ``align.lr``."""
    names: list[str] = []
    for name in section.model_fields:
        inner = inner_section(section, name)
        if inner is None:
            names.append(prefix + name)
        else:
            names += setting_names(inner, f"{prefix}{name}.")
    return names


def nearest_setting(name: str) -> str:
    """The valid dotted name most like ``name``, also by its initials."""
    section, _, leaf = name.rpartition(".")
    initials = "".join(word[:1] for word in leaf.split("_"))
    names = [*setting_names(), *Recipe.model_fields]
    if len(initials) > 1 and f"{section}.{initials}".lstrip(".") in names:
        return f"{section}.{initials}".lstrip(".")
    deeper = [other for other in names if other.startswith(f"{section}.") and other.endswith(f".{leaf}")]
    if section and deeper:
        return deeper[0]
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def explain(error: ValidationError, where: str) -> SettingError:
    """An error about the first setting that pydantic refuses."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return SettingError(f"unknown setting '{name}' in {where}; the nearest valid name is '{nearest_setting(name)}'")
    plainly = {"tuple_type": "input should be a list, as [a, b]", "model_type": "input should be name: value pairs"}
    message = plainly.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    return SettingError(f"setting '{name}' in {where}: {message}, found {first['input']!r}")
