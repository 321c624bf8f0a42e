"""Transformer parts written out plainly in float64 NumPy, from METHOD section 4: nothing is shared with the package."""

import math

import numpy as np
from scipy.special import erf


def arrays(model):
    """Weights of a torch module by name, float64."""
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}


def layer_norm(x, weights, name):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def attention(x, weights, name, num_heads):
    """Tokens (N, D) to (N, D) and the softmax rows of each head (H, N, N)."""
    count, dim = x.shape
    width = dim // num_heads
    projected = linear(x, weights, f"{name}.qkv")
    query, key, value = projected[:, :dim], projected[:, dim : 2 * dim], projected[:, 2 * dim :]
    out = np.zeros((count, dim))
    rows = np.zeros((num_heads, count, count))
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(count):
            scores = np.array([query[i, part] @ key[j, part] for j in range(count)]) / math.sqrt(width)
            rows[head, i] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            out[i, part] = sum(rows[head, i, j] * value[j, part] for j in range(count))
    return linear(out, weights, f"{name}.proj"), rows


def mlp(x, weights, name):
    return linear(gelu(linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")


def block(x, weights, name, num_heads):
    x = x + attention(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn", num_heads)[0]
    return x + mlp(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")


def positions(num_patches, dim):
    """(P + 1, dim): a zero row, then sines and cosines of positions 0, 1, …"""
    table = np.zeros((num_patches + 1, dim))
    for position in range(num_patches):
        for i in range(dim // 2):
            angle = position / 10000 ** (2 * i / dim)
            table[position + 1, i] = math.sin(angle)
            table[position + 1, dim // 2 + i] = math.cos(angle)
    return table


def patches(scan, patch_size):
    """A scan (V,) to patches (P, patch), wrapped around where V is not divisible."""
    missing = -len(scan) % patch_size
    return np.pad(scan, (0, missing), mode="wrap").reshape(-1, patch_size)


def embed_patches(scan, weights, patch_size):
    """A scan (V,) to embedded patches with positions (P, D)."""
    cut = patches(scan, patch_size)
    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    if bias.ndim == 2:
        embedded = np.stack([weight[p] @ cut[p] + bias[p] for p in range(len(cut))])
    else:
        embedded = np.stack([weight[:, 0] @ cut[p] + bias for p in range(len(cut))])
    return embedded + positions(len(cut), embedded.shape[1])[1:]
