"""What an ablation leaves out: the recipe with some settings changed (paper Table 1).

``no_align`` goes from masked modelling straight into co-training, with a read-out from random
weights. In a recipe without token regression, that is the paper's "w/o Contrastive".
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindvideo.config import Recipe, parse_recipe
from mindvideo.errors import DataError, SettingError

FULL = "full"
WINDOWS = (1, 2, 3)


@dataclass(frozen=True)
class Variant:
    """A row of the table, and the dotted settings that it changes."""

    name: str
    label: str
    changes: dict[str, Any]


def list_variants(recipe: Recipe, subjects: Sequence[int] | None = None) -> list[Variant]:
    """Every variant of a recipe, the full method first.

    The full method is also run on some subjects: by default the recipe's own and, in Wen 2018's
    layout, every ``subjectN``. An error for a subject that there is not.
    """
    scratch: dict[str, Any] = {"align.start_from": "scratch"}
    no_pretrain: dict[str, Any] = {"pretrain.enabled": False}
    no_adapt: dict[str, Any] = {"adapt.enabled": False}
    unread = {"align.encoder": "areas"} if recipe.align.encoder == "ridge_areas" else {}
    untokened = {"align.token_weight": 0.0, "cotrain.token_weight": 0.0, **unread}
    paper: dict[str, Any] = {"align.encoder": "paper", "align.encoder_settings": {}, "encoder.patch_weights": "shared"}
    contrast = {"contrastive_weight": 1.0, "mixup": 0.0, "teacher_weight": 0.0, "token_whitening": 0.0}
    loss: dict[str, Any] = untokened | {f"align.{name}": value for name, value in contrast.items()}
    variants = [Variant(FULL, "full method", {})]
    variants += [
        Variant(f"window_{n}", f"window of {n} scan{'s' if n > 1 else ''}", {"align.window": n}) for n in WINDOWS
    ]
    variants += [
        Variant("no_contrastive", "without contrastive loss", {"align.loss": "none"}),
        Variant("text_only", "contrastive with text only", {"align.loss": "text"}),
        Variant("image_only", "contrastive with images only", {"align.loss": "image"}),
        Variant("no_token_regression", "without token regression", untokened),
        *([Variant("no_ridge", "without ridge regression's reading", unread)] if unread else []),
        Variant("no_guidance", "without guidance", {"reconstruct.negative": "none"}),
        Variant("null_guidance", "null condition as negative", {"reconstruct.negative": "null"}),
        Variant("no_pretrain", "without pretrain", no_pretrain | ({} if recipe.adapt.enabled else scratch)),
        Variant("no_adapt", "without adapt", no_adapt | ({} if recipe.pretrain.enabled else scratch)),
        Variant("no_masked_modelling", "without pretrain and adapt", {**no_pretrain, **no_adapt, **scratch}),
        Variant("no_align", "without align", {"align.loss": "none", "align.token_weight": 0.0}),
        Variant("no_animate", "without animate", {"animate.enabled": False}),
        Variant("no_cotrain", "without cotrain", {"cotrain.enabled": False}),
        Variant("paper_encoder", "the paper's encoder", paper),
        Variant("paper_loss", "the paper's loss", loss),
        Variant("paper_encoder_loss", "the paper's encoder and loss", paper | loss),
    ]
    variants += [
        Variant(f"subject_{n}", f"subject {n}", {"data.subject": n}) for n in _check_subjects(recipe, subjects)
    ]
    return variants


def _check_subjects(recipe: Recipe, subjects: Sequence[int] | None) -> list[int]:
    own = recipe.data.subject
    if recipe.simulate is not None:
        simulated = range(1, recipe.simulate.subjects + 1)
        others = [n for n in subjects or () if n not in simulated]
        if others:
            raise SettingError(
                f"expected subjects up to {len(simulated)} (simulate.subjects), found {', '.join(map(str, others))} in "
                f"--subjects; give --set simulate.subjects={max(others)}, or --seeds for subjects who saw other films"
            )
        return list(dict.fromkeys(subjects or simulated))
    raw = recipe.data.raw
    found: list[int] = []
    if raw is not None and recipe.data.source == "wen2018":
        numbers = [path.name.removeprefix("subject") for path in raw.glob("subject*") if path.is_dir()]
        found = sorted(int(number) for number in numbers if number.isdigit())
        missing = [n for n in subjects or () if n not in found]
        if missing:
            raise DataError(
                f"expected recordings of subject {', '.join(map(str, missing))} in {raw}, found those of "
                f"{', '.join(map(str, found)) or 'none'}; leave the subject out of --subjects or add its folder"
            )
    return list(dict.fromkeys(subjects)) if subjects else sorted({own, *found})


def choose_variants(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """The full method and the variants named in ``only``; all where it is empty.

    SettingError for an unknown name, naming the nearest.
    """
    names = [variant.name for variant in variants]
    for name in only:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise SettingError(
                f"unknown variant '{name}' in --only; the nearest is '{near}'; there are: {', '.join(names)}"
            )
    return [variant for variant in variants if not only or variant.name in {FULL, *only}]


def change_recipe(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with dotted settings changed, checked like any other."""
    content = recipe.model_dump(mode="json")
    for dotted, value in changes.items():
        *sections, leaf = dotted.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[leaf] = value
    return parse_recipe(content, "a variant of the recipe")


def effective_recipe(recipe: Recipe) -> Recipe:
    """An encoder from scratch uses no masked modelling: it is switched off."""
    if recipe.align.start_from == "scratch":
        return change_recipe(recipe, {"pretrain.enabled": False, "adapt.enabled": False})
    return recipe
