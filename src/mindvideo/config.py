"""Strict, frozen settings of a study: one recipe, one section a stage, YAML in and out.

A misspelt key or a value of another type is refused with the nearest valid name. The shipped recipes in
``mindvideo/recipes`` are plain YAML; a user's own file may start with ``base: demo`` and state what differs.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mindvideo.errors import SettingError


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("no_bool", "Input should not be true or false")
        return value


class Simulate(Section):
    """A simulated subject written in the layout of Wen 2018, and simulated people written like HCP."""

    train_segments: int = Field(18, ge=3, description="number of training films")
    test_segments: int = Field(5, ge=1, description="number of test films")
    segment_s: float = Field(480.0, gt=0, description="length of each film in seconds; a multiple of the TR")
    train_runs: int = Field(2, ge=2, description="recordings of each training film")
    test_runs: int = Field(10, ge=2, description="recordings of each test film")
    areas: Literal["visual", "cortex"] = Field("cortex", description="which vertices the files hold")
    subcortex: bool = Field(False, description="also write subcortical voxels (91,282 grayordinates with areas=cortex)")
    size: int = Field(64, ge=32, description="stimulus height and width in pixels")
    source_fps: int = Field(30, ge=3, description="stimulus frame rate")
    noise: float = Field(1.0, gt=0, description="noise amplitude relative to the default that gives real-looking r")
    people: int = Field(4, ge=1, description="people simulated for pre-training")
    person_runs: int = Field(2, ge=1, description="runs of each person")
    person_run_s: float = Field(864.0, gt=0, description="length of each of these runs in seconds")


class Fmriprep(Section):
    """How fMRIPrep's outputs become scans of films (``data.source: fmriprep``; ``data.raw`` is the derivatives)."""

    stimuli: Path | None = Field(None, description="folder that the events' stimulus files lie in")
    bids: Path | None = Field(None, description="raw BIDS data set with the events; empty: they lie in the derivatives")
    task: str | None = Field(None, description="BIDS task label; * and ? stand for anything")
    participant: str | int | None = Field(None, description="BIDS subject label; empty where there is one subject")
    test: tuple[str, ...] = Field((), description="test stimuli, by name with * and ?, or 'most-repeated'")
    stim_column: str = Field("stim_file", description="column of the events that names the film")
    confounds: tuple[str, ...] = Field(
        ("trans_?", "rot_?", "csf", "white_matter"), description="columns that are regressed out; * and ? allowed"
    )
    high_pass_hz: float | None = Field(0.008, gt=0, description="cut-off of the cosine high-pass filter; empty: none")
    resample: Literal["linear", "nearest", "mean"] = Field("linear", description="how volumes become scans of a film")
    trim_end: bool = Field(False, description="drop the last scans of a film where a run stopped too early")
    exclude: tuple[str, ...] = Field((), description="runs left out (sub-01_task-movie_run-2), or RUN:STIMULUS")


class Published(Section):
    """Arrays that others prepared (``data.source: published``)."""

    segment_scans: int = Field(240, ge=2, description="scans per film where the arrays do not say (NeuroClips)")
    vertex: Path | None = Field(None, description="npy file with the cortical position of each voxel, where known")


class Data(Section):
    """Where recordings come from and how they are prepared (paper section 3.2)."""

    source: Literal["wen2018", "fmriprep", "published"] = "wen2018"
    raw: Path | None = Field(None, description="the download; empty where the recipe simulates one")
    hcp: Path | None = Field(None, description="HCP folder for pre-training; empty where the recipe simulates one")
    subject: int = Field(1, ge=1)
    tr_s: float = Field(2.0, gt=0, description="repetition time in seconds")
    lag_s: float = Field(4.0, ge=0, description="movie time 0 pairs with the volume acquired this much later")
    fps: int = Field(3, ge=1, le=30, description="frames kept per second of film")
    size: int = Field(256, ge=16, description="height and width of the kept frames")
    fit: Literal["stretch", "crop", "letterbox"] = Field("crop", description="how other aspect ratios become square")
    areas: str = Field(
        "cortex", description="'cortex', 'visual' or a comma-separated list of MMP1 areas to choose from"
    )
    selection: Literal["paper", "bonferroni", "top_k", "all"] = "paper"
    alpha: float = Field(0.01, gt=0, lt=1)
    top_fraction: float = Field(0.5, gt=0, le=1)
    k: int | None = Field(None, ge=16)
    repeats: Literal["average", "separate"] = "average"
    exclude: tuple[str, ...] = Field(("subject3:test2_9",), description="runs left out, as subjectN:SEGMENT_RUN")
    validation_segments: int = Field(1, ge=1, description="the last training segments are held out for choices")
    expect: Literal["wen2018"] | None = Field(None, description="insist on 18 + 5 segments with 2 and 10 runs")
    captions: str = Field("blip", description="'blip' (foundation captioner) or a csv/json file of captions")
    cut_threshold: float = Field(27.0, gt=0, description="threshold of the content detector for shot changes")
    fmriprep: Fmriprep = Fmriprep()
    published: Published = Published()


