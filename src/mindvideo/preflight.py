"""What a study is refused for before anything runs: ``mindvideo check`` lists it, ``run`` stops at it.

A new refusal is a function that yields an error for each fault, named in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindvideo.config import AREA_ENCODERS, Optimise, Recipe, as_sampled
from mindvideo.data.readers import discover
from mindvideo.data.readers.hcp import find_sources
from mindvideo.data.segments import name_splits
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, MindVideoError, ModelError, SettingError
from mindvideo.evaluate.semantic import refuse_ways
from mindvideo.generate.scheduler import make_scheduler, set_timesteps
from mindvideo.models.encoders import encoder_arguments, encoder_class, require_masked_brain, takes_several
from mindvideo.models.foundation import PARTS, Foundation
from mindvideo.models.generators import generator_class
from mindvideo.preparing import SIMULATED, TRUE_CAPTIONS, each_person
from mindvideo.simulate.recordings import PRETRAIN_TR_S, list_segments
from mindvideo.train.distill import check_student
from mindvideo.train.thesaurus import require_wordnet

WITHOUT_FOUNDATION = ("simulate", "prepare", "pretrain", "adapt")
"""Stages that no part of the foundation generates or is aligned with in."""


def refusals(recipe: Recipe, *, stores: Sequence[Path] = (), last: str | None = None) -> list[MindVideoError]:
    """Everything that a study is refused for, one sentence each; empty where it may start.

    Parameters
    ----------
    stores : sequence of Path
        What `prepare` wrote; without it the headers and tables of all recordings are read.
    last : str, optional
        The last stage that is to run; what only later ones are refused for is left out.
    """
    checks = CHECKS if stores else (*CHECKS, unreadable_recordings)
    found = [*incomplete_foundation(recipe, last), *(error for check in checks for error in check(recipe))]
    for check_parts in (undivided_sizes, too_many_ways, too_many_steps):
        with suppress(MindVideoError):  # a part is missing, which `incomplete_foundation` says
            found += check_parts(recipe, Foundation(recipe.foundation))
    if last not in ("simulate", "prepare"):
        found += _oversized(recipe, *_training_counts(recipe))
    if last not in WITHOUT_FOUNDATION:
        found += kit_outside_its_world(recipe)
        found += unfilled_batches(recipe, stores) if stores else ()
    return list({str(error): error for error in found}.values())  # two parts, or two people, may be refused alike


def required_parts(recipe: Recipe, last: str | None = None) -> tuple[str, ...]:
    """Parts of the foundation that a recipe uses up to its stage ``last``."""
    captions = recipe.data.captions == "blip" and recipe.data.source != "store" and last != "simulate"
    parts = ("captioner",) if last in WITHOUT_FOUNDATION else PARTS
    return tuple(part for part in parts if part != "captioner" or captions)


def attempt(call: Callable[..., Any], *arguments: Any) -> Iterator[MindVideoError]:
    """The error of a call, if there is one."""
    try:
        call(*arguments)
    except MindVideoError as error:
        yield error


def incomplete_foundation(recipe: Recipe, last: str | None = None) -> Iterator[MindVideoError]:
    """Parts of the foundation that are missing, damaged, or do not fit together."""
    parts = required_parts(recipe, last)
    if not parts:
        return
    try:
        foundation = Foundation(recipe.foundation, "meta")  # the device that reads headers only
    except MindVideoError as error:
        yield error
        return
    for part in parts:
        refused = [*attempt(foundation.require, part)]
        yield from refused or attempt(foundation.open, part)


def undivided_sizes(recipe: Recipe, foundation: Foundation) -> Iterator[MindVideoError]:
    """Frame sizes that the foundation's VAE cannot halve as often as it does."""
    factor = foundation.latent_factor
    for name, size in (("data.size", recipe.data.size), ("reconstruct.size", recipe.reconstruct.size)):
        if size is not None and size % factor:
            near = max(1, round(size / factor)) * factor
            yield SettingError(
                f"expected {name} to be a multiple of {factor} pixels, which one latent of this foundation's VAE covers, "
                f"found {size}; give --set {name}={near}"
            )


def too_many_ways(recipe: Recipe, foundation: Foundation) -> Iterator[MindVideoError]:
    """N-way scores with more ways than a classifier has classes."""
    for part in ("image_classifier", "video_classifier"):
        yield from attempt(refuse_ways, recipe.evaluate, part, foundation.class_count(part))


