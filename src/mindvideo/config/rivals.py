"""Settings of the rival methods (docs/method.md, Rivals)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mindvideo.config.settings import (
    Averaging,
    BatchSize,
    Beta,
    Clip,
    InputNoise,
    Optimise,
    Penalty,
    Precision,
    Rate,
    Section,
    Sparsify,
    Steps,
    TokenWeight,
)

Alphas = Annotated[tuple[Rate, ...], Field(min_length=1, description="penalties to choose from, on validation")]
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class RidgeRival(Section):
    """Banded ridge regression to the condition tokens, with the main method's generator."""

    alphas: Alphas = ALPHAS
    components: int = Field(256, ge=1, description="principal components of the tokens predicted")
    generator: Literal["cotrain", "animate"] = "cotrain"


class LinearRival(Section):
    """Linear maps to features of an image network (Wen et al. 2018)."""

    alphas: Alphas = ALPHAS
    components: int = Field(512, ge=1, description="principal components of the early features")


class GanRival(Optimise):
    """A video GAN on a linear fMRI embedding (Wang et al. 2022)."""

    alphas: Alphas = ALPHAS
    components: int = Field(128, ge=1, description="width of the linear fMRI embedding")
    noise_width: int = Field(16, ge=1)
    width: int = Field(64, ge=8, description="channels at the coarsest size; a multiple of 8")
    reconstruction_weight: float = Field(10.0, ge=0)
    image_weight: float = Field(0.1, ge=0, description="weight of the image discriminator")
    sequence_weight: float = Field(0.1, ge=0, description="weight of the sequence discriminator")
    steps: Steps = 20000
    batch_size: BatchSize = 16
    lr: Rate = 2e-4
    weight_decay: Penalty = 0.0
    schedule: Literal["cosine", "constant"] = "constant"
    betas: tuple[Beta, Beta] = (0.5, 0.99)
    clip_grad: Clip = None
    ema_decay: Averaging = 0.999
    precision: Precision = Field("fp32", description="bf16 is too coarse for its spectral norms")


class SeparableRival(Optimise):
    """Separable encoder and decoder, supervised and then self-supervised (Kupershmidt et al. 2022)."""

    encoder_steps: int = Field(5000, ge=1, description="steps of the encoder, before the decoder's")
    width: int = Field(64, ge=4, description="channels")
    films: Path | None = Field(None, description="unlabelled films; empty: training films half a TR later")
    self_supervised_weight: float = Field(0.5, ge=0)
    perceptual_weight: float = Field(0.3, ge=0)
    perceptual_layer: int = Field(2, ge=0, description="layer of the image classifier that is compared")
    steps: Steps = 20000
    batch_size: BatchSize = 16
    lr: Rate = 1e-3
    weight_decay: Penalty = 1e-2
    clip_grad: Clip = 1.0


class MindVisRival(Optimise):
    """A masked-modelling encoder that conditions the image diffusion model twice (Chen et al. 2023)."""

    steps: Steps = 20000
    batch_size: BatchSize = 5
    lr: Rate = 5.3e-5
    dropout: float = Field(0.0, ge=0, lt=1)
    token_weight: TokenWeight = 0.0
    sparsify: Sparsify = 0.0
    input_noise: InputNoise = 0.0
    guidance_scale: float = Field(1.0, ge=0)


class Baseline(Section):
    """Settings of each rival method (docs/method.md, Rivals)."""

    ridge: RidgeRival = RidgeRival()
    linear: LinearRival = LinearRival()
    gan: GanRival = GanRival()
    separable: SeparableRival = SeparableRival()
    mindvis: MindVisRival = MindVisRival()