class MaskedBrain(Section):
    """Architecture of the masked autoencoder (paper Table B.1) and of the encoder grown from it."""

    patch_size: int = Field(16, ge=1)
    patch_weights: Literal["shared", "per_patch"] = "shared"
    embed_dim: int = Field(1024, ge=8)
    depth: int = Field(24, ge=1)
    num_heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(1.0, gt=0)
    decoder_embed_dim: int = Field(512, ge=8)
    decoder_depth: int = Field(8, ge=1)
    decoder_num_heads: int = Field(16, ge=1)


Steps = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=2)]
Rate = Annotated[float, Field(gt=0)]


class Optimise(Section):
    """What every training stage can set."""

    steps: Steps = 1000
    batch_size: BatchSize = 20
    lr: Rate = 2e-5
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(0.8, gt=0)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights that are saved; empty: off"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches per step")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory"
    )
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: int = Field(200, ge=1)
    log_every: int = Field(20, ge=1)


class Pretrain(Optimise):
    """Masked brain modelling on many people (SC-MBM)."""

    enabled: bool = True
    weights: Path | None = Field(None, description="a converted MaskedBrainModel folder, instead of training one")
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    window_s: float = Field(8.0, gt=0, description="recordings are averaged over this many seconds")
    batch_size: BatchSize = 500
    lr: Rate = 2.5e-4


class Adapt(Optimise):
    """Masked brain modelling on the target subject's training scans."""

    enabled: bool = True
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    lr: Rate = 5e-5


class Align(Optimise):
    """Contrastive alignment with frozen CLIP (paper Eq. 3)."""

    window: int = Field(2, ge=1, le=8, description="scans per window")
    start_from: Literal["adapt", "scratch"] = "adapt"
    loss: Literal["text_image", "text", "image", "none"] = "text_image"
    contrastive_weight: float = Field(1.0, ge=0)
    token_weight: float = Field(0.0, ge=0, description="weight of the regression of the caption's text tokens")
    token_whitening: float = Field(
        0.0,
        ge=0,
        le=1,
        description="1: the tokens' weak principal components count as much as the strong ones; 0: plain",
    )
    dropout: float = Field(0.6, ge=0, lt=1)
    layer_norm: bool = False
    token_bias: bool = Field(False, description="a learned offset of the condition that starts at the mean text token")
    encoder: str | None = Field(
        None,
        description="an encoder of your own as module:Class, which maps (B, W, V) to (B, L, C); empty: the paper's",
    )
    encoder_settings: dict[str, Any] = Field({}, description="further arguments of that class")
    head: Literal["factorised", "low_rank"] = Field(
        "factorised", description="the paper's head, or one whose condition tokens have weights of their own"
    )
    head_rank: int = Field(128, ge=1, description="rank of the low_rank head")
    mixup: float = Field(
        0.0, ge=0, description="windows are mixed in pairs, and their targets alike; parameter of the beta distribution"
    )
    teacher_weight: float = Field(
        0.0, ge=0, le=1, description="share of ridge regression's reading in the token targets; 0 in the paper"
    )
    sparsify: float = Field(0.2, ge=0, lt=1, description="fraction of voxels set to zero")
    input_noise: float = Field(0.0, ge=0, description="standard deviation of noise added to the scans")
    crop_probability: float = Field(0.5, ge=0, le=1)
    word_swap: bool = True
    steps: Steps = 12000
    val_every: int = Field(200, ge=1, description="validation is looked at this often")