def too_many_steps(recipe: Recipe, foundation: Foundation) -> Iterator[MindVideoError]:
    """More denoising steps than the foundation's noise schedule has."""
    sampling = as_sampled(recipe).reconstruct
    scheduler = make_scheduler(foundation.scheduler_config, sampling.scheduler)
    yield from attempt(set_timesteps, scheduler, sampling.steps, torch.device("cpu"))


def kit_outside_its_world(recipe: Recipe) -> Iterator[MindVideoError]:
    """The embedded kit, which knows one drawn world, on films of a real recording."""
    raw = recipe.data.raw
    if recipe.kit_on_real_films or recipe.simulate is not None or raw is None or (raw / SIMULATED).is_file():
        return
    kit = Foundation("embedded")
    try:
        is_kit = Foundation(recipe.foundation).part_identity("text_encoder") == kit.part_identity("text_encoder")
    except MindVideoError:
        return
    if is_kit:
        yield SettingError(
            "expected a foundation that has seen real films, such as Stable Diffusion 1.5 with its companions, for the "
            f"recording in {raw}, found the embedded kit, which knows one drawn world; give --set foundation=FOLDER, or, to "
            "try the plumbing only, --set kit_on_real_films=true"
        )


def impossible_start(recipe: Recipe) -> Iterator[MindVideoError]:
    """A start of ``align`` that is switched off, missing, or not for its encoder."""
    settings = recipe.align
    weights = recipe.pretrain.weights
    if weights is not None and not (weights / "config.json").is_file():
        yield ModelError(
            f"expected a converted MaskedBrainModel at {weights}, found none; run mindvideo convert, or change pretrain.weights"
        )
    elif weights is not None:
        yield from attempt(require_masked_brain, weights, settings.encoder)
    yield from attempt(generator_class, recipe.animate.generator)
    try:
        chosen = encoder_class(settings.encoder)
        encoder_arguments(settings.encoder, settings.dropout, settings.encoder_settings)
    except MindVideoError as error:
        yield error
        return
    if not chosen.starts_from_masked_brain:
        if settings.start_from != "scratch":
            yield SettingError(
                f"expected align.start_from=scratch with align.encoder={settings.encoder}, found "
                f"'{settings.start_from}': another encoder cannot start from the masked brain model; "
                "give --set align.start_from=scratch"
            )
    elif settings.start_from == "adapt" and not (recipe.pretrain.enabled or recipe.adapt.enabled):
        yield SettingError(
            "expected pretrain or adapt to be enabled with align.start_from=adapt, found both disabled; "
            "give --set align.start_from=scratch"
        )


def impossible_people(recipe: Recipe) -> Iterator[MindVideoError]:
    """Several people with what is made for one."""
    subjects, settings = recipe.data.subjects, recipe.align
    if subjects is None:
        return
    try:
        is_for_several = takes_several(settings.encoder)
    except MindVideoError:
        return  # no such encoder, which `impossible_start` says
    if not is_for_several:
        yield SettingError(
            f"expected an encoder that takes several people with data.subjects={list(subjects)}, found "
            f"align.encoder={settings.encoder}, which is one person's; give --set align.encoder=areas"
        )
    elif settings.encoder not in AREA_ENCODERS and recipe.adapt.enabled:
        yield SettingError(
            f"expected adapt.enabled=false with several people and align.encoder={settings.encoder}, found true: the masked "
            "model of patches is one person's; give --set adapt.enabled=false"
        )
    if recipe.baselines:
        yield SettingError(
            f"expected no rival methods with several people (data.subjects), found {', '.join(recipe.baselines)}: they learn "
            "from one person; give --set baselines=[]"
        )


def unfilled_batches(recipe: Recipe, paths: Sequence[Path]) -> Iterator[MindVideoError]:
    """Batches of more samples than were prepared, or than show different scenes."""
    try:
        windows = Windows([Store.open(path) for path in paths], "train", recipe.align.window)
    except MindVideoError:
        return  # damage, which the stage that reads the store says with its file
    if recipe.align.encoder in AREA_ENCODERS and not all(store.has_areas for store in windows.stores):
        yield SettingError(
            "expected voxels whose place on the cortex is known with tokens that are areas, found published arrays that do not "
            "say it; give --set align.encoder=paper"
        )
    oversized = [*_oversized(recipe, len(windows), None)]
    yield from oversized
    if not oversized and (recipe.align.loss != "none" or recipe.align.token_weight > 0):
        yield from attempt(windows.sample_batch, np.random.default_rng(0), recipe.align.batch_size)


