"""From fMRI windows to video clips (paper sections 3.3 and 3.4).

Shapes: B batch, W scans per window, V voxels, L condition tokens, C condition width, c latent
channels, F frames, h w latent height and width, H W pixels. Clips are (B, F, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file, save_file

from mindvideo.artefacts import read_note
from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.generate.guidance import negative_condition
from mindvideo.generate.sampling import Plan, autocast, denoise
from mindvideo.generate.scheduler import load_scheduler
from mindvideo.models.encoders import load_encoder
from mindvideo.models.generators import load_generator
from mindvideo.models.interfaces import Encoder, Generator, OfPerson, of_person
from mindvideo.models.loading import forget_path
from mindvideo.models.weight_files import load_network

KEPT = ("train_mean", "null_condition")
"""Tensors beside the networks, each in a file of its name in the pipeline's folder."""
CALL_SETTINGS = ("num_inference_steps", "guidance_scale", "num_frames", "frame_size")
"""What a call uses when it does not say, kept in ``model_index.json``."""
Array = np.ndarray | torch.Tensor


@dataclass
class VideoOutput(BaseOutput):
    """Clips (B, F, H, W, 3), uint8 or float32 in [0, 1], or latents (B, c, F, h, w)."""

    frames: Any


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Frames in [0, 1], any shape, rounded to uint8."""
    return np.round(frames * 255).astype(np.uint8)


class MindVideoPipeline(DiffusionPipeline):
    """fMRI windows in, video clips out.

    Parameters
    ----------
    fmri_encoder : Encoder
        fMRI (B, W, V) to condition (B, L, C).
    unet : Generator
        Predicts the noise of latents (B, c, F, h, w) under a condition.
    vae : AutoencoderKL
        Latents to frames, one frame at a time.
    scheduler : SchedulerMixin
        See `make_scheduler`.
    num_inference_steps, guidance_scale
        Defaults of a call; the paper's are 200 and 12.5.
    train_mean : Tensor, optional
        Mean training window (W, V) float32, the default negative; (people, W, V) of several people.
    null_condition : Tensor, optional
        The empty caption's tokens (L, C) float32, the negative ``null``: a pipeline has no text
        encoder.
    num_frames : int
        Frames of the clips it was trained on; default of a call.
    frame_size : int, optional
        Height and width in pixels of these clips; default of a call. Without it, that of the UNet's
        ``sample_size``.

    Raises
    ------
    ModelError
        When the parts do not fit one another.
    """

    model_cpu_offload_seq: ClassVar[str] = "fmri_encoder->unet->vae"

    def __init__(
        self,
        fmri_encoder: Encoder,
        unet: Generator,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 200,
        guidance_scale: float = 12.5,
        train_mean: torch.Tensor | None = None,
        null_condition: torch.Tensor | None = None,
        num_frames: int = 6,
        frame_size: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(fmri_encoder=fmri_encoder, unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
        self.register_to_config(num_frames=num_frames, frame_size=frame_size)
        self.train_mean, self.null_condition = train_mean, null_condition
        self.set_progress_bar_config(disable=True)
        _check_fit(self)

    def of_person(self, person: int) -> MindVideoPipeline:
        """The pipeline of one of the encoder's people, by index."""
        encoder, mean = of_person(self.fmri_encoder, person), self.train_mean
        if encoder is self.fmri_encoder:
            return self
        parts = {name: getattr(self, name) for name in ("unet", "vae", "scheduler", "null_condition")}
        settings = {name: self.config[name] for name in CALL_SETTINGS}
        return MindVideoPipeline(encoder, **parts, **settings, train_mean=None if mean is None else mean[person])

    @property
    def latent_factor(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def condition_shape(self) -> tuple[int, int]:
        """L, C: number and width of the condition tokens."""
        return self.fmri_encoder.config.condition_length, self.fmri_encoder.config.condition_width

    def latent_shape(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """(c, F, h, w) of one clip; height and width in pixels, as trained when not given."""
        size, factor = self.config.frame_size, self.latent_factor
        latent = self.unet.config.sample_size
        trained = [size, size] if size is not None else [s * factor for s in np.broadcast_to(latent, 2).tolist()]
        latent_sides = []
        for name, given, side in (("height", height, trained[0]), ("width", width, trained[1])):
            pixels = side if given is None else given
            if pixels < factor or pixels % factor:
                raise SettingError(f"expected {name} to be a multiple of {factor} pixels, found {pixels}")
            latent_sides.append(pixels // factor)
        if num_frames < 1:
            raise SettingError(f"expected num_frames of at least 1, found {num_frames}")
        return (self.unet.config.in_channels, num_frames, *latent_sides)

    @torch.no_grad()
    def encode(self, fmri: Array, precision: Literal["fp32", "bf16"] = "fp32") -> torch.Tensor:
        """Condition (B, L, C) float32 of fMRI (B, W, V); ModelError for another window or voxels."""
        fmri = torch.as_tensor(fmri, dtype=torch.float32)
        window, voxels = self.fmri_encoder.config.window, self.fmri_encoder.config.num_voxels
        if fmri.ndim != 3 or tuple(fmri.shape[1:]) != (window, voxels):
            raise ModelError(
                f"expected fMRI of shape (B, {window}, {voxels}), found {tuple(fmri.shape)}; this model was made for "
                f"windows of {window} scans and one subject's {voxels} voxels"
            )
        if not bool(torch.isfinite(fmri).all()):
            raise DataError("expected finite fMRI, found NaN or infinity; leave those scans out or prepare them again")
        device = self._execution_device
        with autocast(device, precision == "bf16"):
            return self.fmri_encoder(fmri.to(device, self.fmri_encoder.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, precision: Literal["fp32", "bf16"] = "fp32") -> np.ndarray:
        """Frames (B, F, H, W, 3) float32 in [0, 1] of latents (B, c, F, h, w), clip by clip."""
        device, dtype, clips = self._execution_device, self.vae.dtype, []
        for clip in latents.to(device):
            frames = (clip.transpose(0, 1) / self.vae.config.scaling_factor).to(
                dtype, memory_format=torch.channels_last
            )
            with autocast(device, precision == "bf16"):
                pixels = self.vae.decode(frames).sample.float()
            clips.append((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())
        return np.stack(clips)

    @torch.no_grad()
    def __call__(
        self,
        fmri: Array | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative: str | Array = "train_mean",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["uint8", "float", "latent"] = "uint8",
        *,
        condition: torch.Tensor | None = None,
        negative_tokens: torch.Tensor | None = None,
        test_mean: Array | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> VideoOutput:
        """Reconstruct one clip per window.

        Parameters
        ----------
        fmri : ndarray or Tensor
            (B, W, V) float32, standardised as the training data was.
        num_frames, height, width : int, optional
            F and pixels; by default as in training. One frame works.
        num_inference_steps, guidance_scale : optional
            By default the pipeline's. A scale of 1 needs no negative pass.
        negative : str or ndarray or Tensor
            ``train_mean``, ``test_mean`` (transductive), ``null``, ``none``, or an fMRI window (W,
            V).
        generator : torch.Generator or list of them, optional
            Source of the initial noise; with one per clip, clips do not depend on one another.
        latents : Tensor, optional
            Initial noise (B, c, F, h, w) of unit variance, instead.
        output_type : {"uint8", "float", "latent"}
            (B, F, H, W, 3) uint8, the same as float32 in [0, 1], or latents (B, c, F, h, w).
        condition : Tensor, optional
            (B, L, C), such as a caption's tokens, instead of fMRI.
        negative_tokens : Tensor, optional
            (1, L, C), instead of ``negative``.
        test_mean : ndarray or Tensor, optional
            Mean test window (W, V), for ``negative="test_mean"``.
        precision : {"fp32", "bf16"}
            bf16 runs the networks under autocast; the sampler stays in fp32.

        Raises
        ------
        ModelError
            When fMRI or condition has another shape than the model's.
        SettingError
            For an unknown negative or output type, a size that does not divide, or too many steps.
        """
        if output_type not in ("uint8", "float", "latent"):
            raise SettingError(f"expected output_type 'uint8', 'float' or 'latent', found '{output_type}'")
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if (fmri is None) == (condition is None):
            raise SettingError("expected either fmri or condition, found both or neither; give exactly one of them")
        if condition is not None:
            positive = self._check_tokens(condition, "condition")
        elif fmri is not None:
            positive = self.encode(fmri, precision)
        unwanted = self.unwanted(negative, scale, precision, negative_tokens, test_mean)
        frames = self.config.num_frames if num_frames is None else num_frames
        shape = (len(positive), *self.latent_shape(frames, height, width))
        latents = self._initial_latents(shape, generator, latents)
        plan = Plan(steps, scale, is_bf16=precision == "bf16")
        with self.progress_bar(total=steps) as bar:
            latents = denoise(self.unet, self.scheduler, latents, positive, unwanted, plan, bar.update)
        made: Any = latents if output_type == "latent" else self.decode(latents, precision)
        self.maybe_free_model_hooks()
        return VideoOutput(frames=to_uint8(made) if output_type == "uint8" else made)

    def _check_tokens(self, tokens: torch.Tensor, name: str) -> torch.Tensor:
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != self.condition_shape:
            length, width = self.condition_shape
            raise ModelError(f"expected {name} of shape (B, {length}, {width}), found {tuple(tokens.shape)}")
        return tokens.to(self._execution_device, torch.float32)

    def unwanted(
        self,
        negative: str | Array,
        scale: float,
        precision: Literal["fp32", "bf16"],
        tokens: torch.Tensor | None = None,
        test_mean: Array | None = None,
    ) -> torch.Tensor | None:
        """Negative condition (1, L, C); None without guidance. Arguments are those of a call."""
        if tokens is not None:
            found: torch.Tensor | None = self._check_tokens(tokens, "negative_tokens")
        else:
            chosen = torch.as_tensor(negative) if isinstance(negative, np.ndarray) else negative
            mean = None if test_mean is None else torch.as_tensor(test_mean)
            encode = partial(self.encode, precision=precision)
            kept = {"null": self.null_condition, "train_mean": self.train_mean}
            found = negative_condition(chosen, encode, **kept, test_mean=mean)
        if found is None or scale == 1.0:
            return None
        return found.to(self._execution_device)

    def _initial_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        if latents is None:
            source = list(generator) if isinstance(generator, Sequence) else generator
            if isinstance(source, list) and len(source) != shape[0]:
                raise SettingError(f"expected one generator per clip, {shape[0]}, found {len(source)}")
            return randn_tensor(shape, source, self._execution_device, torch.float32)
        if tuple(latents.shape) != shape:
            raise ModelError(f"expected latents of shape {shape}, found {tuple(latents.shape)}")
        return latents.to(self._execution_device, torch.float32)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the parts as safetensors, ``model_index.json`` and the `KEPT` tensors."""
        for part in (self.unet, self.vae):  # files hold plainly laid out weights
            part.to(memory_format=torch.contiguous_format)
        for part in (self, self.vae, self.scheduler):
            forget_path(part)
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)
        for name in KEPT:
            if (tensor := getattr(self, name)) is not None:
                save_kept(Path(save_directory), name, tensor)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> MindVideoPipeline:
        """Load a local folder that ``save_pretrained`` wrote, with weights of ``dtype``.

        ModelError names the part that is missing, incomplete, or of another width.
        """
        folder = Path(folder)
        index = read_note(folder / "model_index.json")
        if index.get("_class_name") != cls.__name__:
            raise ModelError(
                f"expected a model_index.json that names {cls.__name__} in {folder}, found "
                f"{index.get('_class_name', 'none')}; give a folder that save_pretrained wrote, such as RUN/model"
            )
        parts: dict[str, Any] = {
            "fmri_encoder": load_encoder(folder / "fmri_encoder", torch_dtype=dtype),
            "unet": load_generator(folder / "unet", torch_dtype=dtype),
            "vae": load_network(AutoencoderKL, folder / "vae", dtype=dtype),
        }
        for name in ("unet", "vae"):
            parts[name].to(memory_format=torch.channels_last)  # what convolutions are fastest on
        settings = {name: index[name] for name in CALL_SETTINGS if name in index}
        kept = {name: load_file(path)[name] for name in KEPT if (path := _kept_path(folder, name)).is_file()}
        return cls(**parts, scheduler=load_scheduler(folder / "scheduler", index), **kept, **settings)


def _kept_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def save_kept(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Write one of the `KEPT` tensors into a pipeline's folder."""
    save_file({name: tensor.detach().float().cpu().contiguous()}, _kept_path(folder, name))


def _check_fit(pipeline: MindVideoPipeline) -> None:
    encoder, unet, vae = pipeline.fmri_encoder.config, pipeline.unet.config, pipeline.vae.config
    width = unet.cross_attention_dim
    widths = {width} if isinstance(width, int) else set(width)
    if widths != {encoder.condition_width}:
        raise ModelError(
            f"expected the fMRI encoder's condition width to be the UNet's cross-attention width {sorted(widths)}, "
            f"found {encoder.condition_width}; the two come from different foundations"
        )
    if vae.latent_channels != unet.in_channels:
        raise ModelError(
            f"expected the UNet to take the VAE's {vae.latent_channels} latent channels, found {unet.in_channels}"
        )
    people = len(encoder.get("layouts") or ()) if not isinstance(pipeline.fmri_encoder, OfPerson) else 1
    mean = ((people,) if people > 1 else ()) + (encoder.window, encoder.num_voxels)
    shapes = {"train_mean": mean, "null_condition": pipeline.condition_shape}
    for name, shape in shapes.items():
        tensor = getattr(pipeline, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ModelError(f"expected {name} of shape {shape} for this fMRI encoder, found {tuple(tensor.shape)}")
