"""The losses of the kit's autoencoder and of the parts that see and speak: one small task each for the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import (
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from mindvideo.config import Optimise
from mindvideo.foundation.pool import VISIBLE, Pool, to_pixels
from mindvideo.simulate.scenes import MOTIONS, Scene
from mindvideo.train.loop import named_trainable


class VaeTask:
    """Autoencoder on 32 x 32 crops, whole frames in the last part of the steps."""

    def __init__(self, vae: AutoencoderKL, pool: Pool, settings: Optimise) -> None:
        self.vae, self.pool, self.settings = vae, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.vae)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Squared and absolute error with a slight pull of the latents to a standard normal."""
        whole = step >= 0.85 * self.settings.steps
        count = self.settings.batch_size // (4 if whole else 1)
        pixels = self.pool.image_batch(rng.integers(len(self.pool.scenes), size=count), rng)
        if not whole:
            y, x = rng.integers(0, pixels.shape[-1] - 31, size=2)
            pixels = pixels[..., y : y + 32, x : x + 32]
        posterior = self.vae.encode(pixels).latent_dist
        output = self.vae.decode(posterior.sample()).sample.float()
        squared = F.mse_loss(output, pixels)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = squared + 0.1 * F.l1_loss(output, pixels) + 1e-4 * kl
        return loss, {"psnr": float(10 * torch.log10(4 / squared.detach()))}


