"""The full-size recipe against the paper: Table B.1, supplement B and sections 3 to 5, typed in here once more."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest
import yaml

from mindvideo.config import Optimise, load_recipe
from mindvideo.config.recipe import Recipe
from mindvideo.data.readers.wen2018 import Settings

SEGMENTS, EPOCHS, WARM_UP_EPOCHS, BATCH = 600_000, 500, 40, 500
TRAINING_FILMS, TEST_FILMS, TEST_WINDOWS = 18, 5, 5 * 240

PAPER: dict[str, tuple[Any, str]] = {
    # Table B.1
    "encoder.patch_size": (16, "B.1"), "encoder.embed_dim": (1024, "B.1"), "encoder.depth": (24, "B.1"),
    "encoder.num_heads": (16, "B.1"), "encoder.mlp_ratio": (1.0, "B.1"), "encoder.decoder_embed_dim": (512, "B.1"),
    "encoder.decoder_depth": (8, "B.1"), "encoder.decoder_num_heads": (16, "B.1"),
    "pretrain.mask_ratio": (0.75, "B.1"), "pretrain.clip_grad": (0.8, "B.1"), "pretrain.lr": (2.5e-4, "B.1"),
    "pretrain.weight_decay": (0.05, "B.1"), "pretrain.batch_size": (BATCH, "B.1"),
    "pretrain.steps": (EPOCHS * SEGMENTS // BATCH, "B.1"),
    "pretrain.warmup_steps": (WARM_UP_EPOCHS * SEGMENTS // BATCH, "B.1"),
    "adapt.mask_ratio": (0.75, "B.1"),
    # supplement B
    "align.start_from": ("adapt", "B"), "align.steps": (12_000, "B"), "align.batch_size": (20, "B"),
    "align.lr": (2e-5, "B"), "align.dropout": (0.6, "B"), "align.sparsify": (0.2, "B"),
    "align.crop_probability": (0.5, "B"), "align.word_swap": (True, "B"), "align.augmentation": ("drawn", "B"),
    "animate.steps": (800, "B"), "animate.batch_size": (14, "B"), "animate.lr": (2e-5, "B"),
    "cotrain.steps": (15_000, "B"), "cotrain.batch_size": (9, "B"), "cotrain.lr": (3e-5, "B"),
    "cotrain.token_weight": (0.0, "B"), "cotrain.caption_share": (0.0, "B"),
    "reconstruct.guidance_scale": (12.5, "B"),
    # sections 3 to 5
    "data.selection": ("paper", "3.2"), "data.alpha": (0.01, "3.2"), "data.top_fraction": (0.5, "3.2"),
    "data.captions": ("blip", "3.3"), "align.loss": ("text_image", "3.3"), "align.contrastive_weight": (1.0, "3.3"),
    "align.token_weight": (0.0, "3.3"), "align.encoder": ("paper", "3.3"), "animate.motion": ("none", "3.4"),
    "data.tr_s": (2.0, "4.1"), "data.wen2018": (Settings(expect="wen2018"), "4.1"), "data.validation_segments": (0, "4.1"),
    "pretrain.validation_share": (0, "4.1"), "data.size": (256, "4.2"), "data.fps": (3, "4.2"),
    "reconstruct.scheduler": ("ddim", "4.2"), "reconstruct.steps": (200, "4.2"), "evaluate.n_ways": ((2, 50), "4.3"),
    "evaluate.top_k": (1, "5"), "align.window": (2, "5"), "explain.max_windows": (TEST_WINDOWS, "5"),
}  # fmt: skip

LEFT_OPEN: dict[str, Any] = {
    "data.lag_s": 4.0, "data.areas": "cortex", "data.repeats": "average", "encoder.patch_weights": "shared",
    "pretrain.betas": (0.9, 0.95), "pretrain.schedule": "cosine", "pretrain.window_s": 8.0,
    "pretrain.areas": "V1,V2,V3,V4",
}  # fmt: skip

OURS = {
    "data.fit", "pretrain.precision", "pretrain.checkpoint_every", "adapt.steps", "adapt.batch_size", "adapt.lr",
    "align.synonyms", "animate.caption_dropout", "cotrain.sparsify", "reconstruct.precision",
    *(f"{stage}.{name}" for stage in ("adapt", "align", "animate", "cotrain")
      for name in ("warmup_steps", "weight_decay", "clip_grad", "betas", "schedule", "precision")),
}  # fmt: skip
"""What the paper is silent on."""

DEPARTS = {"reconstruct.negative": "train_mean"}
"""Where the paper says otherwise; the setting's own line says what and why."""

