"""Patches, positions, attention and blocks (docs/method.md, The masked brain model).

Shapes: B batch, V voxels, P patches, D embedding, N tokens, H heads, E width of one head.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindvideo.errors import ModelError

PatchWeights = Literal["shared", "per_patch"]


def count_patches(num_voxels: int, patch_size: int) -> int:
    """Patches that ``num_voxels`` fill, the last one wrapped around if need be."""
    return -(-num_voxels // patch_size)


def split_patches(fmri: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Voxels (..., V) in patches (..., P, patch_size); the last one wraps around to the first."""
    num_voxels = fmri.shape[-1]
    num_patches = count_patches(num_voxels, patch_size)
    if num_patches * patch_size != num_voxels:
        wrapped = torch.arange(num_patches * patch_size, device=fmri.device) % num_voxels
        fmri = fmri[..., wrapped]
    return fmri.unflatten(-1, (num_patches, patch_size))


def sincos_position(num: int, dim: int) -> torch.Tensor:
    """Fixed 1-D positions, float32 (num, dim); ModelError for an odd width.

    First half sines, second half cosines of position · 10000^(-2i/dim).
    """
    if dim % 2:
        raise ModelError(
            f"expected an even embedding width for sin-cos positions, found {dim}; choose an even embed_dim"
        )
    frequency = 10000.0 ** (-2.0 * np.arange(dim // 2) / dim)
    angle = np.arange(num)[:, None] * frequency[None]
    return torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], axis=1), dtype=torch.float32)


def position_table(num_patches: int, dim: int) -> torch.Tensor:
    """Positions (1, P + 1, dim), float32; row 0 is the class token's and zero."""
    return torch.cat([torch.zeros(1, dim), sincos_position(num_patches, dim)])[None]


def interpolate_positions(positions: torch.Tensor, num_patches: int) -> torch.Tensor:
    """A table of positions (1, P + 1, D) stretched to other patches, nearest neighbour."""
    patches = F.interpolate(positions[:, 1:].transpose(1, 2), size=num_patches, mode="nearest").transpose(1, 2)
    return torch.cat([positions[:, :1], patches], dim=1)


class PerPatchLinear(nn.Module):
    """A matrix of its own for every patch: (B, P, in) to (B, P, out)."""

    def __init__(self, num_patches: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_patches, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_patches, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform in every matrix, zero bias."""
        bound = math.sqrt(6.0 / (self.weight.shape[1] + self.weight.shape[2]))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, P, in) to (B, P, out)."""
        by_patch = torch.bmm(tokens.transpose(0, 1), self.weight.transpose(1, 2))
        return by_patch.transpose(0, 1) + self.bias


class PatchEmbed(nn.Module):
    """Patches of raw values to embeddings, with one matrix for all (as released) or one each."""

    def __init__(self, num_patches: int, patch_size: int, embed_dim: int, patch_weights: PatchWeights) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj: nn.Conv1d | PerPatchLinear
        if patch_weights == "shared":
            self.proj = nn.Conv1d(1, embed_dim, kernel_size=patch_size, stride=patch_size)
        elif patch_weights == "per_patch":
            self.proj = PerPatchLinear(num_patches, patch_size, embed_dim)
        else:
            raise ModelError(f"expected patch_weights 'shared' or 'per_patch', found '{patch_weights}'")

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches (B, P, patch) to embeddings (B, P, D)."""
        if isinstance(self.proj, nn.Conv1d):  # stride = kernel: the convolution is a linear map of each patch
            return F.linear(patches, self.proj.weight[:, 0], self.proj.bias)
        return self.proj(patches)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention of (..., N, E) queries over (..., M, E) keys and values: (..., N, E).

    The fused kernel, except in bfloat16 on a CPU with few keys or in training, where it is slower.
    """
    n_keys, is_training = key.shape[-2], torch.is_grad_enabled() and query.requires_grad
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and n_keys <= (512 if is_training else 64):
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention over the second-last axis."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ModelError(
                f"expected an embedding width divisible by the number of heads, found {dim} and {num_heads} heads"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split_heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of tokens (B, N, D), each (B, H, N, E)."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to (B, N, D)."""
        query, key, value = self.split_heads(tokens)
        mixed = attend(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(tokens.shape))

    def mean_weights(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attention weights (N, N) of tokens (B, N, D), queries by keys, mean over heads and batch."""
        query, key, _ = self.split_heads(tokens)
        total = torch.zeros(tokens.shape[1], tokens.shape[1], device=tokens.device)
        for one_query, one_key in zip(query.float(), key.float(), strict=True):
            scores = one_query @ one_key.transpose(1, 2) / math.sqrt(one_query.shape[-1])
            total += scores.softmax(dim=-1).sum(dim=0)
        return total / (tokens.shape[0] * self.num_heads)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to (B, N, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


def run_blocks(model: Any, blocks: nn.ModuleList, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens after some of a model's blocks, whose activations are computed again where the model asks for it."""
    for block in blocks:
        if model.gradient_checkpointing and torch.is_grad_enabled():
            tokens = model._gradient_checkpointing_func(block, tokens)
        else:
            tokens = block(tokens)
    return tokens


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear maps and patch convolutions, zero biases; for ``Module.apply``."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_scale(input_scale: float) -> None:
    """Raise ModelError for a scale that scans cannot be divided by."""
    if not input_scale > 0:
        raise ModelError(f"expected a positive input_scale, found {input_scale}; fit it on the training windows")


def check_fmri(fmri: torch.Tensor, shape: tuple[int | None, ...], axes: str, name: str) -> None:
    """Raise ModelError unless ``fmri`` has the given shape (None: any length)."""
    if fmri.ndim != len(shape) or any(want not in (None, found) for want, found in zip(shape, fmri.shape, strict=True)):
        wanted = ", ".join(axis if want is None else f"{axis}={want}" for axis, want in zip(axes, shape, strict=True))
        raise ModelError(
            f"expected fMRI of shape ({wanted}) for this {name}, found {tuple(fmri.shape)}; "
            "give it the voxels and the window it was trained on"
        )
