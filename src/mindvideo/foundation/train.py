"""Train the embedded kit on procedural films, part by part, restartable.

Every part is a small task for the one training loop. Films are drawn from their own seed and never show a held-out
combination.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import (
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from mindvideo.config import Optimise
from mindvideo.errors import ModelError
from mindvideo.foundation import kit
from mindvideo.simulate.scenes import (
    COLOURS,
    LIGHTS,
    MOTIONS,
    PLACES,
    SIZES,
    THINGS,
    Scene,
    draw_clip,
)
from mindvideo.train.loop import named_trainable, train

Progress = Callable[[int, int, dict[str, float]], None]
PARTS = ("vae", "clip", "image_classifier", "video_classifier", "captioner", "unet")
_VISIBLE = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "size": SIZES, "light": LIGHTS}
POOL_SEED = 20_000


def _part(steps: int, batch_size: int, lr: float, **more: Any) -> Optimise:
    fixed: dict[str, Any] = dict(
        betas=(0.9, 0.98), weight_decay=0.02, clip_grad=1.0, ema_decay=0.999, checkpoint_every=500, log_every=50
    )
    return Optimise(steps=steps, batch_size=batch_size, lr=lr, warmup_steps=100, **{**fixed, **more})


RECIPES: dict[str, dict[str, Any]] = {
    "night": {
        "clips": 30_000,
        "vae": _part(4000, 32, 2e-3, weight_decay=0.0),
        "clip": _part(1500, 96, 1.5e-3),
        "image_classifier": _part(3000, 64, 1e-3),
        "video_classifier": _part(1500, 24, 7e-4),
        "captioner": _part(1500, 48, 1e-3),
        "unet": _part(3800, 64, 1e-3, weight_decay=0.0, checkpoint_every=100),
    },
    "gpu": {
        "clips": 100_000,
        "vae": _part(30_000, 128, 1e-3, weight_decay=0.0),
        "clip": _part(12_000, 512, 1e-3),
        "image_classifier": _part(12_000, 256, 1e-3),
        "video_classifier": _part(12_000, 128, 1e-3),
        "captioner": _part(12_000, 256, 1e-3),
        "unet": _part(60_000, 256, 5e-4, weight_decay=0.0, ema_decay=0.9995),
    },
}


class Pool:
    """Clips, captions and attributes drawn once and shared by all parts.

    ``frames`` (N, F, H, W, 3) uint8 is memory-mapped; ``scenes`` are the N scenes.
    """

    def __init__(self, frames: np.ndarray, scenes: list[Scene]) -> None:
        self.frames, self.scenes = frames, scenes
        self.labels = {name: np.array([names.index(getattr(scene, name)) for scene in scenes])
                       for name, names in (_VISIBLE | {"motion": MOTIONS}).items()}  # fmt: skip

    @classmethod
    def open(cls, folder: Path, clips: int, seed: int, progress: Progress | None = None) -> Pool:
        """Open the pool in ``folder``, drawing it first where it is not there."""
        done = folder / "scenes.json"
        path = folder / "frames.npy"
        shape = (clips, kit.KIT.num_frames, kit.KIT.size, kit.KIT.size, 3)
        if not done.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            frames = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            rows = []
            for number in range(clips):
                scene, frames[number] = draw_clip(
                    np.random.default_rng([seed, POOL_SEED, number]), shape[1], 3.0, shape[2]
                )
                rows.append(vars(scene))
                if progress and number % 500 == 0:
                    progress(number, clips, {})
            frames.flush()
            done.with_suffix(".tmp").write_text(json.dumps(rows))
            done.with_suffix(".tmp").rename(done)
        rows = json.loads(done.read_text())
        scenes = [Scene(**{**row, "other": tuple(row["other"]) if row["other"] else None}) for row in rows]
        return cls(np.load(path, mmap_mode="r"), scenes)

    def image_batch(self, index: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """One random frame of each clip: (B, 3, H, W) float32 in [-1, 1]."""
        moment = rng.integers(self.frames.shape[1], size=len(index))
        order = np.argsort(index)
        frames = np.empty((len(index), *self.frames.shape[2:]), np.uint8)
        frames[order] = np.stack([self.frames[i, j] for i, j in zip(index[order], moment[order], strict=True)])
        return to_pixels(frames)

    def clip_batch(self, index: np.ndarray) -> torch.Tensor:
        """Whole clips: (B, F, 3, H, W) float32 in [-1, 1]."""
        return to_pixels(np.stack([self.frames[i] for i in index]))


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1.0


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
    name = str(rng.choice(list(_VISIBLE)))
    others = [value for value in _VISIBLE[name] if value != getattr(scene, name)]
    return Scene(**{**vars(scene), name: str(rng.choice(others))})


class ClipTask:
    """Contrastive image and text towers; every image also meets captions that differ from its own in one word."""

    def __init__(self, text: CLIPTextModelWithProjection, image: CLIPVisionModelWithProjection, tokenizer: Any, pool: Pool,
                 settings: Optimise) -> None:  # fmt: skip
        self.text, self.image, self.tokenizer, self.pool, self.settings = text, image, tokenizer, pool, settings
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        width = image.config.projection_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in _VISIBLE.items()})

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
        self.n_second = len((_VISIBLE | {"motion": MOTIONS})[second])
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


def _save(part: Any, folder: Path, half: bool = True) -> None:
    """Write a part in half precision beside its place, then rename; other files of the folder stay."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, beside)
    (part.half() if half else part).save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    part.float()


