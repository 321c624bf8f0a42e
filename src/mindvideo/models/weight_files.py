"""Weight files of a model folder in Hugging Face layout: which there are, and which are loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from mindvideo.errors import ModelError
from mindvideo.files import describe_absence, is_there

# diffusers' name, and transformers' two; safetensors before pickles, as both libraries choose.
STEMS = (("safetensors", ("diffusion_pytorch_model", "model")), ("bin", ("diffusion_pytorch_model", "pytorch_model")))
HALF_PRECISION = ("fp16", "bf16")
"""Variants that hold the whole model, rounded; loaded where the plain files are not there."""
_BESIDE = (".json", ".txt", ".md", ".model")
"""Endings of what lies beside weights."""
_INDEX = re.compile(r"(?P<stem>\w+)\.(?P<kind>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json")
_SINGLE = re.compile(r"(?P<stem>\w+)(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")


@dataclass(frozen=True)
class WeightFiles:
    """The weights that a folder is loaded from.

    Attributes
    ----------
    paths : tuple of Path
        One file, or the shards of an index.
    is_safetensors : bool
    variant : str, optional
        ``fp16`` or ``bf16``; None for the plain files.
    """

    paths: tuple[Path, ...]
    is_safetensors: bool
    variant: str | None

    @property
    def arguments(self) -> dict[str, object]:
        """What makes either library's ``from_pretrained`` load these files."""
        return {"use_safetensors": self.is_safetensors, "variant": self.variant}


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of a folder, chosen as the libraries do, or else in half precision.

    ModelError if there are none, or one is absent, not fetched, or a web page.
    """
    found: dict[tuple[str | None, str], Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _SINGLE.fullmatch(path.name) or _INDEX.fullmatch(path.name)
        if match and is_there(path) and match["stem"] in dict(STEMS)[match["kind"]]:
            found.setdefault((match["variant"], match["kind"]), path)
    for variant in (None, *HALF_PRECISION):
        for kind, _ in STEMS:
            if (variant, kind) in found:
                return WeightFiles(_intact_files(found[variant, kind]), kind == "safetensors", variant)
    plain = " or ".join(f"{stem}.{kind}" for kind, stems in STEMS for stem in stems[:1])
    others = ", ".join(
        path.name for path in (sorted(folder.glob("*")) if folder.is_dir() else ()) if path.suffix not in _BESIDE
    )
    raise ModelError(f"expected weights such as {plain} in {folder}, found {others or 'none'}; fetch the folder again")


def _intact_files(path: Path) -> tuple[Path, ...]:
    """The file, or the shards that an index names, none of them absent."""
    refuse_absent(path)
    if path.suffix != ".json":
        return (path,)
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"expected an index of weight files in {path}, found something else; fetch it again") from None
    shards = tuple(path.parent / name for name in names)
    for shard in shards:
        refuse_absent(shard)
    return shards


def refuse_absent(path: Path) -> None:
    """Raise ModelError for a weight file that is not there, or whose content is not."""
    absence = describe_absence(path)
    if not absence:
        with path.open("rb") as handle:
            if handle.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
                absence = (
                    "found a web page, as a refused download leaves; log in, accept the licence, and fetch it again"
                )
    if absence:
        raise ModelError(f"expected weights in {path}, {absence}")


def load_network(
    kind: Any, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **settings: Any
) -> Any:
    """A network of transformers or diffusers, its weights all there and of ``dtype``.

    On the device ``meta`` only the headers of the files are read, by the same code; ``settings``
    replace those in ``config.json``. ModelError for absent or damaged files, or another class's.
    """
    if absence := describe_absence(folder / "config.json"):
        raise ModelError(f"expected the settings of a model in {folder / 'config.json'}, {absence}")
    is_diffusers = issubclass(kind, ModelMixin)
    given = settings | find_weights(folder).arguments | {"torch_dtype" if is_diffusers else "dtype": dtype}
    if str(device) == "meta":
        given["device_map"] = "meta"
    try:
        model, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **given)
    except Exception as error:  # the libraries raise nearly anything for a damaged file
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"expected to load {kind.__name__} from {folder}, found: {reason}; fetch it again") from error
    # A whole CLIP holds more than one of its towers; diffusers' folders hold one model.
    wrong = [*report["missing_keys"], *(report["unexpected_keys"] if is_diffusers else ())]
    if wrong:
        content = json.loads((folder / "config.json").read_text())
        found = (content.get("architectures") or [content.get("_class_name")])[0]
        names = ", ".join(sorted(map(str, wrong))[:3])
        raise ModelError(
            f"expected the weights of {kind.__name__} in {folder}, found those of {found}, with {names}"
            f"{' …' if len(wrong) > 3 else ''} missing or over; fetch another model"
        )
    return model.eval().requires_grad_(False).to(device)
