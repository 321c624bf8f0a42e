"""Recipes as YAML: the shipped ones and a user's own, ``base:``, ``--set key=value``, in and out."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mindvideo.config.recipe import Recipe, explain, nearest_setting, setting_names
from mindvideo.errors import SettingError


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("mindvideo") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _read_recipe(name: str, derived: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a recipe and of its base; ``derived`` are the recipes that build on it, and itself."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SettingError(
                f"expected a recipe file at {path}, found none; shipped recipes: {', '.join(shipped_recipes())}"
            )
        text = path.read_bytes()
    elif name in shipped_recipes():
        text = (resources.files("mindvideo") / "recipes" / f"{name}.yaml").read_bytes()
    else:
        near = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.0)
        raise SettingError(f"unknown recipe '{name}'; the nearest shipped one is '{near[0]}', or give a .yaml file")
    content = _as_mapping(read_yaml(text, f"recipe {name}"), f"recipe {name}")
    base = content.pop("base", None)
    if base is None:
        return content
    if str(base) in derived:
        raise SettingError(f"recipe {name} is its own base, by way of {', '.join(derived)}; name another base")
    return _merge(_read_recipe(str(base), (*derived, str(base))), content)


def _as_mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content or {}, dict):
        raise SettingError(f"{where} must be a mapping of settings, found {type(content).__name__}")
    return content or {}


def read_yaml(text: str | bytes, where: str) -> Any:
    """What YAML text, or the bytes of a UTF-8 file, means; SettingError with ``where`` for anything else."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe that `save_recipe` wrote."""
    return parse_recipe(_as_mapping(read_yaml(path.read_bytes(), f"recipe {path}"), f"recipe {path}"), str(path))


def load_recipe(name: str, settings: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a shipped recipe or a YAML file and apply ``key=value`` settings.

    Parameters
    ----------
    name : str
        ``demo``, ``wen2018``, … or the path of a ``.yaml`` file.
    settings : list of str
        Dotted assignments such as ``align.lr=1e-4``; values are read as YAML.

    Raises
    ------
    SettingError
        For an unknown recipe, a misspelt or ill-typed setting; names the nearest valid one.
    """
    content = _apply_settings(_read_recipe(name, (name,)), settings)
    return parse_recipe(content, f"recipe {name}" if not settings else f"recipe {name} with --set")


def with_settings(recipe: Recipe, settings: list[str] | tuple[str, ...]) -> Recipe:
    """A recipe with ``key=value`` settings on top; raises as `load_recipe`."""
    return parse_recipe(_apply_settings(recipe.model_dump(mode="json"), settings), "the recipe with --set")


def _apply_settings(content: dict[str, Any], settings: list[str] | tuple[str, ...]) -> dict[str, Any]:
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise SettingError(f"expected --set key=value, found '{setting}'")
        if key not in setting_names() and key not in Recipe.model_fields:
            raise SettingError(f"unknown setting '{key}' in --set; the nearest valid name is '{nearest_setting(key)}'")
        change: Any = _number(read_yaml(value, f"--set {setting}"))
        for part in reversed(key.split(".")):
            change = {part: change}
        content = _merge(content, change)
    return content


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as a string; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; raises SettingError with the nearest valid name."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise explain(error, where) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every number of it, as YAML; never half of it."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as handle:
        yaml.safe_dump(recipe.model_dump(mode="json"), handle, sort_keys=False)
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(path)
