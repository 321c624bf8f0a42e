"""Stable Diffusion's UNet on one clip, frame by frame and head by head, from its weights and docs/method.md, The generator.

Only convolution, matrix product and pointwise functions are torch's; nothing is shared with the package.
"""

import math

import torch
import torch.nn.functional as F


class PlainUNet:
    """The network as functions of (a model or its weights by name, configuration)."""

    def __init__(self, model, config):
        weights = model if isinstance(model, dict) else model.state_dict()
        self.weights = {name: weight.detach().double() for name, weight in weights.items()}
        self.config = config

    def has(self, name):
        return any(key.startswith(f"{name}.") for key in self.weights)

    def linear(self, x, name):
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def conv(self, x, name, stride=1):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x[None], weight, self.weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)[0]

    def layer_norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def group_norm(self, frames, name, eps):
        """Statistics over all frames given: a list of (C, H, W)."""
        channels = frames[0].shape[0]
        size = channels // self.config.norm_num_groups
        out = [torch.empty_like(frame) for frame in frames]
        for start in range(0, channels, size):
            group = slice(start, start + size)
            values = torch.cat([frame[group].reshape(-1) for frame in frames])
            mean, variance = values.mean(), values.var(unbiased=False)
            for before, after in zip(frames, out, strict=True):
                after[group] = (before[group] - mean) / (variance + eps).sqrt()
        weight, bias = (self.weights[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return [frame * weight + bias for frame in out]

    def attend(self, name, query_tokens, key_tokens, heads):
        """Explicit softmax attention of (N, C) over (M, K)."""
        query, key, value = (
            self.linear(tokens, f"{name}.to_{kind}")
            for tokens, kind in ((query_tokens, "q"), (key_tokens, "k"), (key_tokens, "v"))
        )
        width = query.shape[1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(width)
            rows = torch.exp(scores - scores.amax(1, keepdim=True))
            mixed.append(rows / rows.sum(1, keepdim=True) @ value[:, part])
        return self.linear(torch.cat(mixed, 1), f"{name}.to_out.0")

    def block(self, frames, condition, name, heads):
        """A transformer block on a list of (N, C)."""
        normed = [self.layer_norm(x, f"{name}.norm1") for x in frames]
        read = [torch.cat([normed[max(i - 2, 0)], normed[max(i - 1, 0)]]) for i in range(len(frames))]
        frames = [x + self.attend(f"{name}.attn1", n, r, heads) for x, n, r in zip(frames, normed, read, strict=True)]
        frames = [
            x + self.attend(f"{name}.attn2", self.layer_norm(x, f"{name}.norm2"), condition, heads) for x in frames
        ]
        fed = []
        for x in frames:
            inner, gate = self.linear(self.layer_norm(x, f"{name}.norm3"), f"{name}.ff.net.0.proj").chunk(2, dim=1)
            gelu = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
            fed.append(x + self.linear(inner * gelu, f"{name}.ff.net.2"))
        out = torch.stack(fed)  # (F, N, C)
        for pixel in range(out.shape[1]):
            over_time = self.layer_norm(out[:, pixel].clone(), f"{name}.norm_temp")
            if self.config.frame_positions:
                over_time = over_time + self.frame_positions(*over_time.shape)
            out[:, pixel] += self.attend(f"{name}.attn_temp", over_time, over_time, heads)
        return list(out)

    def frame_positions(self, frames, width):
        """A sine and a cosine of every frame's number for each wavelength, from 4 to 128 frames."""
        half = math.ceil(width / 2)
        position = torch.zeros(frames, 2 * half)
        for frame in range(frames):
            for k in range(half):
                angle = 2 * math.pi * frame / (4 * 32 ** (k / (half - 1)))
                position[frame, k], position[frame, half + k] = math.sin(angle), math.cos(angle)
        return position[:, :width]

    def transformer(self, frames, condition, name, heads):
        channels, height, width = frames[0].shape
        is_linear = self.weights[f"{name}.proj_in.weight"].ndim == 2
        tokens = []
        for frame in frames:
            [normed] = self.group_norm([frame], f"{name}.norm", 1e-6)
            normed = normed if is_linear else self.conv(normed, f"{name}.proj_in")
            flat = normed.reshape(channels, -1).T
            tokens.append(self.linear(flat, f"{name}.proj_in") if is_linear else flat)
        layer = 0
        while self.has(f"{name}.transformer_blocks.{layer}"):
            tokens = self.block(tokens, condition, f"{name}.transformer_blocks.{layer}", heads)
            layer += 1
        out = []
        for frame, flat in zip(frames, tokens, strict=True):
            flat = self.linear(flat, f"{name}.proj_out") if is_linear else flat
            image = flat.T.reshape(channels, height, width)
            out.append(frame + (image if is_linear else self.conv(image, f"{name}.proj_out")))
        return out

    def resnet(self, frames, time, name):
        eps = self.config.norm_eps
        inner = [self.conv(F.silu(x), f"{name}.conv1") for x in self.group_norm(frames, f"{name}.norm1", eps)]
        shifts = [self.linear(F.silu(moment), f"{name}.time_emb_proj")[:, None, None] for moment in time]
        inner = self.group_norm([x + y for x, y in zip(inner, shifts, strict=True)], f"{name}.norm2", eps)
        inner = [self.conv(F.silu(x), f"{name}.conv2") for x in inner]
        skip = [self.conv(x, f"{name}.conv_shortcut") for x in frames] if self.has(f"{name}.conv_shortcut") else frames
        return [a + b for a, b in zip(skip, inner, strict=True)]

    def time(self, timestep, frames):
        """One embedding a frame."""
        count = self.config.block_out_channels[0]
        angle = [timestep * math.exp(-math.log(10000) * i / (count // 2)) for i in range(count // 2)]
        embedded = torch.tensor([math.cos(a) for a in angle] + [math.sin(a) for a in angle], dtype=torch.float64)
        whole = self.linear(F.silu(self.linear(embedded, "time_embedding.linear_1")), "time_embedding.linear_2")
        if not self.config.frame_positions:
            return [whole] * frames
        return [whole + self.linear(row.double(), "frame_embedding") for row in self.frame_positions(frames, 32)]

    def heads(self, level):
        """``attention_head_dim`` is the number of heads, for all levels or one by one."""
        number = self.config.attention_head_dim
        return number if isinstance(number, int) else number[level]

    def __call__(self, latents, timestep, condition):
        """One clip: latents (C, F, H, W), timestep, condition (L, K) to (C, F, H, W), float64."""
        latents, condition = latents.double(), condition.double()
        time = self.time(float(timestep), latents.shape[1])
        levels = len(self.config.block_out_channels)
        frames = [self.conv(latents[:, i], "conv_in") for i in range(latents.shape[1])]
        skips = [frames]
        for level in range(levels):
            name, layer = f"down_blocks.{level}", 0
            while self.has(f"{name}.resnets.{layer}"):
                frames = self.resnet(frames, time, f"{name}.resnets.{layer}")
                if self.has(f"{name}.attentions.{layer}"):
                    frames = self.transformer(frames, condition, f"{name}.attentions.{layer}", self.heads(level))
                skips.append(frames)
                layer += 1
            if self.has(f"{name}.downsamplers.0"):
                frames = [self.conv(x, f"{name}.downsamplers.0.conv", stride=2) for x in frames]
                skips.append(frames)
        frames = self.resnet(frames, time, "mid_block.resnets.0")
        frames = self.transformer(frames, condition, "mid_block.attentions.0", self.heads(levels - 1))
        frames = self.resnet(frames, time, "mid_block.resnets.1")
        for up in range(levels):
            name, layer = f"up_blocks.{up}", 0
            while self.has(f"{name}.resnets.{layer}"):
                frames = [torch.cat(pair) for pair in zip(frames, skips.pop(), strict=True)]
                frames = self.resnet(frames, time, f"{name}.resnets.{layer}")
                if self.has(f"{name}.attentions.{layer}"):
                    heads = self.heads(levels - 1 - up)
                    frames = self.transformer(frames, condition, f"{name}.attentions.{layer}", heads)
                layer += 1
            if self.has(f"{name}.upsamplers.0"):
                doubled = [x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) for x in frames]
                frames = [self.conv(x, f"{name}.upsamplers.0.conv") for x in doubled]
        assert not skips
        normed = self.group_norm(frames, "conv_norm_out", self.config.norm_eps)
        return torch.stack([self.conv(F.silu(x), "conv_out") for x in normed], dim=1)
