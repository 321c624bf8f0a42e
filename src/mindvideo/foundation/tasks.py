"""The losses of the kit's parts: one small task each for the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from mindvideo.config import Optimise
from mindvideo.foundation.pool import VISIBLE, Pool
from mindvideo.simulate.scenes import MOTIONS, Scene
from mindvideo.train.loop import named_trainable


class VaeTask:
    """Autoencoder on 32 x 32 crops, whole frames in the last fifth of the steps."""

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


class ClipTask:
    """Contrastive image and text towers; every image also meets captions that differ from its own in one word."""

    def __init__(self, text: CLIPTextModelWithProjection, image: CLIPVisionModelWithProjection, tokenizer: Any, pool: Pool,
                 settings: Optimise) -> None:  # fmt: skip
        self.text, self.image, self.tokenizer, self.pool, self.settings = text, image, tokenizer, pool, settings
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        width = image.config.projection_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in VISIBLE.items()})

    def parameters(self) -> dict[str, nn.Parameter]:
        """Both towers, the scale and the auxiliary heads, which are thrown away."""
        parts = nn.ModuleDict({"text": self.text, "image": self.image, "heads": self.heads})
        return {**named_trainable(parts), "scale": self.scale}

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Symmetric cross-entropy with two near misses an image, and attributes from the image embedding."""
        count = self.settings.batch_size
        index = rng.integers(len(self.pool.scenes), size=count)
        scenes = [self.pool.scenes[i] for i in index]
        captions = [scene.caption(rng) for scene in scenes]
        wrong = [near_miss(scene, rng).caption(rng) for scene in scenes for _ in range(2)]
        images = self.image(self.pool.image_batch(index, rng)).image_embeds.float()
        texts = self.text(tokenize(self.tokenizer, captions + wrong, "longest")).text_embeds.float()
        pictures, sentences = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        scale = self.scale.exp().clamp(max=100.0)
        logits = scale * pictures @ sentences.T
        own_miss = torch.full((count, 2 * count), -1e4)
        own = torch.arange(count)
        own_miss[own, 2 * own], own_miss[own, 2 * own + 1] = 0.0, 0.0
        to_text = torch.cat([logits[:, :count], logits[:, count:] + own_miss], 1)
        loss = (F.cross_entropy(to_text, own) + F.cross_entropy(logits[:, :count].T, own)) / 2
        extra = sum(
            F.cross_entropy(head(images).float(), torch.from_numpy(self.pool.labels[name][index]))
            for name, head in self.heads.items()
        )
        accuracy = float((to_text.argmax(1) == own).float().mean())
        return loss + 0.2 * extra, {"contrastive": float(loss.detach()), "accuracy": accuracy}


def marginal_losses(logits: torch.Tensor, target: torch.Tensor, n_second: int) -> torch.Tensor:
    """Cross-entropy of both attributes of classes (first x second) from the joint logits (B, n_first * n_second)."""
    table = logits.unflatten(1, (-1, n_second))
    first = F.cross_entropy(table.logsumexp(2), target // n_second)
    return first + F.cross_entropy(table.logsumexp(1), target % n_second)


class ClassifierTask:
    """Image or video classifier over pairs of attributes, with cross-entropy of the pair and of each attribute."""

    def __init__(
        self, model: nn.Module, pool: Pool, first: str, second: str, settings: Optimise, is_video: bool
    ) -> None:
        self.model, self.pool, self.settings, self.is_video = model, pool, settings, is_video
        self.n_second = len((VISIBLE | {"motion": MOTIONS})[second])
        self.labels = torch.from_numpy(pool.labels[first] * self.n_second + pool.labels[second])

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.model)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy over the classes and over the values of either attribute."""
        index = rng.integers(len(self.pool.scenes), size=self.settings.batch_size)
        pixels = self.pool.clip_batch(index) if self.is_video else self.pool.image_batch(index, rng)
        logits = self.model(pixel_values=pixels).logits.float()
        target = self.labels[index]
        accuracy = float((logits.argmax(1) == target).float().mean())
        loss = F.cross_entropy(logits, target) + marginal_losses(logits, target, self.n_second)
        return loss, {"accuracy": accuracy}


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


class CaptionerTask:
    """BLIP's language-modelling loss on one frame and its caption."""

    def __init__(self, model: BlipForConditionalGeneration, tokenizer: Any, pool: Pool, settings: Optimise) -> None:
        self.model, self.tokenizer, self.pool, self.settings = model, tokenizer, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.model)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of the next word."""
        index = rng.integers(len(self.pool.scenes), size=self.settings.batch_size)
        tokens = caption_tokens(self.tokenizer, [self.pool.scenes[i].caption() for i in index])
        output = self.model(pixel_values=self.pool.image_batch(index, rng), input_ids=tokens["input_ids"],
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


class UnetTask:
    """Text-conditioned denoising of single frames; one caption in ten is empty."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, latents: torch.Tensor, clip_of: np.ndarray,
                 encode: Callable[[list[str]], torch.Tensor], pool: Pool, settings: Optimise) -> None:  # fmt: skip
        self.unet, self.scheduler, self.latents, self.clip_of = unet, scheduler, latents, clip_of
        self.encode, self.pool, self.settings = encode, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.unet)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Squared error of v."""
        index = rng.integers(len(self.latents), size=self.settings.batch_size)
        clean = self.latents[index].float()
        captions = ["" if rng.random() < 0.1 else self.pool.scenes[self.clip_of[i]].caption(rng) for i in index]
        condition = self.encode(captions)
        noise = torch.randn_like(clean)
        timestep = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(index),))
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        target = self.scheduler.get_velocity(clean, noise, timestep)
        output = self.unet(noisy, timestep, condition).sample.float()
        return F.mse_loss(output, target), {}
