"""A masked autoencoder over patches of fMRI (docs/method.md, The masked brain model, paper section 3.3).

Weights carry the names of the released checkpoints.

Shapes: B batch, V voxels, P patches, K visible patches, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from mindvideo.errors import ModelError
from mindvideo.models.loading import WholeModel
from mindvideo.models.transformer import (
    Block,
    PatchEmbed,
    PatchWeights,
    PerPatchLinear,
    check_fmri,
    check_scale,
    count_patches,
    initialise,
    interpolate_positions,
    position_table,
    run_blocks,
    split_patches,
)


@dataclass
class MaskedBrainOutput(BaseOutput):
    """What the masked brain model returns.

    Attributes
    ----------
    loss : Tensor, ()
        Mean squared error of the masked patches' scaled values.
    sample_loss : Tensor, (B,)
        The same of every scan.
    prediction : Tensor, (B, P, patch)
        Of scaled values.
    is_masked : Tensor of bool, (B, P)
    """

    loss: torch.Tensor
    sample_loss: torch.Tensor
    prediction: torch.Tensor
    is_masked: torch.Tensor


class MaskedBrainModel(WholeModel):
    """Masked autoencoder of one fMRI scan (SC-MBM).

    Parameters
    ----------
    num_voxels : int
        V; a last partial patch is wrapped around.
    patch_size : int
        Neighbouring voxels in a patch.
    patch_weights : {"shared", "per_patch"}
        One matrix for all patches, as released, or one each.
    embed_dim, depth, num_heads, mlp_ratio
        The encoder.
    decoder_embed_dim, decoder_depth, decoder_num_heads
        The decoder, with the same ``mlp_ratio``.
    mask_ratio : float
        Share of the patches that is masked; ``int(P * (1 - mask_ratio))`` stay visible.
    input_mean, input_scale : float
        Scans enter and are predicted as (fmri - input_mean) / input_scale; 0 and 1 if released.
        ModelError for a scale that is not positive.

    Notes
    -----
    ``pos_embed`` and ``decoder_pos_embed`` are fixed buffers.

    References
    ----------
    Chen, Qing, Zhou, Cinematic Mindscapes, 2023, section 3.3; He et al., Masked autoencoders are
    scalable vision learners, 2022.
    """

    _supports_gradient_checkpointing = True

    fewest_visible = 0
    """Patches that stay visible whatever the ratio."""

    @register_to_config
    def __init__(
        self,
        num_voxels: int,
        patch_size: int = 16,
        patch_weights: PatchWeights = "shared",
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 1.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_scale(input_scale)
        num_patches = count_patches(num_voxels, patch_size)
        self.build_trunk(num_patches, PatchEmbed(num_patches, patch_size, embed_dim, patch_weights))

    def build_trunk(self, num_tokens: int, embedding: nn.Module) -> None:
        """Make encoder and decoder by the configuration, for P tokens a scan."""
        config = self.config
        width, ratio = config.decoder_embed_dim, config.mlp_ratio
        self.num_patches = num_tokens
        self.gradient_checkpointing = False
        self.patch_embed = embedding
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.register_buffer("pos_embed", position_table(num_tokens, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config.embed_dim, config.num_heads, ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-5)
        self.decoder_embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", position_table(num_tokens, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads, ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-5)
        self.decoder_pred = self.new_prediction(num_tokens)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def new_prediction(self, num_tokens: int) -> nn.Module:
        """From the decoder's tokens to the values of their patches."""
        width, patch = self.config.decoder_embed_dim, self.config.patch_size
        is_shared = self.config.patch_weights == "shared"
        return nn.Linear(width, patch) if is_shared else PerPatchLinear(num_tokens, width, patch)

    @classmethod
    def from_other_voxels(
        cls,
        model: MaskedBrainModel,
        num_voxels: int,
        positions: Literal["recompute", "interpolate"] = "recompute",
        **scale: float,
    ) -> MaskedBrainModel:
        """A copy for another number of voxels, with new sin-cos ``positions`` or its own stretched.

        It has all weights, but for matrices of single patches when the number of patches differs;
        ``input_mean`` and ``input_scale`` may be given.
        """
        other = cls.from_config(model.config, num_voxels=num_voxels, **scale)
        weights = model.state_dict()
        fresh = other.state_dict()
        for name in ("pos_embed", "decoder_pos_embed"):
            interpolated = interpolate_positions(weights[name], other.num_patches)
            weights[name] = interpolated if positions == "interpolate" else fresh[name]
        if model.config.patch_weights == "per_patch" and other.num_patches != model.num_patches:
            own = ("patch_embed.proj.", "decoder_pred.")
            weights |= {name: weight for name, weight in fresh.items() if name.startswith(own)}
        other.load_state_dict(weights)
        nn.Module.to(other, device=model.device, dtype=model.dtype)
        return other

    def forward(
        self,
        fmri: torch.Tensor,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
        person: torch.Tensor | None = None,
    ) -> MaskedBrainOutput:
        """Mask, encode the visible patches, decode all, and score the masked ones.

        Parameters
        ----------
        fmri : Tensor, (B, V), float32
        noise : Tensor, (B, P), optional
            The patches of least noise stay visible; uniform from ``generator`` if not given.
        generator : torch.Generator, optional
        mask_ratio : float, optional
            Instead of the model's own.
        person : Tensor, (B,), int64, optional
            Person of each scan, in a model of several.

        Raises
        ------
        ModelError
            For another number of voxels, misshapen noise, or an impossible ratio.
        """
        tokens = self.embed(fmri, person)
        if noise is None:
            device = generator.device if generator is not None else fmri.device
            noise = torch.rand(tokens.shape[:2], generator=generator, device=device)
        kept, restore, is_masked = self._choose_patches(noise.to(fmri.device), tokens.shape[:2], mask_ratio)
        is_masked = is_masked & self.counted(person, len(fmri))
        hidden = self._decode(self._encode_visible(tokens, kept), restore)
        prediction = self.predict(hidden, person).float()
        error = self.errors(prediction, self.patches(fmri), person)
        each = (error * is_masked).sum(dim=1) / is_masked.sum(dim=1).clamp(min=1)
        return MaskedBrainOutput(loss=each.mean(), sample_loss=each, prediction=prediction, is_masked=is_masked)

    def predict(self, hidden: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Predicted `patches`, from the decoder's tokens (B, P, decoder width)."""
        return self.decoder_pred(hidden)

    def errors(
        self, prediction: torch.Tensor, target: torch.Tensor, person: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean squared error over each token's voxels (B, P), of `patches`."""
        return (prediction - target.float()).square().mean(dim=-1)

    def counted(self, person: torch.Tensor | None, count: int) -> torch.Tensor | bool:
        """Which tokens have voxels, bool (B, P): all of them."""
        return True

    def patches(self, fmri: torch.Tensor) -> torch.Tensor:
        """Scaled scans (B, V) in patches (B, P, patch), as they enter and are predicted."""
        return split_patches((fmri - self.config.input_mean) / self.config.input_scale, self.config.patch_size)

    def encode(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, P, D) of unmasked scans (B, V) without class token, as in the fMRI encoder."""
        return self.norm(run_blocks(self, self.blocks, self.embed(fmri, person)))

    def embed(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """All patches with their positions: (B, V) to (B, P, D)."""
        check_fmri(fmri, (None, self.config.num_voxels), "BV", type(self).__name__)
        return self.patch_embed(self.patches(fmri)) + self.pos_embed[:, 1:]

    def _choose_patches(
        self, noise: torch.Tensor, shape: torch.Size, mask_ratio: float | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices of the visible patches (B, K), the inverse order (B, P), and the mask (B, P)."""
        if noise.shape != shape:
            raise ModelError(f"expected noise of shape (B, P) = {tuple(shape)}, found {tuple(noise.shape)}")
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        num_kept = max(self.fewest_visible, int(self.num_patches * (1 - ratio)))
        if not 0 < num_kept < self.num_patches:
            raise ModelError(
                f"expected a mask ratio that leaves some of {self.num_patches} patches visible and some masked, "
                f"found {ratio} ({num_kept} visible); use smaller patches or another mask_ratio"
            )
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        return order[:, :num_kept], restore, restore >= num_kept

    def _encode_visible(self, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Encode the visible of the tokens (B, P, D): (B, 1 + K, D), class token first."""
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        class_token = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.norm(run_blocks(self, self.blocks, torch.cat([class_token, tokens], dim=1)))

    def _decode(self, tokens: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Decode the visible tokens (B, 1 + K, D) to all (B, P, decoder width)."""
        tokens = self.decoder_embed(tokens)
        batch, length, dim = tokens.shape
        num_masked = self.num_patches + 1 - length
        masked = self.mask_token.to(tokens.dtype).expand(batch, num_masked, -1)
        patches = torch.cat([tokens[:, 1:], masked], dim=1).gather(1, restore[..., None].expand(-1, -1, dim))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        return self.decoder_norm(run_blocks(self, self.decoder_blocks, tokens))[:, 1:]
