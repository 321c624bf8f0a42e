"""The losses of the parts that see: classifiers of pictures and of films, CLIP's image tower, the captioner.

Shapes: B pictures or clips, F frames, P patches, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kit import words
from kit.pool import VISIBLE, Pool, named_loss
from mindvideo.simulate.scenes import COLUMNS, MOTIONS, ROWS, locate, scene_caption

FARTHEST, LIGHT, NOISE = 2, 0.15, 0.05


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
    """A classifier over pairs of attributes: cross-entropy of the pair, of each attribute, of every patch.

    Batches are mirrored, moved, brightened or darkened and made noisy by chance.
    """

    def __init__(self, model: Any, pool: Pool, second: str, batch: int) -> None:
        """``second`` is "colour" for pictures, "motion" for films; the first attribute is the thing."""
        self.model, self.pool, self.batch, self.is_video = model, pool, batch, second == "motion"
        names = VISIBLE | {"motion": MOTIONS}
        self.n_second = len(names[second])
        self.labels = [torch.from_numpy(pool.labels[name]) for name in ("thing", second)]
        self.mirrored = torch.arange(self.n_second)  # the second attribute in a mirror
        if self.is_video:
            left, right = MOTIONS.index("left"), MOTIONS.index("right")
            self.mirrored[[left, right]] = torch.tensor([right, left])
        width = model.config.hidden_size
        self.heads = nn.ModuleList([nn.Linear(width, len(names[name]) + 1) for name in ("thing", second)])

    def modules(self) -> nn.ModuleDict:
        """The model and the heads of its patches, which are thrown away."""
        return nn.ModuleDict({"model": self.model, "heads": self.heads})

    def _see(self, index: np.ndarray, flip: bool, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) or clips (B, F, 3, H, W) and their cover (B, 16, 16) or (B, F, 16, 16)."""
        frames = self.pool.frames.shape[1]
        seen = (
            self.pool.films(index) if self.is_video else self.pool.stills(index, rng.integers(frames, size=len(index)))
        )
        pixels, cover = (tensor.flip(-1) for tensor in seen) if flip else seen
        down, right = rng.integers(-FARTHEST, FARTHEST + 1, size=2)
        pixels, cover = move(pixels, cover, int(down), int(right))
        gain = 1 + LIGHT * (2 * torch.rand(len(pixels), *[1] * (pixels.ndim - 1)) - 1)
        return ((pixels + 1) * gain - 1).clamp(-1, 1) + NOISE * torch.randn_like(pixels), cover

    def _forward(self, pixels: torch.Tensor, cover: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (B, classes), patch tokens (B, P, D) and their cover (B, P)."""
        grid = self.model.config.image_size // self.model.config.patch_size
        if not self.is_video:
            tokens = self.model.vit(pixels).last_hidden_state
            return self.model.classifier(tokens[:, 0]), tokens[:, 1:], patch_cover(cover, grid)
        tokens = self.model.videomae(pixels).last_hidden_state
        pairs = cover.unflatten(1, (-1, self.model.config.tubelet_size)).mean(2)
        covers = patch_cover(pairs.flatten(0, 1), grid).unflatten(0, pairs.shape[:2]).flatten(1)
        return self.model.classifier(self.model.fc_norm(tokens.mean(1))), tokens, covers

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy over the classes, over the values of either attribute, and at every patch."""
        index = rng.integers(len(self.pool), size=self.batch)
        flip = bool(rng.random() < 0.5)
        logits, tokens, cover = self._forward(*self._see(index, flip, rng))
        each = [labels[index] for labels in self.labels]
        if flip:
            each[1] = self.mirrored[each[1]]
        logits, target = logits.float(), each[0] * self.n_second + each[1]
        loss = F.cross_entropy(logits, target) + marginal_losses(logits, target, self.n_second)
        for head, label in zip(self.heads, each, strict=True):
            loss = loss + dense_loss(head(tokens).float(), label, cover)
        right = logits.argmax(1) == target
        return loss, {"accuracy": float(right.float().mean())}


def contrast(logits: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Symmetric cross-entropy of B pictures and (1 + K) B captions, and the share of pictures told right.

    Parameters
    ----------
    logits : Tensor, (B, (1 + K) B)
        Of the B captions, then the K near misses of the first, of the second, …; a near miss counts for its own only.
    """
    count = len(logits)
    misses = logits.shape[1] // count - 1
    own = torch.arange(count)
    belongs = own[:, None] == torch.arange(count * misses)[None] // max(1, misses)
    to_text = torch.cat([logits[:, :count], logits[:, count:].masked_fill(~belongs, -1e4)], 1)
    loss = (F.cross_entropy(to_text, own) + F.cross_entropy(logits[:, :count].T, own)) / 2
    return loss, float((to_text.argmax(1) == own).float().mean())


class ImageTowerTask:
    """CLIP's image tower and both projections, against a text tower whose tokens stay as they are.

    Every picture also meets two captions that differ from its own in one visible attribute or in where its thing is.
    """

    def __init__(self, text: Any, image: Any, tokenizer: Any, pool: Pool, batch: int) -> None:
        self.text, self.image, self.tokenizer, self.pool, self.batch = text, image, tokenizer, pool, batch
        self.text.requires_grad_(False)
        self.text.text_projection.requires_grad_(True)
        width, hidden = image.config.projection_dim, image.config.hidden_size
        self.sizes = {name: len(names) for name, names in VISIBLE.items()} | {"column": len(COLUMNS), "row": len(ROWS)}
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in self.sizes.items()})
        self.patch_heads = nn.ModuleDict(
            {name: nn.Linear(hidden, self.sizes[name] + 1) for name in ("thing", "colour")}
        )
        self.scale = nn.ParameterDict({"log": nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))})

    def modules(self) -> nn.ModuleDict:
        """The tower, the text's projection, and what is thrown away: heads and the logits' scale."""
        return nn.ModuleDict({
            "image": self.image, "projection": self.text.text_projection, "heads": self.heads,
            "patch_heads": self.patch_heads, "scale": self.scale,
        })  # fmt: skip

    def _near_miss(self, told: words.Told, rng: np.random.Generator) -> str:
        names = [*VISIBLE, "column"] + (["row"] if told[1][1] else [])
        return scene_caption(*words.swap(told, names[rng.integers(len(names))], rng), rng)

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Contrast, attributes from the picture's embedding, and what is at its patches."""
        index = rng.integers(len(self.pool), size=self.batch)
        moment = rng.integers(self.pool.frames.shape[1], size=self.batch)
        pixels, cover = self.pool.stills(index, moment)
        told = []
        for i, j in zip(index, moment, strict=True):
            clip = self.pool.clips[i]
            told.append((clip.scene, locate(clip.scene, clip.times_s[j])))
        captions = [scene_caption(*each, rng) for each in told]
        captions += [self._near_miss(each, rng) for each in told for _ in range(2)]
        output = self.image(pixels)
        images = output.image_embeds.float()
        ids = words.encode(self.tokenizer, captions, self.text.config.max_position_embeddings)
        longest = int((ids == self.tokenizer.eos_token_id).int().argmax(1).max()) + 1
        texts = self.text(ids[:, :longest]).text_embeds.float()
        scale = self.scale["log"].exp().clamp(max=100.0)
        contrastive, accuracy = contrast(scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T)
        extra = torch.zeros(())
        for name, head in self.heads.items():
            place = {"column": 0, "row": 1}.get(name)
            label = self.pool.labels[name][index] if place is None else self.pool.where[index, moment, place]
            extra = extra + named_loss(head(images), label)
        patches = output.last_hidden_state[:, 1:]
        at = patch_cover(cover, int(patches.shape[1] ** 0.5))
        for name, head in self.patch_heads.items():
            extra = extra + dense_loss(head(patches).float(), torch.from_numpy(self.pool.labels[name][index]), at)
        return contrastive + 0.2 * extra, {"contrastive": float(contrastive.detach()), "accuracy": accuracy}


class CaptionerTask:
    """BLIP's language-modelling loss on one frame and its caption."""

    def __init__(self, model: Any, tokenizer: Any, pool: Pool, batch: int) -> None:
        self.model, self.tokenizer, self.pool, self.batch = model, tokenizer, pool, batch

    def modules(self) -> nn.ModuleDict:
        """All of it."""
        return nn.ModuleDict({"model": self.model})

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of the next word."""
        index = rng.integers(len(self.pool), size=self.batch)
        moment = rng.integers(self.pool.frames.shape[1], size=self.batch)
        pixels, _ = self.pool.stills(index, moment)
        captions = [self.pool.still_caption(int(i), int(j)) for i, j in zip(index, moment, strict=True)]
        tokens = caption_tokens(self.tokenizer, captions)
        output = self.model(pixel_values=pixels + NOISE * torch.randn_like(pixels), input_ids=tokens["input_ids"],
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
