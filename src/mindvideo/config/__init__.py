"""Strict, frozen settings of a study: one recipe, one section a stage, YAML in and out."""

from mindvideo.config.reading import (
    load_recipe,
    parse_recipe,
    read_recipe,
    read_setting,
    read_yaml,
    save_recipe,
    shipped_recipes,
    source_recipe,
    with_settings,
)
from mindvideo.config.recipe import Recipe, as_sampled, setting_names
from mindvideo.config.rivals import Baseline
from mindvideo.config.settings import (
    AREA_ENCODERS,
    Adapt,
    Align,
    Cotrain,
    Data,
    Distill,
    Evaluate,
    MaskedBrain,
    Optimise,
    Precision,
    Pretrain,
    Reconstruct,
    Section,
    Simulate,
    reader_settings,
)
