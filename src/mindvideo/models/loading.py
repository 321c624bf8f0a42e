"""Models that load whole or not at all."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict

from mindvideo.errors import ModelError
from mindvideo.models.weight_files import find_weights


def forget_path(part: Any) -> None:
    """Remove the folder that a model was loaded from from its configuration."""
    kept = {name: value for name, value in part.config.items() if name != "_name_or_path"}
    part._internal_dict = FrozenDict(kept)


def takes_settings_of(parent: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a constructor that passes ``**settings`` to ``parent`` show and save these as its own."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        own = [item for item in inspect.signature(init).parameters.values() if item.kind is not item.VAR_KEYWORD]
        theirs = list(inspect.signature(parent.__init__).parameters.values())  # type: ignore[misc]
        init.__signature__ = inspect.Signature([*theirs, *own[1:]])  # type: ignore[attr-defined]
        return init

    return decorate


class WholeModel(ModelMixin, ConfigMixin):
    """A diffusers model that loads completely or not at all, by default from local safetensors."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Self:
        """Load what ``save_pretrained`` wrote: ``config.json`` and safetensors.

        Arguments are diffusers'; ``local_files_only`` and ``use_safetensors`` are on by default.
        ModelError for a missing file, an unknown setting, or a missing, unexpected or misshapen
        weight.
        """
        place = Path(folder, kwargs.get("subfolder") or "")
        files = find_weights(place) if (place / "config.json").is_file() else None
        kwargs = {"local_files_only": True, "use_safetensors": True, "variant": files and files.variant} | kwargs
        hub = {
            name: kwargs[name] for name in ("local_files_only", "subfolder", "cache_dir", "revision") if name in kwargs
        }
        try:
            config = cls.load_config(folder, **hub)
            unknown = sorted(name for name in set(config) - cls._get_init_keys(cls) if not name.startswith("_"))
            if unknown:
                raise ModelError(
                    f"expected only settings of {cls.__name__} in {place}/config.json, found {', '.join(unknown)}; "
                    "convert the folder or use the class that wrote it"
                )
            model, found = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).partition(". If you want to instead")[0]  # would not be whole
            if not place.is_dir():
                reason = "no such folder"
            raise ModelError(
                f"expected config.json and safetensors of a {cls.__name__} in {place}, found {reason}; "
                "give the folder that save_pretrained wrote"
            ) from error
        problems = [
            f"{what} {', '.join(str(name) for name in sorted(found[key], key=str))}"
            for key, what in (
                ("missing_keys", "missing"),
                ("unexpected_keys", "unexpected"),
                ("mismatched_keys", "misshapen"),
            )
            if found[key]
        ]
        if problems:
            raise ModelError(f"expected every weight of {cls.__name__} in {place}, found {'; '.join(problems)}")
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write ``config.json``, without the folder of origin, and safetensors; arguments as diffusers'."""
        forget_path(self)
        super().save_pretrained(save_directory, **kwargs)


Model = TypeVar("Model", bound=WholeModel)


def class_named(folder: str | Path, classes: Sequence[type[Model]]) -> type[Model]:
    """The class that a folder's ``config.json`` names, by default the first."""
    try:
        name = json.loads((Path(folder) / "config.json").read_text()).get("_class_name")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        name = None  # what is wrong with the folder, loading it will say
    return next((found for found in classes if found.__name__ == name), classes[0])