class Animate(Optimise):
    """Text-conditioned video tuning of attn1, attn2 and attn_temp."""

    enabled: bool = True
    motion: Literal["none", "foundation"] = Field(
        "none", description="temporal attention starts as identity (the paper), or from the foundation's part 'motion'"
    )
    frame_positions: bool = Field(
        False, description="temporal attention is told which frame is which (not in the paper; the shipped 'motion' is)"
    )
    steps: Steps = 800
    batch_size: BatchSize = 14
    caption_dropout: float = Field(0.1, ge=0, lt=1)


class Cotrain(Optimise):
    """Encoder and generator tuned together on {fMRI window, clip}."""

    enabled: bool = True
    steps: Steps = 15000
    batch_size: BatchSize = 9
    lr: Rate = 3e-5
    encoder_lr: float | None = Field(None, gt=0, description="learning rate of the encoder; empty: the same")
    token_weight: float = Field(0.0, ge=0)
    sparsify: float = Field(0.0, ge=0, lt=1, description="fraction of voxels set to zero")
    input_noise: float = Field(0.0, ge=0, description="standard deviation of noise added to the scans")


class Reconstruct(Section):
    """Sampling with adversarial guidance (paper Eq. 6)."""

    scheduler: Literal["ddim", "dpm++", "unipc"] = "ddim"
    steps: int = Field(200, ge=1)
    guidance_scale: float = Field(12.5, ge=0)
    negative: Literal["train_mean", "test_mean", "zero", "none"] = "train_mean"
    num_frames: int | None = Field(None, ge=1, description="frames per clip; empty: as many as the store has")
    size: int | None = Field(None, ge=16, description="height and width of the clips; empty: the store's")
    batch_size: int = Field(4, ge=1)
    controls: tuple[Literal["shuffled", "mean", "caption", "vae", "random_train", "constant"], ...] = (
        "shuffled",
        "mean",
        "caption",
        "vae",
        "random_train",
        "constant",
    )
    max_windows: int | None = Field(
        None, ge=1, description="only this many test windows, evenly spread in whole blocks"
    )
    precision: Literal["fp32", "bf16"] = "bf16"

    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0),
        description="guide only at these noise times, 0 clean to 1 pure noise; elsewhere one pass instead of two",
    )
    reuse: int = Field(
        1, ge=1, description="run the whole generator every n-th step, in between its outermost layers only"
    )


class Evaluate(Section):
    """Scores and their controls."""

    n_ways: tuple[int, ...] = (2, 50)
    top_k: int = Field(1, ge=1)
    candidates: tuple[int, ...] = Field((), description="retrieval among so many clips too, besides among all")
    captions: bool = Field(True, description="compare captions of reconstruction and truth, where a captioner is there")
    block_s: float = Field(20.0, gt=0, description="length of the blocks that are permuted and resampled")
    permutations: int = Field(5000, ge=99)
    bootstraps: int = Field(2000, ge=99)


class Explain(Section):
    """Attention and occlusion maps."""

    max_windows: int = Field(200, ge=1)


class RidgeRival(Section):
    """Banded ridge regression to the condition tokens, with the main method's generator."""

    alphas: tuple[float, ...] = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), description="penalties to choose from, on validation"
    )
    components: int = Field(256, ge=1, description="principal components of the caption tokens that are predicted")
    generator: Literal["cotrain", "animate"] = "cotrain"


class LinearRival(Section):
    """Linear maps to early feature maps and semantic features of an image network (Wen et al. 2018)."""

    alphas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    components: int = Field(512, ge=1, description="principal components of the early feature maps of a frame")


class GanRival(Optimise):
    """A video GAN on a linear fMRI embedding (Wang et al. 2022)."""

    alphas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    components: int = Field(128, ge=1, description="width of the linear fMRI embedding")
    noise_width: int = Field(16, ge=1)
    width: int = Field(64, ge=8, description="channels of the generator at its coarsest size; a multiple of 8")
    reconstruction_weight: float = Field(10.0, ge=0)
    image_weight: float = Field(0.1, ge=0, description="weight of the image discriminator's loss")
    sequence_weight: float = Field(0.1, ge=0, description="weight of the sequence discriminator's loss")
    steps: Steps = 20000
    batch_size: BatchSize = 16
    lr: Rate = 2e-4
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "constant"
    betas: tuple[float, float] = (0.5, 0.99)
    clip_grad: float | None = None
    ema_decay: float | None = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"


