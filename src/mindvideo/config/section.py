"""What every group of settings is made of, and what every training stage can set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


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
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(0.8, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights; empty: off")
    accumulate: int = Field(1, ge=1, description="micro-batches per step")
    gradient_checkpointing: bool = Field(False, description="recompute activations: slower, less memory")
    precision: Precision = "auto"
    checkpoint_every: int = Field(200, ge=1)
    log_every: int = Field(20, ge=1)

    @property
    def validation_interval(self) -> int:
        """Steps from one look at held-out samples to the next."""
        return self.checkpoint_every