class VaeDecoderTask:
    """The autoencoder's decoder alone, from latents made once: they, and whatever was trained on them, stay as they are."""

    def __init__(self, vae: AutoencoderKL, latents: torch.Tensor, moments: tuple[int, ...], pool: Pool,
                 settings: Optimise) -> None:  # fmt: skip
        """``latents`` (clips * moments, c, h, w) are scaled, the moments of a clip next to one another."""
        self.vae, self.latents, self.moments = vae, latents, moments
        self.pool, self.settings = pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """The decoder's."""
        return named_trainable(self.vae, ("decoder", "post_quant_conv"))

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Minus the pictures' mean peak signal-to-noise ratio, in units of 4.3 dB: busy pictures do not drown the rest."""
        index = np.sort(rng.integers(len(self.latents), size=self.settings.batch_size))
        frames = [self.pool.frames[i // len(self.moments), self.moments[i % len(self.moments)]] for i in index]
        latents = self.latents[index].float() / self.vae.config.scaling_factor
        output = self.vae.decode(latents).sample.float()
        error = (output - to_pixels(np.stack(frames))).square().flatten(1).mean(1).log()
        return error.mean(), {"psnr": float((10 / np.log(10)) * (np.log(4) - error.detach().mean()))}


def tokenize(tokenizer: Any, captions: list[str], padding: str = "max_length") -> torch.Tensor:
    """(B, L) token numbers, padded to the tokenizer's length or to the longest caption."""
    return tokenizer(
        captions, padding=padding, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one visible word changed: its thing, colour, place, size or light."""
    name = str(rng.choice(list(VISIBLE)))
    others = [value for value in VISIBLE[name] if value != getattr(scene, name)]
    return Scene(**{**vars(scene), name: str(rng.choice(others))})


def contrast(logits: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Symmetric cross-entropy of B pictures or films and (1 + K) B captions, and the share of pictures told right.

    Parameters
    ----------
    logits : Tensor, (B, (1 + K) B)
        Of the B captions, then of K near misses of the first, K of the second, …; a near miss counts for its own only.
    """
    count = len(logits)
    misses = logits.shape[1] // count - 1
    own = torch.arange(count)
    belongs = own[:, None] == torch.arange(count * misses)[None] // max(1, misses)
    to_text = torch.cat([logits[:, :count], logits[:, count:].masked_fill(~belongs, -1e4)], 1)
    loss = (F.cross_entropy(to_text, own) + F.cross_entropy(logits[:, :count].T, own)) / 2
    return loss, float((to_text.argmax(1) == own).float().mean())


class ClipTask:
    """Contrastive image and text towers; every image also meets captions that differ from its own in one word.

    With ``image_only`` the text tower stays as it is but for its projection: its tokens, and a generator trained on
    them, do not change. The image tower's patches then learn what is at them (:func:`dense_loss`).
    """

    def __init__(self, text: CLIPTextModelWithProjection, image: CLIPVisionModelWithProjection, tokenizer: Any, pool: Pool,
                 settings: Optimise, image_only: bool = False) -> None:  # fmt: skip
        self.text, self.image, self.tokenizer, self.pool, self.settings = text, image, tokenizer, pool, settings
        self.image_only = image_only
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        width, hidden = image.config.projection_dim, image.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in VISIBLE.items()})
        self.patch_heads = nn.ModuleDict(
            {name: nn.Linear(hidden, len(VISIBLE[name]) + 1) for name in ("thing", "colour")}
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns of the towers, the scale and the auxiliary heads, which are thrown away."""
        parts = nn.ModuleDict({"image": self.image, "heads": self.heads})
        if not self.image_only:
            return {
                **named_trainable(parts),
                **named_trainable(nn.ModuleDict({"text": self.text})),
                "scale": self.scale,
            }
        parts["patch_heads"] = self.patch_heads
        text = named_trainable(self.text, ("text_projection",))
        return {
            **named_trainable(parts),
            **{f"text.{name}": value for name, value in text.items()},
            "scale": self.scale,
        }

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Contrastive loss with two near misses an image, and attributes from the image embedding and its patches."""
        index = rng.integers(len(self.pool.scenes), size=self.settings.batch_size)
        scenes = [self.pool.scenes[i] for i in index]
        captions = [scene.caption(rng) for scene in scenes]
        wrong = [near_miss(scene, rng).caption(rng) for scene in scenes for _ in range(2)]
        pixels, cover = self.pool.image_batch_with_cover(index, rng)
        output = self.image(pixels)
        images = output.image_embeds.float()
        texts = self.text(tokenize(self.tokenizer, captions + wrong, "longest")).text_embeds.float()
        scale = self.scale.exp().clamp(max=100.0)
        contrastive, accuracy = contrast(scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T)
        target = {name: torch.from_numpy(self.pool.labels[name][index]) for name in self.heads}
        each = [F.cross_entropy(head(images).float(), target[name]) for name, head in self.heads.items()]
        extra = torch.stack(each).sum()
        if self.image_only:
            patches = output.last_hidden_state[:, 1:]
            at = patch_cover(cover, int(patches.shape[1] ** 0.5))
            extra = extra + sum(
                dense_loss(head(patches).float(), target[name], at) for name, head in self.patch_heads.items()
            )
        return contrastive + 0.2 * extra, {"contrastive": float(contrastive.detach()), "accuracy": accuracy}


def marginal_losses(logits: torch.Tensor, target: torch.Tensor, n_second: int) -> torch.Tensor:
    """Cross-entropy of both attributes of classes (first x second) from the joint logits (B, n_first * n_second)."""
    table = logits.unflatten(1, (-1, n_second))
    first = F.cross_entropy(table.logsumexp(2), target // n_second)
    return first + F.cross_entropy(table.logsumexp(1), target % n_second)


def dense_loss(logits: torch.Tensor, label: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of what is at every patch: the clip's label where its thing covers the patch, else nothing.

    Token labels (Jiang et al. 2021) teach a small transformer shapes many times faster than one label a picture.

    Parameters
    ----------
    logits : Tensor, (B, P, n + 1)
        The last class is "nothing".
    label : Tensor of int64, (B,)
    cover : Tensor, (B, P)
        Share of the patch that the thing covers, 0..1; patches weigh ``cover + 0.05``.
    """
    logs = logits.log_softmax(-1)
    own = logs.gather(2, label[:, None, None].expand(-1, logs.shape[1], 1)).squeeze(2)
    entropy = -(cover * own + (1 - cover) * logs[..., -1])
    weight = cover + 0.05
    return (weight * entropy).sum() / weight.sum()


def patch_cover(cover: torch.Tensor, grid: int) -> torch.Tensor:
    """Cover (B, 16, 16) of a coarser grid of patches, row by row: (B, grid * grid)."""
    return F.adaptive_avg_pool2d(cover.unsqueeze(1), grid).flatten(1)


def _shift(tensor: torch.Tensor, axis: int, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor moved along an axis, its edge repeated, and which places (n,) hold what was inside before."""
    source = torch.arange(tensor.shape[axis]) - by
    inside = source.clamp(0, tensor.shape[axis] - 1)
    return tensor.index_select(axis, inside), source == inside


def move(pixels: torch.Tensor, cover: torch.Tensor, down: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures or clips (..., H, W), and what things cover of them (..., h, w), moved by whole cells of the cover.

    What comes in from outside the picture repeats its edge and is covered by nothing.
    """
    cell = pixels.shape[-1] // cover.shape[-1]
    pixels = _shift(_shift(pixels, -2, cell * down)[0], -1, cell * right)[0]
    cover, is_row = _shift(cover, -2, down)
    cover, is_column = _shift(cover, -1, right)
    return pixels, cover * is_row[:, None] * is_column


class ClassifierTask:
    """Image or video classifier over pairs of attributes: cross-entropy of the pair, of each attribute, of every patch.

    Batches are mirrored, moved, brightened or darkened and made noisy by chance.
    """

    FARTHEST, LIGHT, NOISE = 2, 0.15, 0.05

    def __init__(self, model: Any, pool: Pool, first: str, second: str, settings: Optimise, is_video: bool) -> None:
        self.model = model
        self.pool, self.settings, self.is_video = pool, settings, is_video
        counts = [len((VISIBLE | {"motion": MOTIONS})[name]) for name in (first, second)]
        self.n_second = counts[1]
        self.each = [torch.from_numpy(pool.labels[name]) for name in (first, second)]
        self.mirrored = torch.arange(self.n_second)  # the second attribute in a mirror
        if second == "motion":
            left, right = MOTIONS.index("left"), MOTIONS.index("right")
            self.mirrored[[left, right]] = torch.tensor([right, left])
        self.heads = nn.ModuleList([nn.Linear(model.config.hidden_size, count + 1) for count in counts])

    def parameters(self) -> dict[str, nn.Parameter]:
        """The model and the heads of its patches, which are thrown away."""
        return named_trainable(nn.ModuleDict({"model": self.model, "heads": self.heads}))

    def _see(self, index: np.ndarray, flip: bool, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) or clips (B, F, 3, H, W) and their cover (B, 16, 16) or (B, F, 16, 16)."""
        if self.is_video:
            pixels, cover = self.pool.clip_batch(index), torch.from_numpy(self.pool.cover[index]).float() / 255
        else:
            pixels, cover = self.pool.image_batch_with_cover(index, rng)
        if flip:
            pixels, cover = pixels.flip(-1), cover.flip(-1)
        down, right = rng.integers(-self.FARTHEST, self.FARTHEST + 1, size=2)
        pixels, cover = move(pixels, cover, int(down), int(right))
        gain = 1 + self.LIGHT * (2 * torch.rand(len(pixels), *[1] * (pixels.ndim - 1)) - 1)
        return ((pixels + 1) * gain - 1).clamp(-1, 1) + self.NOISE * torch.randn_like(pixels), cover

    def _forward(
        self, index: np.ndarray, flip: bool, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (B, classes), patch tokens (B, P, D) and their cover (B, P), of mirrored pictures where asked for."""
        grid = self.model.config.image_size // self.model.config.patch_size
        pixels, cover = self._see(index, flip, rng)
        if not self.is_video:
            tokens = self.model.vit(pixels).last_hidden_state
            return self.model.classifier(tokens[:, 0]), tokens[:, 1:], patch_cover(cover, grid)
        tokens = self.model.videomae(pixels).last_hidden_state
        pairs = cover.unflatten(1, (-1, self.model.config.tubelet_size)).mean(2)
        covers = patch_cover(pairs.flatten(0, 1), grid).unflatten(0, pairs.shape[:2]).flatten(1)
        return self.model.classifier(self.model.fc_norm(tokens.mean(1))), tokens, covers

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy over the classes, over the values of either attribute, and at every patch."""
        index = rng.integers(len(self.pool.scenes), size=self.settings.batch_size)
        flip = bool(rng.random() < 0.5)
        logits, tokens, cover = self._forward(index, flip, rng)
        each = [labels[index] for labels in self.each]
        if flip:
            each[1] = self.mirrored[each[1]]
        logits, target = logits.float(), each[0] * self.n_second + each[1]
        loss = F.cross_entropy(logits, target) + marginal_losses(logits, target, self.n_second)
        dense = sum(
            dense_loss(head(tokens).float(), label, cover) for head, label in zip(self.heads, each, strict=True)
        )
        first, second = logits.argmax(1) // self.n_second, logits.argmax(1) % self.n_second
        figures = {"accuracy": logits.argmax(1) == target, "first": first == each[0],
                   "second": second == each[1]}  # fmt: skip
        return loss + dense, {name: float(right.float().mean()) for name, right in figures.items()}


def start_from_images(video: VideoMAEForVideoClassification, image: ViTForImageClassification) -> None:
    """Give the video classifier the image classifier's blocks; a tubelet begins as the mean of its two frames."""
    given, taken = image.vit.state_dict(), video.videomae.state_dict()
    weight = given["embeddings.patch_embeddings.projection.weight"]
    tubelet = taken["embeddings.patch_embeddings.projection.weight"].shape[2]
    changes = {
        "embeddings.patch_embeddings.projection.weight": weight.unsqueeze(2).repeat(1, 1, tubelet, 1, 1) / tubelet,
        "embeddings.patch_embeddings.projection.bias": given["embeddings.patch_embeddings.projection.bias"],
    }
    names = {
        "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "layernorm_before": "layernorm_before", "layernorm_after": "layernorm_after",
    }  # fmt: skip
    for layer in range(image.config.num_hidden_layers):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                target = f"encoder.layer.{layer}.{theirs}.{kind}"
                if target in taken:
                    changes[target] = given[f"layers.{layer}.{ours}.{kind}"]
    with torch.no_grad():
        for name, tensor in changes.items():
            taken[name].copy_(tensor)


def start_clip_from_images(vision: CLIPVisionModelWithProjection, image: ViTForImageClassification) -> None:
    """Give CLIP's image tower the image classifier's patch embedding, positions and blocks; its own norms stay."""
    given, taken = image.vit.state_dict(), vision.vision_model.state_dict()
    changes = {
        "embeddings.class_embedding": given["embeddings.cls_token"].flatten(),
        "embeddings.patch_embedding.weight": given["embeddings.patch_embeddings.projection.weight"],
        "embeddings.position_embedding.weight": given["embeddings.position_embeddings"].squeeze(0).clone(),
        "post_layernorm.weight": given["layernorm.weight"],
        "post_layernorm.bias": given["layernorm.bias"],
    }
    bias = given["embeddings.patch_embeddings.projection.bias"]  # CLIP's patch embedding has none: positions take it
    changes["embeddings.position_embedding.weight"][1:] += bias
    names = {
        "self_attn.q_proj": "attention.q_proj", "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj", "self_attn.out_proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "layer_norm1": "layernorm_before", "layer_norm2": "layernorm_after",
    }  # fmt: skip
    for layer in range(image.config.num_hidden_layers):
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                changes[f"encoder.layers.{layer}.{theirs}.{kind}"] = given[f"layers.{layer}.{ours}.{kind}"]
    with torch.no_grad():
        for name, tensor in changes.items():
            taken[name].copy_(tensor)


def start_blip_from_images(blip: BlipForConditionalGeneration, image: ViTForImageClassification) -> None:
    """Give BLIP's vision tower the whole of the image classifier's: the same picture, the same tokens."""
    given, taken = image.vit.state_dict(), blip.vision_model.state_dict()
    changes = {
        "embeddings.class_embedding": given["embeddings.cls_token"],
        "embeddings.patch_embedding.weight": given["embeddings.patch_embeddings.projection.weight"],
        "embeddings.patch_embedding.bias": given["embeddings.patch_embeddings.projection.bias"],
        "embeddings.position_embedding": given["embeddings.position_embeddings"],
        "post_layernorm.weight": given["layernorm.weight"],
        "post_layernorm.bias": given["layernorm.bias"],
    }
    names = {
        "self_attn.projection": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "layer_norm1": "layernorm_before", "layer_norm2": "layernorm_after",
    }  # fmt: skip
    for layer in range(image.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            triple = [given[f"layers.{layer}.attention.{part}_proj.{kind}"] for part in "qkv"]
            changes[f"encoder.layers.{layer}.self_attn.qkv.{kind}"] = torch.cat(triple)
            for theirs, ours in names.items():
                changes[f"encoder.layers.{layer}.{theirs}.{kind}"] = given[f"layers.{layer}.{ours}.{kind}"]
    with torch.no_grad():
        for name, tensor in changes.items():
            taken[name].copy_(tensor)


class CaptionerTask:
    """BLIP's language-modelling loss on one frame, moved by chance, and its caption."""

    def __init__(self, model: BlipForConditionalGeneration, tokenizer: Any, pool: Pool, settings: Optimise) -> None:
        self.model, self.tokenizer, self.pool, self.settings = model, tokenizer, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.model)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of the next word."""
        index = rng.integers(len(self.pool.scenes), size=self.settings.batch_size)
        tokens = caption_tokens(self.tokenizer, [self.pool.scenes[i].caption() for i in index])
        down, right = rng.integers(-1, 2, size=2)
        pixels, _ = move(*self.pool.image_batch_with_cover(index, rng), int(down), int(right))
        output = self.model(pixel_values=pixels, input_ids=tokens["input_ids"],
                            attention_mask=tokens["attention_mask"], labels=tokens["labels"])  # fmt: skip
        return output.loss.float(), {}


def caption_tokens(tokenizer: Any, captions: list[str]) -> dict[str, torch.Tensor]:
    """BLIP's decoder input: [DEC] word … [SEP], and labels that ignore the padding."""
    start, stop = tokenizer.convert_tokens_to_ids("[DEC]"), tokenizer.sep_token_id
    rows = [[start, *tokenizer.encode(caption, add_special_tokens=False), stop] for caption in captions]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
