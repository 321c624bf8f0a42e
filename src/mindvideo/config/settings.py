"""Settings of every stage, in the order in which these run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mindvideo.sources import READERS, load_reader


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("no_bool", "Input should not be true or false")
        return value


Steps = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=2)]
Rate = Annotated[float, Field(gt=0)]
Penalty = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Clip = Annotated[float | None, Field(gt=0)]
Averaging = Annotated[float | None, Field(gt=0, lt=1, description="decay of averaged weights; empty: off")]
TokenWeight = Annotated[float, Field(ge=0, description="weight of the regression of the caption's tokens")]
Sparsify = Annotated[float, Field(ge=0, lt=1, description="fraction of voxels set to zero")]
InputNoise = Annotated[float, Field(ge=0, description="standard deviation of noise added to scans")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 where the hardware computes in it, else fp32")
]


class Optimise(Section):
    """What every training stage can set."""

    steps: Steps = 1000
    batch_size: BatchSize = 20
    lr: Rate = 2e-5
    weight_decay: Penalty = 0.05
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip_grad: Clip = 0.8
    ema_decay: Averaging = None
    accumulate: int = Field(1, ge=1, description="micro-batches per step")
    gradient_checkpointing: bool = Field(False, description="recompute activations: slower, less memory")
    precision: Precision = "auto"
    checkpoint_every: int = Field(200, ge=1)
    log_every: int = Field(20, ge=1)

    @property
    def validation_interval(self) -> int:
        """Steps from one look at held-out samples to the next."""
        return self.checkpoint_every


class Simulate(Section):
    """Simulated subjects in the layout of Wen 2018, and people to pre-train on in that of HCP."""

    subjects: int = Field(1, ge=1, description="people who saw the films; of several each varies the same brain")
    train_segments: int = Field(18, ge=3, description="number of training films")
    test_segments: int = Field(5, ge=1, description="number of test films")
    segment_s: float = Field(480.0, gt=0, description="seconds of each film; a multiple of the TR")
    train_runs: int = Field(2, ge=2, description="recordings of each training film")
    test_runs: int = Field(10, ge=2, description="recordings of each test film")
    areas: Literal["visual", "cortex"] = Field("cortex", description="which vertices the files hold")
    subcortex: bool = Field(False, description="also write subcortical voxels")
    size: int = Field(64, ge=32, multiple_of=2, description="stimulus height and width in pixels")
    source_fps: int = Field(30, ge=3, description="stimulus frame rate")
    noise: float = Field(1.0, gt=0, description="amplitude of noise; 1 gives realistic correlations")
    pretrain_people: int = Field(4, ge=1, description="other people, for pre-training only")
    pretrain_runs: int = Field(2, ge=1, description="runs of each of these")
    pretrain_run_s: float = Field(864.0, gt=0, description="seconds of each of these runs")


class _Data(Section):
    """Where recordings come from, and how they are prepared (paper section 3.2)."""

    source: str = Field("wen2018", description="which reader; its own settings stand under its name")
    raw: Path | None = Field(None, description="the recordings' folder; empty if simulated")
    hcp: Path | None = Field(None, description="HCP folder for pre-training; empty if simulated")
    subject: int = Field(1, ge=1, description="number of the subject")
    subjects: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)] | None = Field(
        None, description="several people who saw the same films; one model is trained on all of them"
    )
    tr_s: float = Field(2.0, ge=0, description="seconds between scans; empty: the recordings' own")
    lag_s: float = Field(4.0, ge=0, description="seconds from a film's moment to the volume it pairs with")
    fps: int = Field(3, ge=1, le=30, description="frames kept per second of film")
    size: int = Field(256, ge=0, description="height and width of frames; empty: as published")
    fit: Literal["stretch", "crop", "letterbox"] = Field("crop", description="how other aspect ratios become square")
    areas: str = Field("cortex", description="areas to choose voxels from: 'cortex', 'visual', or MMP1 names")
    selection: Literal["paper", "bonferroni", "top_k", "all"] = Field(
        "paper",
        description="bonferroni: voxels that repeat; paper: the most significant of these; top_k: the best k; all: of the areas",
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="level of the Bonferroni correction")
    top_fraction: float = Field(0.5, gt=0, le=1, description="share of significant voxels that 'paper' keeps")
    k: int | None = Field(None, ge=16, description="voxels that 'top_k' keeps")
    repeats: Literal["average", "separate"] = Field(
        "average", description="separate: every recording of a training film gives windows of its own"
    )
    validation_segments: int = Field(1, ge=0, description="last training films, held out for choices")
    captions: str = Field(
        "blip", description="'blip' (the foundation's captioner), 'none', 'published', or a csv or json file"
    )
    cut_threshold: float = Field(27.0, gt=0, description="threshold of the detector of shot changes")

    @field_validator("tr_s", "size", mode="before")
    @classmethod
    def _name_own(cls, value: Any) -> Any:
        return 0 if value is None else value

    @field_validator("subjects")
    @classmethod
    def _name_each_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise PydanticCustomError("twice", "Input should name each subject once")
        return value

    @field_validator("source")
    @classmethod
    def _know_reader(cls, value: str) -> str:
        if value not in READERS:
            raise PydanticCustomError("no_reader", "Input should be {names}", {"names": " or ".join(READERS)})
        return value

    @model_validator(mode="before")
    @classmethod
    def _state_own(cls, content: Any) -> Any:
        """The settings of the source's reader are there even where nothing is said of them."""
        source = content.get("source", "wen2018") if isinstance(content, dict) else None
        return {**content, source: content.get(source) or {}} if source in READERS else content

    @field_validator(*READERS, mode="before", check_fields=False)
    @classmethod
    def _read_own(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else reader_settings(str(info.field_name)).model_validate(value)

    @model_serializer(mode="wrap")
    def _leave_out_others(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        optional = {*READERS, "subjects"}
        return {name: value for name, value in write(self).items() if name not in optional or value is not None}

    @property
    def people(self) -> tuple[int, ...]:
        """Numbers of all people, one or several."""
        return self.subjects or (self.subject,)

    @property
    def caption_file(self) -> Path | None:
        """The file of captions, if these come from one."""
        is_elsewhere = self.captions in ("blip", "none") or self.captions == self.source == "published"
        return None if is_elsewhere else Path(self.captions)

    @property
    def own(self) -> Any:
        """The ``Settings`` of the source's reader."""
        return getattr(self, self.source)


if TYPE_CHECKING:
    Data = _Data
else:
    Data = create_model("Data", __base__=_Data, __doc__=_Data.__doc__, **dict.fromkeys(READERS, (Any, None)))


def reader_settings(source: str) -> type[Section]:
    """The section that a reader declares in its own file; an empty one where it needs none."""
    found: type[Section] = getattr(load_reader(source), "Settings", Section)
    return found


AREA_ENCODERS = ("areas", "ridge_areas")
"""Values of `align.encoder` whose tokens are cortical areas."""


class MaskedBrain(Section):
    """Architecture of the masked autoencoder (paper Table B.1) and of the encoder."""

    patch_size: int = Field(16, ge=1)
    patch_weights: Literal["shared", "per_patch"] = "shared"
    embed_dim: int = Field(1024, ge=8)
    depth: int = Field(24, ge=1)
    num_heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(1.0, gt=0)
    decoder_embed_dim: int = Field(512, ge=8)
    decoder_depth: int = Field(8, ge=1)
    decoder_num_heads: int = Field(16, ge=1)


class Pretrain(Optimise):
    """Masked brain modelling on many people (SC-MBM)."""

    enabled: bool = True
    weights: Path | None = Field(None, description="a converted MaskedBrainModel folder, instead of training one")
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    window_s: float = Field(8.0, gt=0, description="recordings are averaged over this many seconds")
    areas: str = Field("V1,V2,V3,V4", description="areas whose vertices are kept, in hierarchy order")
    validation_share: float = Field(0.1, ge=0, lt=1, description="share of segments held out for validation")
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
    token_weight: TokenWeight = 0.0
    token_whitening: float = Field(
        0.0, ge=0, le=1, description="1: weak components of tokens count as much as strong ones"
    )
    dropout: float = Field(0.6, ge=0, lt=1)
    encoder: str = Field(
        "paper",
        description="'paper', 'read_out' (every condition token read from patches of its own), 'areas' (its tokens are "
        "cortical areas), 'ridge_areas' (these add to ridge regression what it leaves), or an encoder of your own as module:Class, which maps (B, W, V) to (B, L, C)",
    )
    encoder_settings: dict[str, Any] = Field({}, description="further arguments of that encoder")
    mixup: float = Field(
        0.0,
        ge=0,
        description="parameter of the beta distribution that mixes pairs of windows and their targets; 0: off",
    )
    teacher_weight: float = Field(0.0, ge=0, le=1, description="share of ridge regression in the token targets")
    sparsify: Sparsify = 0.2
    input_noise: InputNoise = 0.0
    crop_probability: float = Field(0.5, ge=0, le=1)
    word_swap: bool = Field(True, description="reword captions: synonyms, and two words swapped")
    augmentation: Literal["drawn", "fixed"] = Field(
        "drawn", description="captions and crops: new ones for each draw of a window, or a fixed few"
    )
    synonyms: Literal["wordnet", "listed"] = Field(
        "wordnet", description="WordNet (mindvideo[thesaurus]), or a list of fifty groups"
    )
    steps: Steps = 12000
    val_every: int = Field(200, ge=1, description="validation is looked at this often")

    @property
    def validation_interval(self) -> int:
        """Steps from one look at held-out windows to the next."""
        return self.val_every


class Animate(Optimise):
    """Text-conditioned video tuning of attn1, attn2 and attn_temp."""

    enabled: bool = True
    motion: Literal["none", "foundation"] = Field(
        "none", description="temporal attention starts as identity, or from the foundation's part 'motion'"
    )
    steps: Steps = 800
    batch_size: BatchSize = 14
    generator: str = Field("video_unet", description="which of mindvideo.models.generators")
    caption_dropout: float = Field(0.1, ge=0, lt=1)


class Cotrain(Optimise):
    """Encoder and generator tuned together on {fMRI window, clip}."""

    enabled: bool = True
    steps: Steps = 15000
    batch_size: BatchSize = 9
    lr: Rate = 3e-5
    encoder_lr: float | None = Field(None, gt=0, description="learning rate of the encoder; empty: the same")
    token_weight: TokenWeight = 0.0
    caption_share: float = Field(0.0, ge=0, lt=1, description="share of windows conditioned on their caption")
    sparsify: Sparsify = 0.0
    input_noise: InputNoise = 0.0


class Distill(Optimise):
    """A student of the guided generator, which samples in a few steps (not in the paper)."""

    sampler_steps: int = Field(4, ge=1, le=50, description="steps in which the student samples")
    teacher_steps: int = Field(3, ge=1, le=20, description="the teacher's steps that one of the student's replaces")
    caption_share: float = Field(0.25, ge=0, le=1, description="share of windows conditioned on their caption")
    input_noise: InputNoise = 0.0
    batch_size: BatchSize = 8
    lr: Rate = 1e-4
    ema_decay: Averaging = 0.99


Control = Literal["shuffled", "mean", "caption", "vae", "random_train", "constant"]


class Reconstruct(Section):
    """Sampling with adversarial guidance (paper Eq. 6)."""

    scheduler: Literal["ddim", "dpm++", "unipc"] = "ddim"
    steps: int = Field(200, ge=1)
    guidance_scale: float = Field(12.5, ge=0)
    negative: Literal["train_mean", "test_mean", "null", "none"] = "train_mean"
    num_frames: int | None = Field(None, ge=1, description="frames per clip; empty: as many as the store has")
    size: int | None = Field(None, ge=16, description="height and width of the clips; empty: the store's")
    batch_size: int = Field(4, ge=1)
    controls: tuple[Control, ...] = get_args(Control)
    max_windows: int | None = Field(None, ge=1, description="only so many test windows, evenly spread in blocks")
    precision: Precision = "auto"

    @field_validator("negative", mode="before")
    @classmethod
    def _name_null(cls, value: Any) -> Any:
        """YAML reads a bare ``null`` as nothing."""
        return "null" if value is None else value


class Evaluate(Section):
    """Scores and their controls."""

    n_ways: tuple[Annotated[int, Field(ge=2)], ...] = (2, 50)
    top_k: int = Field(1, ge=1)
    candidates: tuple[Annotated[int, Field(ge=2)], ...] = Field((), description="retrieval also among so many clips")
    captions: bool = Field(True, description="compare captions, if there is a captioner")
    block_s: float = Field(20.0, gt=0, description="seconds of the blocks that are permuted and resampled")
    permutations: int = Field(5000, ge=99)
    bootstraps: int = Field(2000, ge=99)

    def block_scans(self, tr_s: float) -> int:
        """Scans of a block, at least one."""
        return max(1, round(self.block_s / tr_s))


class Explain(Section):
    """Attention and occlusion maps."""

    max_windows: int = Field(200, ge=1)