class SeparableRival(Optimise):
    """Separable encoder and decoder, supervised and then self-supervised (Kupershmidt et al. 2022)."""

    encoder_steps: int = Field(5000, ge=1, description="steps of the encoder, frames to fMRI, before the decoder's")
    width: int = Field(64, ge=4, description="channels")
    films: Path | None = Field(None, description="folder of unlabelled films; empty: training films half a TR later")
    self_supervised_weight: float = Field(0.5, ge=0)
    perceptual_weight: float = Field(0.3, ge=0)
    perceptual_layer: int = Field(2, ge=0, description="layer of the image classifier whose tokens are compared")
    steps: Steps = 20000
    batch_size: BatchSize = 16
    lr: Rate = 1e-3
    weight_decay: float = 1e-2
    clip_grad: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"


class MindVisRival(Optimise):
    """A masked-modelling encoder that conditions the image diffusion model twice (Chen et al. 2023)."""

    steps: Steps = 20000
    batch_size: BatchSize = 5
    lr: Rate = 5.3e-5
    dropout: float = Field(0.0, ge=0, lt=1)
    token_bias: bool = False
    token_weight: float = Field(0.0, ge=0, description="weight of the regression of the caption's text tokens")
    sparsify: float = Field(0.0, ge=0, lt=1)
    input_noise: float = Field(0.0, ge=0)
    guidance_scale: float = Field(1.0, ge=0)


class Baseline(Section):
    """Settings of each rival method (METHOD section 11)."""

    ridge: RidgeRival = RidgeRival()
    linear: LinearRival = LinearRival()
    gan: GanRival = GanRival()
    separable: SeparableRival = SeparableRival()
    mindvis: MindVisRival = MindVisRival()


class Recipe(Section):
    """Every number of a study."""

    name: str = "study"
    seed: int = Field(0, ge=0)
    foundation: str = Field("embedded", description="'embedded' (the shipped kit) or a folder in Hugging Face layout")
    simulate: Simulate | None = None
    data: Data = Data()
    encoder: MaskedBrain = MaskedBrain()
    pretrain: Pretrain = Pretrain()
    adapt: Adapt = Adapt()
    align: Align = Align()
    animate: Animate = Animate()
    cotrain: Cotrain = Cotrain()
    reconstruct: Reconstruct = Reconstruct()
    evaluate: Evaluate = Evaluate()
    explain: Explain = Explain()
    baselines: tuple[Literal["ridge", "linear", "gan", "separable", "mindvis"], ...] = Field(
        (), description="rival methods to run after evaluate"
    )
    baseline: Baseline = Baseline()


def _sections(annotation: Any) -> type[Section] | None:
    """The Section class behind an annotation such as ``Simulate | None``."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def setting_names(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted setting name, e.g. ``align.lr``."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        if inner is None:
            names.append(prefix + name)
        else:
            names += setting_names(inner, f"{prefix}{name}.")
    return names


def nearest_setting(name: str) -> str:
    """The valid dotted name most like ``name``; ``learning_rate`` finds ``lr`` by its initials."""
    section, _, leaf = name.rpartition(".")
    initials = "".join(word[:1] for word in leaf.split("_"))
    names = [*setting_names(), *Recipe.model_fields]
    if len(initials) > 1 and f"{section}.{initials}".lstrip(".") in names:
        return f"{section}.{initials}".lstrip(".")
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _explain(error: ValidationError, where: str) -> SettingError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return SettingError(f"unknown setting '{name}' in {where}; the nearest valid name is '{nearest_setting(name)}'")
    message = first["msg"][0].lower() + first["msg"][1:]
    return SettingError(f"setting '{name}' in {where}: {message}, found {first['input']!r}")


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
        raise _explain(error, where) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every number of it, as YAML; never half of it."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as handle:
        yaml.safe_dump(recipe.model_dump(mode="json"), handle, sort_keys=False)
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(path)