OFF = {
    "pretrain.enabled": True, "adapt.enabled": True, "animate.enabled": True, "cotrain.enabled": True,
    "pretrain.weights": None, "align.token_whitening": 0.0, "align.encoder_settings": {}, "animate.generator": "video_unet",
    "align.mixup": 0.0, "align.teacher_weight": 0.0, "align.input_noise": 0.0, "cotrain.encoder_lr": None,
    "cotrain.input_noise": 0.0, "reconstruct.num_frames": None, "reconstruct.size": None,
    "reconstruct.max_windows": None, "distill": None, "simulate": None, "baselines": (),
    **{f"{stage}.{name}": value for stage in ("pretrain", "adapt", "align", "animate", "cotrain")
       for name, value in (("ema_decay", None), ("accumulate", 1), ("gradient_checkpointing", False))},
}  # fmt: skip
"""Of the settings the recipe leaves at their defaults, those that would make it another method."""


def setting(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def marked_lines() -> dict[str, tuple[str, str]]:
    """Mark and whole remark of every setting line of the recipe's text."""
    found, section = {}, ""
    for line in (resources.files("mindvideo") / "recipes" / "wen2018.yaml").read_text().splitlines():
        if match := re.match(r"(\w+):\s*(#.*)?$", line):
            section = match[1]
        elif match := re.match(r"  (\w+): .*?# (.*)$", line):
            found[f"{section}.{match[1]}"] = (match[2].split()[0].strip(":,"), match[2])
    return found


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_value(name: str) -> None:
    value, place = PAPER[name]
    assert setting(load_recipe("wen2018"), name) == value
    assert marked_lines()[name][1].split(":")[0].split(";")[0] == f"paper {place}"


@pytest.mark.parametrize(("name", "value"), [*LEFT_OPEN.items(), *DEPARTS.items(), *OFF.items()])
def test_a_value_that_makes_the_method(name: str, value: Any) -> None:
    assert setting(load_recipe("wen2018"), name) == value


def test_every_setting_of_the_recipe_is_marked_with_what_it_is() -> None:
    marks = {name: mark for name, (mark, _) in marked_lines().items()}
    expected = dict.fromkeys(PAPER, "paper") | dict.fromkeys(LEFT_OPEN, "docs/method.md") | dict.fromkeys(OURS, "ours")
    assert marks == expected | dict.fromkeys(DEPARTS, "departs")
    content = yaml.safe_load((resources.files("mindvideo") / "recipes" / "wen2018.yaml").read_text())
    stated = {f"{part}.{name}" for part, values in content.items() if isinstance(values, dict) for name in values}
    assert stated == set(marks)
    assert all(len(marked_lines()[name][1]) > 60 for name in DEPARTS)


def test_no_training_setting_is_left_unsaid() -> None:
    ours_in_how_it_is_logged = {"log_every", "val_every", "checkpoint_every"}
    said = {*PAPER, *LEFT_OPEN, *OURS, *OFF, *DEPARTS}
    recipe = Recipe()
    for stage in ("pretrain", "adapt", "align", "animate", "cotrain", "distill", "encoder"):
        section = getattr(recipe, stage)
        for name in type(section).model_fields if section is not None else ():
            assert f"{stage}.{name}" in said or name in ours_in_how_it_is_logged, f"{stage}.{name}"
    assert issubclass(type(recipe.align), Optimise)


def test_the_larger_batch_of_subject_3_is_said_and_can_be_had() -> None:
    text = (resources.files("mindvideo") / "recipes" / "wen2018.yaml").read_text()
    given = re.search(r"--set (data.subject=3) --set (align.batch_size=32)", text)
    assert given is not None
    recipe = load_recipe("wen2018", [given[1], given[2]])
    assert (recipe.data.subject, recipe.align.batch_size) == (3, 32)