def _oversized(recipe: Recipe, n_windows: int | None, n_segments: int | None) -> Iterator[MindVideoError]:
    """Batches of more samples than will be there, where their number is known."""
    stages = {name: getattr(recipe, name) for name in ("adapt", "align", "animate", "cotrain", "distill")}
    rivals = {f"baseline.{name}": getattr(recipe.baseline, name) for name in recipe.baselines}
    counted = [(name, section, n_windows) for name, section in (stages | rivals).items()]
    if recipe.pretrain.weights is None:
        counted.append(("pretrain", recipe.pretrain, n_segments))
    for name, section, count in counted:
        if count is None or not isinstance(section, Optimise) or not getattr(section, "enabled", True):
            continue
        if section.batch_size > count:
            fewer = f"give --set {name}.batch_size={count}, or fewer"
            yield SettingError(
                f"expected {name}.batch_size of at most {count}, the number of training samples, found "
                f"{section.batch_size}; {fewer if count > 1 else 'a batch needs two: add recordings'}"
            )


def _training_counts(recipe: Recipe) -> tuple[int | None, int | None]:
    """Training windows, and segments to pre-train on; None where only data can tell."""
    simulate = recipe.simulate
    data = recipe.data
    pretrain = recipe.pretrain
    if simulate is not None:
        films, scans, runs = (
            simulate.train_segments,
            round(simulate.segment_s / (data.tr_s or 2.0)),
            simulate.train_runs,
        )
        volumes = int(simulate.pretrain_run_s / PRETRAIN_TR_S)
        a_run = volumes // max(1, round(pretrain.window_s / PRETRAIN_TR_S))
        segments = simulate.pretrain_people * simulate.pretrain_runs * a_run
        held_out = max(1, round(pretrain.validation_share * segments)) if pretrain.validation_share else 0
        others: int | None = segments - held_out
    elif getattr(data.own, "expect", None) == "wen2018":
        films, scans, runs, others = 18, 240, 2, None
    else:
        return None, None
    times = runs if data.repeats == "separate" else 1
    n_train = max(0, films - data.validation_segments)
    return n_train * scans * times or None, others  # without any, the splits are refused


def missing_words(recipe: Recipe) -> Iterator[MindVideoError]:
    """A thesaurus that is not installed."""
    settings = recipe.align
    if settings.word_swap and settings.synonyms == "wordnet" and settings.loss in ("text", "text_image"):
        yield from attempt(require_wordnet)


def missing_recordings(recipe: Recipe) -> Iterator[MindVideoError]:
    """Folders and caption files that are not given, or not there."""
    data = recipe.data
    if recipe.simulate is not None:
        if (last := max(data.people)) > recipe.simulate.subjects:
            yield SettingError(
                f"expected data.subject of at most {recipe.simulate.subjects} (simulate.subjects), found {last}; "
                f"give --set simulate.subjects={last}"
            )
        yield from attempt(list_segments, recipe.simulate)
        yield from attempt(name_splits, range(recipe.simulate.train_segments), ["test"], data, "in the simulation")
        return
    if data.raw is None:
        yield SettingError("expected the folder of the recordings, found none; give --set data.raw=FOLDER")
    elif not data.raw.is_dir():
        yield DataError(f"expected recordings at {data.raw}, found no such folder; give --set data.raw=FOLDER")
    elif data.source != "store":
        captions = data.raw / TRUE_CAPTIONS if data.captions == "truth" else data.caption_file
        if captions is not None and not captions.is_file():
            yield DataError(
                f"expected captions at {captions}, found no file; set data.captions to a csv or json file, or to blip"
            )
    if recipe.pretrain.enabled and recipe.pretrain.weights is None and data.hcp is None:
        yield SettingError(
            "expected HCP recordings, found none; give --set data.hcp=FOLDER to pre-train on, or "
            "--set pretrain.enabled=false to train the masked model on the subject alone"
        )


def unreadable_recordings(recipe: Recipe) -> Iterator[MindVideoError]:
    """What the readers say about recordings that are there, from their headers and tables."""
    data = recipe.data
    if recipe.simulate is not None:
        return
    if data.raw is not None and data.raw.is_dir():
        for one in each_person(recipe):
            yield from attempt(discover, one.data.raw, one.data)
    if recipe.pretrain.enabled and recipe.pretrain.weights is None and data.hcp is not None:
        yield from attempt(find_sources, data.hcp)


CHECKS: tuple[Callable[[Recipe], Iterator[MindVideoError]], ...] = (
    impossible_start,
    impossible_people,
    partial(attempt, check_student),
    missing_words,
    missing_recordings,
)
