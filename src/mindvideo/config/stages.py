"""Settings of every stage, in the order in which the stages run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mindvideo.config.section import PRECISION, BatchSize, Optimise, Precision, Rate, Section, Steps


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
    trim_start: bool = Field(False, description="drop the first scans of a film where a run began too late")
    trim_end: bool = Field(False, description="drop the last scans of a film where a run stopped too early")
    exclude: tuple[str, ...] = Field((), description="runs left out (sub-01_task-movie_run-2), or RUN:STIMULUS")


class Published(Section):
    """Arrays that others prepared (``data.source: published``)."""

    segment_scans: int = Field(240, ge=2, description="scans per film where the arrays do not say (NeuroClips)")
    vertex: Path | None = Field(None, description="npy file with the cortical position of each voxel, where known")


class Data(Section):
    """Where recordings come from and how they are prepared (paper section 3.2)."""

    source: Literal["wen2018", "fmriprep", "published", "store"] = "wen2018"
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
    validation_segments: int = Field(
        1, ge=0, description="the last training segments are held out for choices; 0: none"
    )
    expect: Literal["wen2018"] | None = Field(None, description="insist on 18 + 5 segments with 2 and 10 runs")
    captions: str = Field(
        "blip", description="'blip' (the foundation's captioner), 'none', or a csv/json file of captions"
    )
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


class Pretrain(Optimise):
    """Masked brain modelling on many people (SC-MBM)."""

    enabled: bool = True
    weights: Path | None = Field(None, description="a converted MaskedBrainModel folder, instead of training one")
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    window_s: float = Field(8.0, gt=0, description="recordings are averaged over this many seconds")
    validation_share: float = Field(0.1, ge=0, lt=1, description="share of the segments that only validates")
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
    word_swap: bool = Field(True, description="captions are reworded: synonyms, and two words swapped")
    augmentation: Literal["drawn", "fixed"] = Field(
        "drawn", description="captions and crops anew each time a window is drawn, or a few of each made once"
    )
    synonyms: Literal["wordnet", "listed"] = Field(
        "wordnet", description="where synonyms come from: WordNet (mindvideo[thesaurus]), or a list of fifty groups"
    )
    steps: Steps = 12000
    val_every: int = Field(200, ge=1, description="validation is looked at this often")


class Animate(Optimise):
    """Text-conditioned video tuning of attn1, attn2 and attn_temp."""

    enabled: bool = True
    motion: Literal["none", "foundation"] = Field(
        "none", description="temporal attention starts as identity (the paper), or from the foundation's part 'motion'"
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
    caption_share: float = Field(
        0.0, ge=0, lt=1, description="share of windows whose clip is conditioned on its caption instead of the fMRI"
    )
    sparsify: float = Field(0.0, ge=0, lt=1, description="fraction of voxels set to zero")
    input_noise: float = Field(0.0, ge=0, description="standard deviation of noise added to the scans")


class Distill(Optimise):
    """A student of the guided generator that samples in a few steps of one pass each (not in the paper)."""

    sampler_steps: int = Field(4, ge=1, le=50, description="steps in which the student samples")
    teacher_steps: int = Field(
        3, ge=1, le=20, description="guided steps of the teacher that one of the student's replaces"
    )
    caption_share: float = Field(0.25, ge=0, le=1, description="share of windows conditioned on their caption")
    input_noise: float = Field(0.0, ge=0, description="standard deviation of noise added to the scans")
    batch_size: BatchSize = 8
    lr: Rate = 1e-4
    ema_decay: float | None = Field(0.99, gt=0, lt=1)


class Reconstruct(Section):
    """Sampling with adversarial guidance (paper Eq. 6)."""

    scheduler: Literal["ddim", "dpm++", "unipc"] = "ddim"
    steps: int = Field(200, ge=1)
    guidance_scale: float = Field(12.5, ge=0)
    negative: Literal["train_mean", "test_mean", "null", "none"] = "train_mean"
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
    precision: Precision = Field("auto", description=PRECISION)

    @field_validator("negative", mode="before")
    @classmethod
    def _name_null(cls, value: Any) -> Any:
        """YAML reads a bare ``null`` as nothing."""
        return "null" if value is None else value


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
