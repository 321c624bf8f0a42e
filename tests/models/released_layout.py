"""Folders and checkpoints in the layouts others release (docs/method.md, What others publish), with random weights; names written out here."""

import json

import torch


def _tensors(shapes, seed, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _block(name, dim, hidden, attentions=("attn",), norms=("norm1", "norm2")):
    shapes = {f"{name}.{norm}.{kind}": (dim,) for norm in norms for kind in ("weight", "bias")}
    for attn in attentions:
        shapes |= {f"{name}.{attn}.qkv.weight": (3 * dim, dim), f"{name}.{attn}.qkv.bias": (3 * dim,)}
        shapes |= {f"{name}.{attn}.proj.weight": (dim, dim), f"{name}.{attn}.proj.bias": (dim,)}
    shapes |= {f"{name}.mlp.fc1.weight": (hidden, dim), f"{name}.mlp.fc1.bias": (hidden,)}
    return shapes | {f"{name}.mlp.fc2.weight": (dim, hidden), f"{name}.mlp.fc2.bias": (dim,)}


def _trunk(patches, patch, dim):
    shapes = {"patch_embed.proj.weight": (dim, 1, patch), "patch_embed.proj.bias": (dim,), "cls_token": (1, 1, dim)}
    return shapes | {"pos_embed": (1, patches + 1, dim), "norm.weight": (dim,), "norm.bias": (dim,)}


def encoder_weights(*, patches=6, patch=4, dim=12, depth=2, ratio=1.0, window=2, length=7, width=10, temporal=True,
                    layer_norm=False, seed=0):  # fmt: skip
    shapes = _trunk(patches, patch, dim) | {"mask_token": (1, 1, dim), "logit_scale": ()}
    for layer in range(depth):
        parts = dict(attentions=("attn", "attn_temp"), norms=("norm1", "norm_temp", "norm2")) if temporal else {}
        shapes |= _block(f"blocks.{layer}", dim, int(dim * ratio), **parts)
    shapes |= {"proj_head.channel_mapper.weight": (length, window * patches), "proj_head.fc.weight": (width, width)}
    shapes |= {"proj_head.projection.weight": (width, dim)}
    if layer_norm:
        shapes |= {"proj_head.layer_norm.weight": (width,), "proj_head.layer_norm.bias": (width,)}
    return _tensors(shapes, seed)


def masked_brain_weights(*, patches=13, patch=4, dim=12, depth=2, ratio=1.0, decoder=10, decoder_depth=2, seed=0):
    shapes = _trunk(patches, patch, dim)
    for layer in range(depth):
        shapes |= _block(f"blocks.{layer}", dim, int(dim * ratio))
    for layer in range(decoder_depth):
        shapes |= _block(f"decoder_blocks.{layer}", decoder, int(decoder * ratio))
    shapes |= {"decoder_embed.weight": (decoder, dim), "decoder_embed.bias": (decoder,), "mask_token": (1, 1, decoder)}
    shapes |= {"decoder_norm.weight": (decoder,), "decoder_norm.bias": (decoder,)}
    shapes |= {"decoder_pos_embed": (1, patches + 1, decoder)}
    return _tensors(shapes | {"decoder_pred.weight": (patch, decoder), "decoder_pred.bias": (patch,)}, seed)


# Stable Diffusion 1.5's topology at small width: four levels, two layers, eight heads, convolutional projections.
UNET = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=[16, 24, 32, 32],
    layers_per_block=2,
    attention_head_dim=8,
    cross_attention_dim=10,
    norm_num_groups=4,
    norm_eps=1e-05,
    down_block_types=["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    mid_block_type="UNetMidBlock3DCrossAttn",
    up_block_types=["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    act_fn="silu",
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
)


def _pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resnet(name, inner, outer, time):
    shapes = _pair(f"{name}.norm1", inner) | _pair(f"{name}.conv1", outer, inner, 3, 3)
    shapes |= _pair(f"{name}.time_emb_proj", outer, time) | _pair(f"{name}.norm2", outer)
    shapes |= _pair(f"{name}.conv2", outer, outer, 3, 3)
    return shapes | (_pair(f"{name}.conv_shortcut", outer, inner, 1, 1) if inner != outer else {})


def _transformer(name, dim, width, temporal):
    shapes = _pair(f"{name}.norm", dim) | _pair(f"{name}.proj_in", dim, dim, 1, 1)
    shapes |= _pair(f"{name}.proj_out", dim, dim, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attn, source in (("attn1", dim), ("attn2", width), *([("attn_temp", dim)] if temporal else [])):
        shapes |= {f"{block}.{attn}.to_q.weight": (dim, dim), f"{block}.{attn}.to_k.weight": (dim, source)}
        shapes |= {f"{block}.{attn}.to_v.weight": (dim, source)} | _pair(f"{block}.{attn}.to_out.0", dim, dim)
    for norm in ("norm1", "norm2", "norm3", *(["norm_temp"] if temporal else [])):
        shapes |= _pair(f"{block}.{norm}", dim)
    return shapes | _pair(f"{block}.ff.net.0.proj", 8 * dim, dim) | _pair(f"{block}.ff.net.2", dim, 4 * dim)


def unet_weights(temporal=True, seed=0):
    """Every weight of the topology above, walked through level by level."""
    widths, width, time = UNET["block_out_channels"], UNET["cross_attention_dim"], 4 * UNET["block_out_channels"][0]
    shapes = (
        _pair("conv_in", widths[0], 4, 3, 3) | _pair("conv_norm_out", widths[0]) | _pair("conv_out", 4, widths[0], 3, 3)
    )
    shapes |= _pair("time_embedding.linear_1", time, widths[0]) | _pair("time_embedding.linear_2", time, time)
    skips, current = [widths[0]], widths[0]
    for level, outer in enumerate(widths):
        for layer in range(2):
            shapes |= _resnet(f"down_blocks.{level}.resnets.{layer}", current, outer, time)
            if level < 3:
                shapes |= _transformer(f"down_blocks.{level}.attentions.{layer}", outer, width, temporal)
            current = outer
            skips.append(outer)
        if level < 3:
            shapes |= _pair(f"down_blocks.{level}.downsamplers.0.conv", outer, outer, 3, 3)
            skips.append(outer)
    for layer in range(2):
        shapes |= _resnet(f"mid_block.resnets.{layer}", current, current, time)
    shapes |= _transformer("mid_block.attentions.0", current, width, temporal)
    for up, outer in enumerate(reversed(widths)):
        for layer in range(3):
            shapes |= _resnet(f"up_blocks.{up}.resnets.{layer}", current + skips.pop(), outer, time)
            if up > 0:
                shapes |= _transformer(f"up_blocks.{up}.attentions.{layer}", outer, width, temporal)
            current = outer
        if up < 3:
            shapes |= _pair(f"up_blocks.{up}.upsamplers.0.conv", outer, outer, 3, 3)
    assert not skips
    return _tensors(shapes, seed, 0.15)


def save_part(folder, weights, config, file="diffusion_pytorch_model.bin"):
    folder.mkdir(parents=True)
    torch.save(weights, folder / file)
    (folder / "config.json").write_text(json.dumps(config))
