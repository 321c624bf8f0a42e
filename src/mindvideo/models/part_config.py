"""Configurations of a foundation's parts, as Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindvideo.errors import ModelError
from mindvideo.files import describe_absence

KINDS: dict[str, type] = {
    **dict.fromkeys(("hidden_size", "max_position_embeddings", "latent_channels", "cross_attention_dim"), int),
    **{"num_train_timesteps": int, "block_out_channels": list, "id2label": dict, "text_config": dict},
}
"""Types of what is read from the configurations of parts."""


def read_part_config(folder: Path, part: str) -> dict[str, Any]:
    """A part's configuration; ModelError where it is missing, no JSON, or not of these `KINDS`."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if not path.is_file():
        raise ModelError(f"expected {path.name} of the part '{part}' at {path}, found none; add it")
    try:
        config = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        found = describe_absence(path) or f"found something else; fetch the part '{part}' again"
        raise ModelError(f"expected JSON in {path}, {found}") from None
    for name, kind in KINDS.items():
        if not isinstance(found := config.get(name, kind()), kind):
            wanted = {int: "a whole number", list: "a list", dict: "a mapping"}[kind]
            raise ModelError(f"expected {wanted} as {name} in {path}, found {found!r}; fetch the part '{part}' again")
    return config
