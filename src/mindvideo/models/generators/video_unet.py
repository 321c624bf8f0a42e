"""Stable Diffusion's UNet inflated to clips (docs/method.md, The generator, paper section 3.4).

It is diffusers' 2-D UNet with frames folded into the batch, except that self-attention is
sparse-causal, a temporal attention follows every transformer block, the ResNets' GroupNorms (and
the last one) take statistics over a clip, and cross-attention reads one condition per clip. Weights
are named as in the 2-D UNet, plus ``attn_temp`` and ``norm_temp``.

Shapes: B clips, F frames, C channels, H W latent pixels, N = H·W tokens of a frame, L condition
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from mindvideo.errors import ModelError
from mindvideo.models.interfaces import Generator
from mindvideo.models.loading import takes_settings_of
from mindvideo.models.transformer import attend

FAMILY_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")
# Temporal attention has a sequence for every pixel; CUDA's fused kernels take fewer than 65,536 at a time.
MAX_SEQUENCES = 32768
# Parts of the names of the weights that a 2-D UNet does not have.
CLIP_PARTS = ("attn_temp.", "norm_temp.", "frame_embedding.")
FRAME_WIDTH = 32
# Settings that only UNets outside the Stable Diffusion family turn on.
OTHER_FAMILIES = (
    *("only_cross_attention", "mid_block_only_cross_attention", "dual_cross_attention", "cross_attention_norm"),
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
)
# What diffusers' transformer hands on to its blocks.
BLOCK_SETTINGS = (
    *("num_attention_heads", "attention_head_dim", "dropout", "cross_attention_dim", "activation_fn"),
    *("attention_bias", "upcast_attention", "norm_elementwise_affine", "norm_eps"),
)


def _check_family(settings: dict[str, Any]) -> None:
    blocks = [*settings.get("down_block_types", ()), *settings.get("up_block_types", ())]
    blocks.append(settings.get("mid_block_type", FAMILY_BLOCKS[-1]))
    other = sorted({f"block {name}" for name in blocks if name not in FAMILY_BLOCKS})
    other += [f"{name}={settings[name]!r}" for name in OTHER_FAMILIES if settings.get(name)]
    if settings.get("attention_type", "default") != "default":
        other.append(f"attention_type={settings['attention_type']!r}")
    if settings.get("norm_num_groups", 32) is None:
        other.append("norm_num_groups=None")
    if other:
        raise ModelError(f"expected a UNet of the Stable Diffusion family, found {', '.join(other)}; use another UNet")


class ClipShape:
    """What the UNet's forward tells the layers that mix frames."""

    def __init__(self) -> None:
        self.num_frames = 1
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    def keys_and_values(self, attn: Attention, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, L, C) of a condition (B, L, width); projected once while it is held."""
        if self.held is None:
            return attn.to_k(condition), attn.to_v(condition)
        kept = self.held.get(id(attn))
        if kept is None or kept[0] is not condition:
            kept = self.held[id(attn)] = (condition, attn.to_k(condition), attn.to_v(condition))
        return kept[1:]


class ClipGroupNorm(nn.GroupNorm):
    """GroupNorm with statistics over all frames of a clip."""

    def __init__(self, norm: nn.GroupNorm, clip: ClipShape) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.clip = clip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B·F, C, H, W) to (B·F, C, H, W)."""
        frames = self.clip.num_frames
        if frames == 1:
            return super().forward(features)
        height, width = features.shape[2:]
        # Frames below one another: in channels-last memory this is a view.
        tall = features.permute(0, 2, 3, 1).reshape(-1, frames * height, width, features.shape[1])
        normed = super().forward(tall.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return normed.reshape(-1, height, width, features.shape[1]).permute(0, 3, 1, 2)


def _attend(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Fused attention of projected tokens (B, N, C), before the output projection."""
    by_head = (tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return attend(*by_head).transpose(1, 2).flatten(2)


def _project_out(attn: Attention, tokens: torch.Tensor) -> torch.Tensor:
    for layer in attn.to_out:
        tokens = layer(tokens)
    return tokens


class SparseCausalAttention:
    """Self-attention processor: frame i reads frames max(i-2, 0) and max(i-1, 0), in that order (paper Eq. 4).

    Frames 0 and 1 would read frame 0 twice over, which weighs as reading it once.
    """

    def __init__(self, clip: ClipShape) -> None:
        self.clip = clip

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """Tokens (B·F, N, C) to (B·F, N, C)."""
        frames = self.clip.num_frames
        query, key, value = (
            project(hidden_states).unflatten(0, (-1, frames)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = _attend(attn, query[:, :2].flatten(1, 2), key[:, 0], value[:, 0]).unflatten(1, (min(frames, 2), -1))
        if frames > 2:
            pairs = [torch.cat([t[:, :-2], t[:, 1:-1]], dim=2).flatten(0, 1) for t in (key, value)]
            later = _attend(attn, query[:, 2:].flatten(0, 1), *pairs).unflatten(0, (-1, frames - 2))
            mixed = torch.cat([mixed, later], dim=1)
        return _project_out(attn, mixed.flatten(0, 1))


class ClipCrossAttention:
    """Cross-attention processor: all frames of a clip read its one condition."""

    def __init__(self, clip: ClipShape) -> None:
        self.clip = clip

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Tokens (B·F, N, C) and condition (B, L, width) to (B·F, N, C)."""
        frames = self.clip.num_frames
        query = attn.to_q(hidden_states).unflatten(0, (-1, frames)).flatten(1, 2)
        mixed = _attend(attn, query, *self.clip.keys_and_values(attn, encoder_hidden_states))
        return _project_out(attn, mixed.unflatten(1, (frames, -1)).flatten(0, 1))


def frame_positions(frames: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sinusoids of the frame index, float32 (frames, width); wavelengths 4 to 128 frames."""
    half = (width + 1) // 2
    wavelength = 4.0 * 32.0 ** (torch.arange(half, device=device) / max(1, half - 1))
    angle = 2 * torch.pi * torch.arange(frames, device=device)[:, None] / wavelength
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


class FrameAttention:
    """Temporal attention processor: self-attention over frames, with or without `frame_positions`."""

    def __init__(self, has_positions: bool) -> None:
        self.has_positions = has_positions

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """Tokens (pixels, F, C) to (pixels, F, C)."""
        if self.has_positions:
            position = frame_positions(hidden_states.shape[1], hidden_states.shape[2], hidden_states.device)
            hidden_states = hidden_states + position.to(hidden_states.dtype)
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        return _project_out(attn, _attend(attn, query, key, value))


class ContiguousGEGLU(GEGLU):
    """Diffusers' gated GELU with a contiguous gate: in bfloat16 several times faster."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Tokens (..., C) to (..., inner)."""
        value, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return value * F.gelu(gate.contiguous())


class FrameGroupNorm(nn.GroupNorm):
    """The transformers' GroupNorm; in bfloat16, CPUs are ten times slower for channels-last frames."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B·F, C, H, W) to (B·F, C, H, W)."""
        is_slow = features.device.type == "cpu" and features.dtype == torch.bfloat16
        return super().forward(features.contiguous() if is_slow else features)


class VideoTransformerBlock(BasicTransformerBlock):
    """Diffusers' block, followed by attention over the frames of each pixel."""

    def __init__(self, dim: int, clip: ClipShape, settings: dict[str, Any], has_positions: bool) -> None:
        super().__init__(dim, **settings)
        self.clip = clip
        self.norm_temp = nn.LayerNorm(dim, eps=1e-5)
        self.attn_temp = Attention(
            query_dim=dim,
            heads=settings["num_attention_heads"],
            dim_head=settings["attention_head_dim"],
            dropout=settings["dropout"],
            bias=settings["attention_bias"],
            upcast_attention=settings["upcast_attention"],
        )
        self.attn_temp.set_processor(FrameAttention(has_positions))
        if isinstance(self.ff.net[0], GEGLU):
            self.ff.net[0].__class__ = ContiguousGEGLU
        nn.init.zeros_(self.attn_temp.to_out[0].weight)  # starts as identity
        nn.init.zeros_(self.attn_temp.to_out[0].bias)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Tokens (B·F, N, C) and diffusers' further arguments to (B·F, N, C)."""
        tokens = super().forward(*args, **kwargs)
        by_pixel = tokens.unflatten(0, (-1, self.clip.num_frames)).transpose(1, 2)
        sequences = self.norm_temp(by_pixel).flatten(0, 1).split(MAX_SEQUENCES)
        mixed = torch.cat([self.attn_temp(part) for part in sequences]).view(by_pixel.shape)
        return tokens + mixed.transpose(1, 2).flatten(0, 1)


class VideoUNet(Generator, UNet2DConditionModel):
    """Denoiser of clips.

    Parameters
    ----------
    **settings
        Those of diffusers' ``UNet2DConditionModel`` in the Stable Diffusion family (1.x, 2.x).
        There, ``attention_head_dim`` is the *number* of heads. ModelError for settings of other
        families.
    inflate : {"sparse_causal", "own_frame"}
        What self-attention reads: the two frames before, or (for comparison) the frame itself.
    clip_norm : bool
        Whether the ResNets' GroupNorms take statistics over the clip or (for comparison) each
        frame.
    frame_positions : bool
        Whether temporal attention and ResNet blocks are told which frame is which. In the paper
        they are not, and can hardly tell first from last, or left from right.
    noise_share : float
        Correlation of noise between the frames of a clip, see `share_noise`; 0 in the paper.

    References
    ----------
    Chen, Qing, Zhou, Cinematic Mindscapes, 2023, section 3.4, Eq. 4; Wu et al., Tune-A-Video, 2023.
    """

    conv_norm_out: nn.GroupNorm
    trained_parts = ("attn1", "attn2", "attn_temp", "norm_temp")  # paper section 3.4; the norm before attn_temp is ours

    @register_to_config
    @takes_settings_of(UNet2DConditionModel)
    def __init__(
        self,
        *,
        inflate: Literal["sparse_causal", "own_frame"] = "sparse_causal",
        clip_norm: bool = True,
        frame_positions: bool = False,
        noise_share: float = 0.0,
        **settings: Any,
    ) -> None:
        if inflate not in ("sparse_causal", "own_frame"):
            raise ModelError(f"expected inflate 'sparse_causal' or 'own_frame', found '{inflate}'")
        _check_family(settings)
        super().__init__(**settings)
        self.clip = ClipShape()
        self._inflate_transformers(inflate, frame_positions)
        if clip_norm:
            self._inflate_norms()
        self.frame_embedding: nn.Linear | None = None
        if frame_positions:
            width = self.time_embedding.linear_2.out_features
            self.frame_embedding = nn.Linear(FRAME_WIDTH, width)
            nn.init.zeros_(self.frame_embedding.weight)
            nn.init.zeros_(self.frame_embedding.bias)

    @classmethod
    def from_unet2d(cls, unet: UNet2DConditionModel, **settings: Any) -> VideoUNet:
        """Inflate a 2-D UNet; temporal parts start as identity. ModelError for one of another family.

        ``settings`` are ``inflate``, ``clip_norm``, ``frame_positions`` and ``noise_share``.
        """
        known = cls._get_init_keys(cls)
        video = cls(**{name: value for name, value in unet.config.items() if name in known}, **settings)
        video.load_state_dict(video.temporal_weights() | unet.state_dict())
        nn.Module.to(video, device=unet.device, dtype=unet.dtype)
        return video

    @classmethod
    def from_foundation(
        cls,
        unet: nn.Module,
        settings: Mapping[str, Any] | None = None,
        motion: Mapping[str, torch.Tensor] | None = None,
    ) -> VideoUNet:
        """`from_unet2d`, with the foundation's temporal weights if given; ModelError where they do not fit."""
        video = cls.from_unet2d(cast(UNet2DConditionModel, unet), **(settings or {}))
        if motion is None:
            return video
        temporal = {name: weight.shape for name, weight in video.temporal_weights().items()}
        found = {name: weight.shape for name, weight in motion.items()}
        if found != temporal:
            differing = sorted(n for n in temporal.keys() | found.keys() if temporal.get(n) != found.get(n))
            raise ModelError(
                f"expected the foundation's part 'motion' to hold the {len(temporal)} temporal weights of its generator, "
                f"found {len(differing)} missing, unexpected or misshapen, first {differing[0]}; set animate.motion=none"
            )
        video.load_state_dict(video.state_dict() | dict(motion))
        return video

    def temporal_weights(self) -> dict[str, torch.Tensor]:
        """The weights that a 2-D UNet does not have."""
        own = self.state_dict()
        return {name: own[name] for name in own if any(part in name for part in CLIP_PARTS)}

    def get_aug_embed(self, emb: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
        """What is added to the timestep's embedding (B·F, width) to tell frames apart."""
        if self.frame_embedding is None:
            return None
        frames = frame_positions(self.clip.num_frames, FRAME_WIDTH, emb.device).to(emb.dtype)
        return self.frame_embedding(frames).repeat(len(emb) // self.clip.num_frames, 1)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor | float, condition: torch.Tensor, return_dict: bool = True
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict the noise (or what the scheduler asks for) in noisy latents.

        Parameters
        ----------
        latents : Tensor, (B, C, F, H, W)
        timestep : number or Tensor, () or (B,)
        condition : Tensor, (B, L, cross_attention_dim)
            ModelError where latents, timestep and condition do not fit together.

        Returns
        -------
        UNet2DConditionOutput
            ``sample`` (B, C, F, H, W), or without ``return_dict`` a tuple of it.
        """
        self._check_input(latents, condition)
        batch, _, frames = latents.shape[:3]
        self.clip.num_frames = frames
        timestep = torch.as_tensor(timestep, device=latents.device)
        if timestep.ndim == 1 and len(timestep) == batch:
            timestep = timestep.repeat_interleave(frames)
        elif timestep.numel() != 1:
            raise ModelError(f"expected one timestep or {batch}, found shape {tuple(timestep.shape)}")
        folded = latents.transpose(1, 2).flatten(0, 1)
        sample = UNet2DConditionModel.forward(self, folded, timestep, condition).sample
        sample = sample.unflatten(0, (batch, frames)).transpose(1, 2)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)

    @contextmanager
    def constant_condition(self) -> Iterator[None]:
        """Within, keys and values of a condition are kept while the same tensor comes again, as in sampling."""
        self.clip.held = {}
        try:
            yield
        finally:
            self.clip.held = None

    def _check_input(self, latents: torch.Tensor, condition: torch.Tensor) -> None:
        channels = self.config.in_channels
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[2] == 0:
            raise ModelError(f"expected latents of shape (B, {channels}, F, H, W), found {tuple(latents.shape)}")
        width = self.config.cross_attention_dim
        is_width = not isinstance(width, int) or condition.shape[-1] == width
        if condition.ndim != 3 or len(condition) != len(latents) or not is_width:
            raise ModelError(
                f"expected a condition of shape ({len(latents)}, L, {width}), found {tuple(condition.shape)}; "
                "the encoder's condition_width must be the UNet's cross_attention_dim"
            )

    def _inflate_transformers(self, inflate: str, has_positions: bool) -> None:
        for transformer in [module for module in self.modules() if isinstance(module, Transformer2DModel)]:
            settings = {name: transformer.config[name] for name in BLOCK_SETTINGS}
            transformer.norm.__class__ = FrameGroupNorm
            for position in range(len(transformer.transformer_blocks)):
                block = VideoTransformerBlock(transformer.inner_dim, self.clip, settings, has_positions)
                if inflate == "sparse_causal":
                    block.attn1.set_processor(SparseCausalAttention(self.clip))
                block.attn2.set_processor(ClipCrossAttention(self.clip))
                transformer.transformer_blocks[position] = block

    def _inflate_norms(self) -> None:
        for resnet in [module for module in self.modules() if isinstance(module, ResnetBlock2D)]:
            resnet.norm1 = ClipGroupNorm(resnet.norm1, self.clip)
            resnet.norm2 = ClipGroupNorm(resnet.norm2, self.clip)
        self.conv_norm_out = ClipGroupNorm(self.conv_norm_out, self.clip)
