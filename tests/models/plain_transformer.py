"""Transformer parts written out plainly in float64 NumPy, from docs/method.md, The masked brain model: nothing is shared with the package."""

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


def embed_patches(scan, weights, patch_size, table=None):
    """A scan (V,) to embedded patches with positions (P, D): the fixed ones, or rows 1, 2, … of ``table``."""
    cut = patches(scan, patch_size)
    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    if bias.ndim == 2:
        embedded = np.stack([weight[p] @ cut[p] + bias[p] for p in range(len(cut))])
    else:
        embedded = np.stack([weight[:, 0] @ cut[p] + bias for p in range(len(cut))])
    table = positions(len(cut), embedded.shape[1]) if table is None else table
    return embedded + table[1:]


def encode_window(weights, config, window_fmri, table=None):
    """One window (W, V) to condition (L, C), spatial (depth, P) and temporal (depth, W, W) attention (section 5)."""
    scaled = (window_fmri - config.input_mean) / config.input_scale
    x = np.stack([embed_patches(scan, weights, config.patch_size, table) for scan in scaled])
    spatial, temporal = [], []
    for layer in range(config.depth):
        name = f"blocks.{layer}"
        normed, received = layer_norm(x, weights, f"{name}.norm1"), []
        for scan in range(config.window):
            mixed, rows = attention(normed[scan], weights, f"{name}.attn", config.num_heads)
            x[scan] += mixed
            received.append(rows.mean(axis=(0, 1)))
        spatial.append(np.mean(received, axis=0))
        if config.has_temporal_attention:
            normed, between = layer_norm(x, weights, f"{name}.norm_temp"), []
            for patch in range(x.shape[1]):
                mixed, rows = attention(normed[:, patch], weights, f"{name}.attn_temp", config.num_heads)
                x[:, patch] += mixed
                between.append(rows.mean(axis=0))
            temporal.append(np.mean(between, axis=0))
        x = x + mlp(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")
    side_by_side = np.concatenate(list(layer_norm(x, weights, "norm")))  # scan 0's patches, then scan 1's, ...
    mapped = weights["proj_head.channel_mapper.weight"] @ side_by_side
    projected = linear(mapped, weights, "proj_head.projection")
    condition = projected + linear(gelu(projected), weights, "proj_head.fc")
    if config.layer_norm:
        condition = layer_norm(condition, weights, "proj_head.layer_norm")
    return condition, np.array(spatial), np.array(temporal)


def predict_masked(weights, config, scan, noise, tables=(None, None)):
    """Of one scan: prediction (P, patch), mask (P,), squared errors of the masked patches (section 4)."""
    tokens = embed_patches(scan, weights, config.patch_size, tables[0])
    count = len(tokens)
    order = sorted(range(count), key=lambda p: noise[p])
    kept = order[: int(count * (1 - config.mask_ratio))]
    class_token = weights["cls_token"][0] + (0.0 if tables[0] is None else tables[0][:1])
    x = np.concatenate([class_token, tokens[kept]])
    for layer in range(config.depth):
        x = block(x, weights, f"blocks.{layer}", config.num_heads)
    x = linear(layer_norm(x, weights, "norm"), weights, "decoder_embed")
    full = np.repeat(weights["mask_token"][0], count + 1, axis=0)
    full[0] = x[0]
    for row, patch in enumerate(kept):
        full[patch + 1] = x[row + 1]
    full = full + (positions(count, config.decoder_embed_dim) if tables[1] is None else tables[1])
    for layer in range(config.decoder_depth):
        full = block(full, weights, f"decoder_blocks.{layer}", config.decoder_num_heads)
    full = layer_norm(full, weights, "decoder_norm")[1:]
    weight, bias = weights["decoder_pred.weight"], weights["decoder_pred.bias"]
    if config.patch_weights == "per_patch":
        prediction = np.stack([weight[p] @ full[p] + bias[p] for p in range(count)])
    else:
        prediction = full @ weight.T + bias
    is_masked = np.array([p not in kept for p in range(count)])
    return prediction, is_masked, ((prediction - patches(scan, config.patch_size)) ** 2)[is_masked]
