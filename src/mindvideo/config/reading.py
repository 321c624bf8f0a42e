"""Recipes as YAML, with ``base:`` and ``--set key=value``.

Both are read alike, as YAML 1.2 (``on``, ``no`` and ``010`` are text), and no key twice. A path is
relative to the folder of its recipe, with ``--set`` to the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mindvideo.config.recipe import Recipe, explain, inner_section, is_setting, nearest_setting
from mindvideo.config.settings import Section
from mindvideo.errors import SettingError
from mindvideo.files import beside

_INT = r"[-+]?(?:0|[1-9][0-9]*)"
_FLOAT = r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_MEANINGS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (_INT, "-+0123456789"),
    "float": (_FLOAT, "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
"""YAML 1.2's core schema without octal and hexadecimal numbers; all else is text."""
_PATH_OR_WORD = {"foundation": ("embedded",), "data.captions": ("blip", "truth", "published", "none")}
"""Settings that hold a path unless they are one of these words."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 with unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is there twice; keep one", problem_mark=key.start_mark
                )
            names.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as a number, too."""


_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _MEANINGS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_first))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{_FLOAT}$"), list("-+.0123456789"))


_RENAMED = {"people": "pretrain_people", "person_runs": "pretrain_runs", "person_run_s": "pretrain_run_s"}
"""Settings of ``simulate`` that older recipes call otherwise."""


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


def _read_recipe(name: str, folder: Path, derived: dict[str, str]) -> dict[str, Any]:
    """The settings of a recipe, found from ``folder``, and of its base.

    ``derived`` maps each recipe that builds on it to the name it was given by.
    """
    path = folder / Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SettingError(
                f"expected a recipe file at {path}, found none; shipped recipes: {', '.join(shipped_recipes())}"
            )
        text = path.read_bytes()
        identity = str(path.resolve())
    elif name in shipped_recipes():
        text = (resources.files("mindvideo") / "recipes" / f"{name}.yaml").read_bytes()
        identity = name
    else:
        near = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.0)
        raise SettingError(f"unknown recipe '{name}'; the nearest shipped one is '{near[0]}', or give a .yaml file")
    if identity in derived:
        raise SettingError(f"recipe {name} is its own base, by way of {', '.join(derived.values())}; name another base")
    content = _as_mapping(read_yaml(text, f"recipe {name}"), f"recipe {name}")
    base = content.pop("base", None)
    content = _place_paths(content, path.parent)
    if base is None:
        return content
    return _merge(_read_recipe(str(base), path.parent, {**derived, identity: name}), content)


def _place_paths(
    content: dict[str, Any], folder: Path, section: type[Section] = Recipe, prefix: str = ""
) -> dict[str, Any]:
    """The settings with every path made absolute, as seen from a folder."""
    placed = dict(content)
    for name, value in content.items():
        if name not in section.model_fields:
            continue
        annotation = section.model_fields[name].annotation
        inner = inner_section(section, name)
        words = _PATH_OR_WORD.get(prefix + name)
        is_path = annotation is Path or Path in typing.get_args(annotation) or (words and value not in words)
        if inner is not None and isinstance(value, dict):
            placed[name] = _place_paths(value, folder, inner, f"{prefix}{name}.")
        elif is_path and isinstance(value, str) and value:
            placed[name] = os.path.abspath(folder / Path(value).expanduser())
    return placed


def _as_mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content or {}, dict):
        raise SettingError(f"{where} must be a mapping of settings, found {type(content).__name__}")
    if isinstance(content, dict) and isinstance(old := content.get("simulate"), dict):
        content["simulate"] = {_RENAMED.get(name, name): value for name, value in old.items()}
    return content or {}


def read_yaml(text: str | bytes, where: str) -> Any:
    """The content of YAML text or bytes; SettingError naming ``where`` for anything else."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe that `save_recipe` wrote."""
    return parse_recipe(_as_mapping(read_yaml(path.read_bytes(), f"recipe {path}"), f"recipe {path}"), str(path))


def load_recipe(name: str, settings: Sequence[str] | None = None) -> Recipe:
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
    content = _apply_settings(_read_recipe(name, Path(), {}), settings)
    return parse_recipe(content, f"recipe {name}" if not settings else f"recipe {name} with --set")


def with_settings(recipe: Recipe, settings: Sequence[str] | None) -> Recipe:
    """A recipe with ``key=value`` settings on top; raises as `load_recipe`."""
    return parse_recipe(_apply_settings(recipe.model_dump(mode="json"), settings), "the recipe with --set")


def source_recipe(source: str, values: dict[str, Any], settings: Sequence[str] | None = None) -> Recipe:
    """The recipe that prepares one data set by itself.

    It takes ``data`` from the shipped recipe of that name, then values by dotted name, then settings.
    """
    shipped = _read_recipe(source, Path(), {})["data"] if source in shipped_recipes() else {}
    shipped.pop("wen2018", None)
    content = {"data": {**shipped, "source": source}}
    for name, value in values.items():
        content = _apply(content, name, value)
    return parse_recipe(_apply_settings(content, settings), "the command line")


def _apply_settings(content: dict[str, Any], settings: Sequence[str] | None) -> dict[str, Any]:
    for key, value in map(read_setting, settings or ()):
        if not is_setting(key):
            raise SettingError(f"unknown setting '{key}' in --set; the nearest valid name is '{nearest_setting(key)}'")
        content = _apply(content, key, value)
    return content


def read_setting(setting: str) -> tuple[str, Any]:
    """Name and value of ``key=value``, the value read as YAML."""
    key, sign, value = setting.partition("=")
    if not sign or not key:
        raise SettingError(f"expected --set key=value, found '{setting}'")
    return key, read_yaml(value, f"--set {setting}")


def _apply(content: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return _merge(content, _place_paths(value, Path()))


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; raises SettingError with the nearest valid name."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise explain(error, where) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every number of it, as YAML; never half of it."""
    with beside(path) as place, place.open("w", encoding="utf-8") as handle:
        yaml.dump(recipe.model_dump(mode="json"), handle, _Dumper, sort_keys=False, allow_unicode=True)