def encode_pool(
    vae: AutoencoderKL, pool: Pool, moments: tuple[int, ...], path: Path, progress: Progress | None
) -> torch.Tensor:
    """Scaled latents of some frames of every clip, (N * moments, c, h, w) float16, computed once and kept in ``path``."""
    if not path.is_file():
        rows = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(pool.scenes), 64):
                pixels = to_pixels(pool.frames[start : start + 64, list(moments)]).flatten(0, 1)
                rows.append((vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor).half())
                if progress and start % 1024 == 0:
                    progress(start, len(pool.scenes), {})
        np.save(path.with_suffix(".tmp.npy"), torch.cat(rows).numpy())
        path.with_suffix(".tmp.npy").rename(path)
    return torch.from_numpy(np.load(path))


def _fit_scaling_factor(vae: AutoencoderKL, pool: Pool) -> None:
    with torch.inference_mode():
        latents = vae.encode(to_pixels(np.asarray(pool.frames[:256, 0]))).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))


def train_part(out: Path, part: str, recipe: str = "night", seed: int = 0, progress: Progress | None = None) -> None:
    """Train one part of the kit in ``out``, going on where a killed run stopped.

    Parameters
    ----------
    out : Path
        The kit; made untrained first where it is missing. ``out/work`` keeps clips, states and curves.
    part : str
        One of ``PARTS``; ``unet`` needs a trained ``vae`` and ``clip``.
    recipe : {"night", "gpu"}
        Sizes of the training.

    Raises
    ------
    ModelError
        For an unknown part or recipe.
    """
    if part not in PARTS or recipe not in RECIPES:
        raise ModelError(f"expected a part of {PARTS} and a recipe of {tuple(RECIPES)}, found '{part}' and '{recipe}'")
    if not (out / "unet" / "config.json").is_file():
        kit.build_kit(out, "kit", seed)
    chosen = RECIPES[recipe]
    settings: Optimise = chosen[part]
    work = out / "work"
    pool = Pool.open(work / "pool", chosen["clips"], seed, progress)
    task, save = _prepare_part(out, part, pool, settings, progress)
    train(task, settings, work / part, seed=seed * 1000 + PARTS.index(part), progress=progress)
    save()
    note = {
        "part": part,
        "recipe": recipe,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "clips": chosen["clips"],
    }
    (work / part / "made.json").write_text(json.dumps(note, indent=2))


def _prepare_part(
    out: Path, part: str, pool: Pool, settings: Optimise, progress: Progress | None
) -> tuple[Any, Callable[[], None]]:
    """The task of a part and how to save its result."""
    from diffusers import DDIMScheduler
    from transformers import BertTokenizer, CLIPTokenizer

    if part == "vae":
        vae = AutoencoderKL.from_pretrained(out / "vae").float().train()

        def save_vae() -> None:
            vae.eval()
            _fit_scaling_factor(vae, pool)
            _save(vae, out / "vae")

        return VaeTask(vae, pool, settings), save_vae
    if part == "clip":
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        text = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder").float().train()
        image = (
            CLIPVisionModelWithProjection.from_pretrained(out / "image_encoder", attn_implementation="eager")
            .float()
            .train()
        )

        def save_clip() -> None:
            _save(text, out / "text_encoder")
            _save(image, out / "image_encoder")

        return ClipTask(text, image, tokenizer, pool, settings), save_clip
    if part == "image_classifier":
        model = ViTForImageClassification.from_pretrained(out / part, attn_implementation="eager").float().train()
        return ClassifierTask(model, pool, "thing", "colour", settings, False), lambda: _save(model, out / part)
    if part == "video_classifier":
        video = VideoMAEForVideoClassification.from_pretrained(out / part, attn_implementation="eager").float().train()
        start_from_images(video, ViTForImageClassification.from_pretrained(out / "image_classifier").float())
        return ClassifierTask(video, pool, "thing", "motion", settings, True), lambda: _save(video, out / part)
    if part == "captioner":
        words = BertTokenizer.from_pretrained(out / part)
        blip = BlipForConditionalGeneration.from_pretrained(out / part, attn_implementation="eager").float().train()
        return CaptionerTask(blip, words, pool, settings), lambda: _save(blip, out / part)
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder").float().eval()
    moments = (1, 4)
    latents = encode_pool(vae, pool, moments, out / "work" / "latents.npy", progress)
    unet = UNet2DConditionModel.from_pretrained(out / "unet").float().train()
    unet.set_attn_processor(AttnProcessor())

    def encode(captions: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return text(tokenize(tokenizer, captions)).last_hidden_state.float()

    clip_of = np.arange(len(latents)) // len(moments)
    scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
    return UnetTask(unet, scheduler, latents, clip_of, encode, pool, settings), lambda: _save(unet, out / "unet")
